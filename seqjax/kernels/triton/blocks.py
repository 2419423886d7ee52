# SPDX-License-Identifier: Apache-2.0
"""How the arrays of a recurrence are padded and cut into blocks of the batch, one block per program."""

from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl

from seqjax.base import Array
from seqjax.kernels.operands import pad
from seqjax.kernels.triton.launch import SMALLEST, Part

ROWS = SMALLEST
"""Sequences per program: as few as the tensor cores take."""
Parts = Any
"""A `Part`, a tuple of them, or `None` where an option is off."""


def padded(H: int) -> int:
    """The smallest power of two that holds H, and that the tensor cores take.

    >>> padded(20), padded(3)
    (32, 16)
    """
    return max(SMALLEST, 1 << (H - 1).bit_length())


class Blocks(NamedTuple):
    """`T` steps of `B` sequences with `H` units, where each program owns `ROWS` sequences."""

    T: int
    B: int
    H: int

    @property
    def grid(self) -> tuple[int, ...]:
        return (-(-self.B // ROWS),)

    @property
    def batch(self) -> int:
        """B, padded."""
        return self.grid[0] * ROWS

    @property
    def hidden(self) -> int:
        """H, padded."""
        return padded(self.H)

    def states(self, *arrays: Array) -> Parts:
        """Parts for states, `[B, H]` each."""
        spec = pl.BlockSpec((ROWS, self.hidden), lambda i: (i, 0))
        return tuple(Part(pad(pad(a, 0, self.batch), 1, self.hidden), spec) for a in arrays)

    def sequences(self, *arrays: Array) -> Parts:
        """Parts for sequences, `[T, B, H]` each."""
        return tuple(Part(pad(pad(a, 1, self.batch), 2, self.hidden), self._sequence()) for a in arrays)

    def gates(self, array: Array, count: int) -> Parts:
        """The part for gates, `[T, B, count * H]` or `[T, B, count, H]`."""
        apart = array.reshape(self.T, self.B, count, self.H)
        return Part(pad(pad(apart, 1, self.batch), 3, self.hidden), self._sequence(count))

    def flags(self, flags: Array | None) -> Parts:
        """The part for flags, `[T, B]`."""
        if flags is None:
            return None
        return Part(pad(flags, 1, self.batch), pl.BlockSpec((self.T, ROWS), lambda i: (0, i)))

    def weights(self, w_rec: Array, gates: int, *, transposed: bool = False) -> Parts:
        """The part for weights `[H, G*H]`, with one matrix per gate."""
        apart = w_rec.reshape(self.H, gates, self.H)
        apart = apart.transpose((1, 2, 0) if transposed else (1, 0, 2))
        matrices = pad(pad(apart, 1, self.hidden), 2, self.hidden)
        return Part(matrices, pl.BlockSpec(matrices.shape, lambda i: (0, 0, 0)))

    def bias(self, bias: Array | None, gates: int) -> Parts:
        """The part for a bias `[G*H]`, with one row per gate."""
        if bias is None:
            return None
        apart = pad(bias.reshape(gates, self.H), 1, self.hidden)
        return Part(apart, pl.BlockSpec(apart.shape, lambda i: (0, 0)))

    def new_states(self, count: int, dtype: Any) -> Parts:
        """Room for `count` results `[B, H]`."""
        shape = jax.ShapeDtypeStruct((self.batch, self.hidden), dtype)
        return (Part(shape, pl.BlockSpec((ROWS, self.hidden), lambda i: (i, 0))),) * count

    def new_sequences(self, count: int, dtype: Any) -> Parts:
        """Room for `count` results `[T, B, H]`."""
        shape = jax.ShapeDtypeStruct((self.T, self.batch, self.hidden), dtype)
        return (Part(shape, self._sequence()),) * count

    def new_gates(self, count: int, dtype: Any) -> Parts:
        """Room for a result `[T, B, count, H]`."""
        if count == 0:
            return None
        return Part(jax.ShapeDtypeStruct((self.T, self.batch, count, self.hidden), dtype), self._sequence(count))

    def unpad(self, tree: Any, batch_axis: int) -> Any:
        """Results without their padding."""

        def unpadded(array: Array) -> Array:
            return jax.lax.slice_in_dim(array, 0, self.B, axis=batch_axis)[..., : self.H]

        return tree if (self.batch, self.hidden) == (self.B, self.H) else jax.tree.map(unpadded, tree)

    def _sequence(self, *count: int) -> pl.BlockSpec:
        shape = (self.T, ROWS, *count, self.hidden)
        return pl.BlockSpec(shape, lambda i: (0, i, 0, 0)[: len(shape)])
