# SPDX-License-Identifier: Apache-2.0
"""The products of one step on a Hopper GPU: each block of a cluster has the weights of 64 units, but needs all units.

Factors have 16 bits. In float32 they are float16, which has as many digits as TF32, the precision that JAX has there
by default, but few exponents: weights are scaled by a power of two, states, which are at most 1, by another, and the
cotangents of each sequence by the largest of the block's 64 units, step by step.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from seqjax.base import Array
from seqjax.kernels.hopper import cluster
from seqjax.kernels.hopper.tiles import ROWS, UNITS

STATES = 2.0**8
"""What states are multiplied by: they have all digits from 2^-22 on, and the first may be as large as 255."""
LARGE = 2.0**15
"""The largest cotangent of a sequence in one block and product after scaling: half of what float16 can hold."""
TINY = 2.0**-100
"""If that is smaller, it is scaled as if it were this: so zeros stay zeros."""


class Scratch(NamedTuple):
    """What a block has in shared memory: the `tiles.Buffers`, and what signals that they are filled."""

    weights: Any
    factors: Any
    going: Any  # sums
    coming: Any
    barriers: Any  # [2 * products]
    loaded: Any


class Exchange(NamedTuple):
    """One step: which half of the buffers it uses, and the phase of their barriers."""

    scratch: Scratch
    scale: Array | None  # of the weights, in float32
    parts: int
    gates: int
    products: int  # of a step, at most
    half: int
    phase: Array

    def product(self, slot: int, array: Array, gates: Sequence[int]) -> list[Array]:
        """`W_k x` for each gate, where every block has one `[64, 16]` array of x and gets those of all others.

        Args:
          slot: 0 for the first product of a step, then 1.
          array: this block's part of x, in float32.
          gates: k.
        """
        barrier = self._barrier(slot)
        self._put(slot, array if self.scale is None else array * STATES)
        cluster.synchronize()
        if self.parts > 1:
            cluster.broadcast(
                self.scratch.factors, self.scratch.barriers, barrier, layout=tiling(self.scratch.factors.dtype),
                blocks=self.parts, half=self.half, slot=slot,
            )  # fmt: skip

        def run(*accumulators: Any) -> list[Array]:
            for turn in range(self.parts):  # its own first, while the others' arrive
                if turn == 1:
                    cluster.wait(self.scratch.barriers, barrier, self.phase)
                for accumulator, gate in zip(accumulators, gates, strict=True):
                    self._multiply(accumulator, turn, gate, turn, slot)
            plgpu.wgmma_wait(0)
            return [_value(accumulator) for accumulator in accumulators]

        sums = pl.run_scoped(run, *(plgpu.ACC((UNITS, ROWS)) for _ in gates))
        return sums if self.scale is None else [self.scale / STATES * array for array in sums]

    def transposed(self, slot: int, pairs: Sequence[tuple[int, Array]]) -> Array:
        """The sum of `W_kᵀ d` over gates and blocks; what this block's gates contribute to the others is sent to them.

        Args:
          slot: 0 for the first product of a step, then 1.
          pairs: k and d `[64, 16]`, in float32.
        """
        times, back = (None, None) if self.scale is None else scales([d for _, d in pairs], self.scale)
        for k, d in pairs:
            self._put(k, d if times is None else d * times)
        cluster.synchronize()
        turns = (*range(1, self.parts), 0)

        def value(accumulator: Any) -> Array:
            return _value(accumulator) if back is None else _value(accumulator) * back

        def run(*accumulators: Any) -> Array:
            for accumulator, turn in zip(accumulators, turns, strict=True):
                for k, _ in pairs:
                    self._multiply(accumulator, turn, k, 0, k)
            *others, own = accumulators
            if others:
                plgpu.wgmma_wait(len(pairs))  # its own sum may wait
                self._scatter(slot, [value(accumulator) for accumulator in others])
            plgpu.wgmma_wait(0)
            return functools.reduce(jnp.add, [value(own), *self._gather(slot, len(others))])

        return pl.run_scoped(run, *(plgpu.ACC((UNITS, ROWS)) for _ in turns))

    def _scatter(self, slot: int, sums: Sequence[Array]) -> None:
        at = self._barrier(slot)
        for i, array in enumerate(sums):
            self.scratch.going[at, i] = array
        cluster.synchronize()
        cluster.scatter(
            self.scratch.going, self.scratch.coming, self.scratch.barriers, at,
            layout=tiling(jnp.float32), blocks=self.parts, at=at,
        )  # fmt: skip

    def _gather(self, slot: int, count: int) -> list[Array]:
        if not count:
            return []
        at = self._barrier(slot)
        cluster.wait(self.scratch.barriers, at, self.phase)
        return [load(self.scratch.coming.at[at, i]) for i in range(count)]

    def _put(self, slot: int, array: Array) -> None:
        self.scratch.factors[self.half, 0, slot] = array.astype(self.scratch.factors.dtype)

    def _multiply(self, accumulator: Any, turn: int, gate: int, part: int, slot: int) -> None:
        """Adds the product of a gate's weights for the block `turn` places on with a part's factor in a slot."""
        weights = self.scratch.weights.at[turn * self.gates + gate]
        plgpu.wgmma(accumulator, weights, self.scratch.factors.at[self.half, part, slot])

    def _barrier(self, slot: int) -> int:
        return self.half * self.products + slot


def tiling(dtype: Any) -> tuple:
    """The layout of tiles in shared memory: that in which the matrix units read sixteen columns."""
    swizzle: Any = plgpu.SwizzleTransform  # both are abstract to type checkers from jax 0.12 on
    tiles: Any = plgpu.TilingTransform
    return tiles((8, ROWS)), swizzle(ROWS * jnp.dtype(dtype).itemsize)


def load(tile: Any) -> Array:
    """Loads a tile from any memory into the registers where the matrix units leave their results."""
    index = ((),) if jax.__version_info__ < (0, 11) else ()  # which 0.10 needs and 0.11 warns about
    return plgpu.load(tile, *index, layout=plgpu.Layout.WGMMA, optimized=False)


def store(tile: Any, array: Array) -> None:
    """Stores an array from those registers in a tile of global memory; jax 0.12 must be told that its rows are not
    contiguous."""
    if hasattr(plgpu, "store"):
        plgpu.store(tile, array, optimized=False)
    else:
        tile[...] = array


def _value(accumulator: Any) -> Array:
    """The value of an accumulator whose products have already been waited for."""
    return plgpu.wgmma_accumulator_load(accumulator, wait_n=None)


def scales(arrays: Sequence[Array], scale: Array) -> tuple[Array, Array]:
    """What each column must be multiplied by so that its largest number becomes `LARGE`; and what undoes that and
    multiplies by `scale`."""
    magnitude = functools.reduce(jnp.maximum, map(jnp.abs, arrays))
    largest = jnp.maximum(jnp.max(magnitude, 0), TINY)
    both = LARGE / largest, largest * (scale / LARGE)
    return jnp.broadcast_to(both[0], magnitude.shape), jnp.broadcast_to(both[1], magnitude.shape)
