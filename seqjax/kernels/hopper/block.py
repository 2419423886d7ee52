# SPDX-License-Identifier: Apache-2.0
"""What one block of a cluster on a Hopper GPU takes, reads and writes, and how all blocks are launched."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from seqjax.base import Array
from seqjax.kernels.equations import Kind
from seqjax.kernels.hopper import cluster, registers
from seqjax.kernels.hopper.exchange import Exchange, Scratch, load, store, tiling
from seqjax.kernels.hopper.tiles import ROWS, UNITS, Tiles, buffers
from seqjax.kernels.operands import varying_as


class Place(NamedTuple):
    """The cluster and the part of the units that a block has, and how it reads and writes their tiles."""

    cluster: Array
    part: Array
    exchange: Callable[[int, Array], Exchange]
    """The exchange of a step, given which half of the buffers it uses, and their phase."""

    def some(self, ref: Any, t: Array) -> list[Array]:
        """This block's N tiles of `[T, clusters, N, parts, ...]` at step `t`, as they are in memory."""
        return [load(ref.at[t, self.cluster, i, self.part]) for i in range(ref.shape[2])]

    def all(self, ref: Any) -> list[Array]:
        """This block's N tiles of `[clusters, N, parts, ...]`, in float32; none for `None`."""
        if ref is None:
            return []
        return [self.number(load(ref.at[self.cluster, i, self.part])) for i in range(ref.shape[1])]

    def number(self, tile: Array) -> Array:
        """A tile as it is in memory, in float32."""
        return registers.unpack(tile) if tile.dtype == jnp.uint32 else tile.astype(jnp.float32)

    def reciprocal(self, array: Array) -> Array:
        return registers.reciprocal(array)

    def flags(self, ref: Any, t: Array) -> Array | None:
        return None if ref is None else load(ref.at[t, self.cluster])

    def write(self, ref: Any, arrays: Sequence[Array], *t: Any) -> None:
        for i, array in enumerate(arrays):
            self.write_one(ref, array, i, *t)

    def write_one(self, ref: Any, array: Array, i: int, *t: Any) -> None:
        array = registers.pack(array) if ref.dtype == jnp.uint32 else array.astype(ref.dtype)
        store(ref.at[(*t, self.cluster, i, self.part)], array)

    def zeros(self) -> Array:
        return plgpu.layout_cast(jnp.zeros((UNITS, ROWS), jnp.float32), plgpu.Layout.WGMMA)


def launch(
    body: Callable[[dict, dict, Place], None],
    name: str,
    kind: Kind,
    tiles: Tiles,
    w_rec: Array,
    inputs: dict[str, Array | None],
    outputs: dict[str, jax.ShapeDtypeStruct],
    *,
    transposed: bool,
) -> dict[str, Array]:
    """Runs `body(inputs, outputs, place)`, with arrays turned into refs, in every block of every cluster."""
    parts = tiles.parts
    weights, scale = tiles.weights(w_rec, kind.gates, transposed=transposed)
    count = weights.shape[1]
    given = {key: array for key, array in inputs.items() if array is not None}

    def run(weights: Any, scale: Any, *refs: Any) -> None:
        scratch = Scratch(*refs[len(given) + len(outputs) :])
        unit = None if weights.dtype == jnp.bfloat16 else scale[0]
        part = lax.axis_index("block")
        if parts > 1:
            cluster.begin(scratch.barriers)
        for n in range(count):
            plgpu.copy_gmem_to_smem(weights.at[part, n], scratch.weights.at[n], scratch.loaded)
        plgpu.barrier_wait(scratch.loaded)

        def exchange(half: int, phase: Array) -> Exchange:
            return Exchange(scratch, unit, parts, kind.gates, kind.products, half, phase)

        read = dict.fromkeys(inputs) | dict(zip(given, refs, strict=False))
        written = dict(zip(outputs, refs[len(given) :], strict=False))
        body(read, written, Place(lax.axis_index("cluster"), part, exchange))
        if parts > 1:
            cluster.meet()

    shapes = buffers(kind, parts, transposed=transposed)
    sums = shapes.sums or (1, 1, 8, ROWS)  # the smallest there is, where there are none
    kernel = plgpu.kernel(
        run,
        out_type=varying_as(given, tuple(outputs.values())),
        scratch_types=(
            plgpu.SMEM(shapes.weights, weights.dtype, transforms=tiling(weights.dtype)),
            plgpu.SMEM(shapes.factors, weights.dtype, transforms=tiling(weights.dtype)),
            plgpu.SMEM(sums, jnp.float32, transforms=tiling(jnp.float32)),
            plgpu.SMEM(sums, jnp.float32, transforms=tiling(jnp.float32)),
            plgpu.SMEM((cluster.BARRIER_WORDS * 2 * kind.products,), jnp.int32),
            plgpu.Barrier(num_arrivals=count),
        ),
        grid=(tiles.clusters,),
        grid_names=("cluster",),
        cluster=(parts,),
        cluster_names=("block",),
        kernel_name=name.replace("-", "_"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,  # where one is needed, `exchange` has it
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )
    return dict(zip(outputs, kernel(weights, scale[None], *given.values()), strict=True))
