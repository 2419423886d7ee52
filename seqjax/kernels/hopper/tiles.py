# SPDX-License-Identifier: Apache-2.0
"""How the arrays of a recurrence are cut into tiles `[64, 16]`, units by sequences, for the Hopper kernels."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from seqjax.base import Array
from seqjax.kernels.equations import Kind, States
from seqjax.kernels.operands import pad

UNITS, ROWS = 64, 16
"""Rows and columns of a tile."""
SHARED = 224 * 2**10
"""Bytes of shared memory that a block may take; a Hopper has 227 KiB."""
BLOCKS = 8
"""The most blocks in a cluster."""
SPLIT = {"bfloat16": 1, "float32": 2}
"""How many bfloat16 numbers represent one number of a dtype."""


class Tiles(NamedTuple):
    """`B` sequences of `H` units in tiles."""

    B: int
    H: int

    @property
    def parts(self) -> int:
        """The number of parts into which H is cut, which is that of blocks in a cluster."""
        return -(-self.H // UNITS)

    @property
    def clusters(self) -> int:
        """The number of clusters over which B is divided."""
        return -(-self.B // ROWS)

    def shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` arrays `[B, H]` in tiles."""
        return self.clusters, count, self.parts, UNITS, ROWS

    def tile(self, array: Array) -> Array:
        """`[..., B, N, H]` as `[..., clusters, N, parts, UNITS, ROWS]`."""
        *lead, _, N, _ = array.shape
        array = pad(pad(array, -1, self.parts * UNITS), -3, self.clusters * ROWS)
        return jnp.moveaxis(array.reshape(*lead, self.clusters, ROWS, N, self.parts, UNITS), -4, -1)

    def untile(self, tiles: Array) -> Array:
        """The inverse of `tile`."""
        *lead, _, N, _, _, _ = tiles.shape
        array = jnp.moveaxis(tiles, -1, -4).reshape(*lead, self.clusters * ROWS, N, self.parts * UNITS)
        return array[..., : self.B, :, : self.H]

    def states(self, states: States, dtype: Any) -> Array:
        """States, `[B, H]` each, in tiles."""
        return self.tile(jnp.stack([state.astype(dtype) for state in states], 1))

    def untile_states(self, tiles: Array) -> States:
        arrays = self.untile(tiles)
        return tuple(arrays[:, i] for i in range(arrays.shape[1]))

    def flags(self, flags: Array | None) -> Array | None:
        """Flags `[T, B]` as `[T, clusters, UNITS, ROWS]`, the same for each unit of a tile."""
        if flags is None:
            return None
        rows = pad(flags.astype(jnp.int32), 1, self.clusters * ROWS).reshape(-1, self.clusters, 1, ROWS)
        return jnp.broadcast_to(rows, (rows.shape[0], self.clusters, UNITS, ROWS))

    def weights(self, w_rec: Array, gates: int, split: int, *, transposed: bool) -> Array:
        """`[H, G*H]` as `[parts, G * split * parts, 64, 64]`: what each block multiplies by, for each of the blocks.

        In the forward pass a block has the columns of its units, in reverse the rows of W^T for its gates.
        """
        full = self.parts * UNITS
        apart = pad(pad(w_rec.astype(jnp.float32).reshape(self.H, gates, self.H), 0, full), 2, full)
        apart = apart.reshape(self.parts, UNITS, gates, self.parts, UNITS)  # from part, unit; gate; to part, unit
        apart = apart.transpose((3, 2, 0, 1, 4) if transposed else (3, 2, 0, 4, 1))
        # XLA would drop a plain cast and back, as it may compute more precisely than asked
        high = lax.reduce_precision(apart, exponent_bits=8, mantissa_bits=7)
        halves = jnp.stack([high, apart - high][:split], 2).astype(jnp.bfloat16)
        return halves.reshape(self.parts, gates * split * self.parts, UNITS, UNITS)


def fits(kind: Kind, H: int, dtype: Any) -> bool:
    """Whether a recurrence has room on the chip.

    >>> from seqjax.kernels.equations import LSTM
    >>> fits(LSTM, 256, "bfloat16"), fits(LSTM, 257, "bfloat16"), fits(LSTM, 128, "float32"), fits(LSTM, 129, "float32")
    (True, False, True, False)
    """
    split, parts = SPLIT.get(jnp.dtype(dtype).name), Tiles(1, H).parts
    if split is None or parts > BLOCKS:
        return False
    factors = kind.gates * split * UNITS * ROWS * 2  # of one block
    weights = kind.gates * split * parts * UNITS * UNITS * 2
    sums = kind.products * 2 * (parts - 1) * UNITS * ROWS * 4  # going and coming
    return weights + 2 * max(parts * factors, factors + sums) <= SHARED
