# SPDX-License-Identifier: Apache-2.0
"""The products of one step on a Hopper GPU: each block of a cluster has the weights of 64 units, but needs all units.

Factors are bfloat16. In float32 each factor is split into two bfloat16 numbers, high and low, and the product of the
low parts is left out: the result is accurate to about 2^-16, compared with 2^-11 for TF32.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from seqjax.base import Array
from seqjax.kernels.hopper import cluster
from seqjax.kernels.hopper.tiles import ROWS, UNITS


class Scratch(NamedTuple):
    """What a block has in shared memory, twice if it changes: steps use the two halves alternately."""

    weights: Any  # [G * split * parts, 64, 64]
    factors: Any  # [2, parts, G * split, 64, 16], what weights are multiplied by; in reverse only the block's own
    going: Any  # [2 * products, parts - 1, 64, 16], in reverse: sums for the other blocks
    coming: Any  # and from them
    barriers: Any  # [2 * products]
    loaded: Any


class Exchange(NamedTuple):
    """One step: which half of the buffers it uses, and the phase of their barriers."""

    scratch: Scratch
    parts: int
    split: int
    products: int  # of a step, at most
    part: Array
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
        self._put(self.part, slot, array)
        cluster.synchronize()
        if self.parts > 1:
            cluster.broadcast(
                self.scratch.factors, self.scratch.barriers, barrier, layout=tiling(jnp.bfloat16),
                blocks=self.parts, half=self.half, first=slot * self.split, count=self.split,
            )  # fmt: skip

        def run(*accumulators: Any) -> list[Array]:
            for turn in range(self.parts):  # its own first, while the others' arrive
                if turn == 1:
                    cluster.wait(self.scratch.barriers, barrier, self.phase)
                source = self._on(turn)
                for accumulator, gate in zip(accumulators, gates, strict=True):
                    self._multiply(accumulator, gate, source, source, slot)
            plgpu.wgmma_wait(0)
            return [_value(accumulator) for accumulator in accumulators]

        return pl.run_scoped(run, *(plgpu.ACC((UNITS, ROWS)) for _ in gates))

    def transposed(self, slot: int, pairs: Sequence[tuple[int, Array]]) -> Array:
        """The sum of `W_kᵀ d` over gates and blocks; what this block's gates contribute to the others is sent to them.

        Args:
          slot: 0 for the first product of a step, then 1.
          pairs: k and d `[64, 16]`, in float32.
        """
        for k, array in pairs:
            self._put(0, k, array)
        cluster.synchronize()
        turns = (*range(1, self.parts), 0)

        def run(*accumulators: Any) -> Array:
            for accumulator, turn in zip(accumulators, turns, strict=True):
                for k, _ in pairs:
                    self._multiply(accumulator, k, self._on(turn), 0, k)
            *others, own = accumulators
            if others:
                plgpu.wgmma_wait(len(pairs) * len(self._terms()))  # its own sum may wait
                self._scatter(slot, [_value(accumulator) for accumulator in others])
            plgpu.wgmma_wait(0)
            return functools.reduce(jnp.add, [_value(own), *self._gather(slot, len(others))])

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

    def _put(self, part: Any, slot: int, array: Array) -> None:
        for i, half in enumerate(_halves(array, self.split)):
            self.scratch.factors[self.half, part, slot * self.split + i] = half

    def _multiply(self, accumulator: Any, gate: int, block: Any, part: Any, slot: int) -> None:
        """Adds the product of a gate's weights for a block with a part's factor in a slot."""
        for i, j in self._terms():
            weights = self.scratch.weights.at[(gate * self.split + i) * self.parts + block]
            plgpu.wgmma(accumulator, weights, self.scratch.factors.at[self.half, part, slot * self.split + j])

    def _terms(self) -> tuple[tuple[int, int], ...]:
        """Which part of a weight is multiplied by which part of a factor."""
        return ((0, 0),) if self.split == 1 else ((0, 0), (0, 1), (1, 0))

    def _on(self, turn: int) -> Any:
        """The index of the block `turn` places on."""
        return lax.rem(self.part + turn, jnp.int32(self.parts)) if turn else self.part

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


def _halves(array: Array, split: int) -> list[Array]:
    """`array` as one bfloat16, or as the sum of two."""
    high = array.astype(jnp.bfloat16)
    return [high] if split == 1 else [high, (array - high.astype(jnp.float32)).astype(jnp.bfloat16)]
