# SPDX-License-Identifier: Apache-2.0
"""Thread blocks of a Hopper GPU that work on one recurrence together: how they begin, send, wait and finish.

Pallas' Mosaic backend has no copy from one block's shared memory to another's, and with a remote store for every
four bytes, each of which reports to the barrier separately, a step takes twice as long. So these few instructions
are written out in assembly here, and nowhere else.
"""

import math
from typing import Any

from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from seqjax.base import Array

BARRIER_WORDS = 2
"""The number of 32-bit words that a barrier takes in shared memory."""


def begin(barriers: Any) -> None:
    """Sets up the barriers of a block and waits until all blocks have done so.

    Args:
      barriers: `[BARRIER_WORDS * count]` int32, a ref in shared memory.
    """
    count = barriers.shape[0] // BARRIER_WORDS

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
    def run(_: Any, barriers: Any) -> None:
        init = "\n".join(f"@first mbarrier.init.shared::cta.b64 [$0+{_offset(i)}], 1;" for i in range(count))
        _assembly(
            f"""{{ .reg .pred first; .reg .b32 thread;
            mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0;
            {init}
            fence.mbarrier_init.release.cluster;
            {_MEET} }}""",
            _address(barriers),
        )

    run(barriers)


def meet() -> None:
    """Waits until all blocks of the cluster get here, as none may end while others still read or write its memory."""

    @plgpu.inline_mgpu()
    def run(_: Any) -> None:
        _assembly(f"{{ {_MEET} }}")

    run()


def synchronize() -> None:
    """Waits until all threads of a block get here, and lets the matrix and copy units see what they wrote."""

    @plgpu.inline_mgpu()
    def run(_: Any) -> None:
        _assembly("fence.proxy.async.shared::cta; bar.sync 0, 128;")

    run()


def broadcast(buffer: Any, barriers: Any, barrier: int, *, layout: tuple, blocks: int, half: int, slot: int) -> None:
    """Copies the tile `buffer[half, 0, slot]` to all other blocks.

    In the block `t` places further on it becomes `buffer[half, blocks - t, slot]`, so a block finds what comes from
    `t` places on in `[half, t, slot]`.

    Args:
      buffer: `[2, blocks, slots, rows, columns]` in shared memory.
      barriers: those of `begin`.
      barrier: which of them signals that the tiles of all other blocks have arrived.
      layout: the transforms with which `buffer` was made.
      blocks: the number of blocks in the cluster.
      half, slot: which tile to send.
    """
    slots, size = buffer.shape[2], _tile_bytes(buffer)

    def at(turn: int) -> int:
        return ((half * blocks + turn) * slots + slot) * size

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(layout), plgpu.RefType()))
    def run(_: Any, buffer: Any, barriers: Any) -> None:
        copies = "\n".join(
            f"""add.u32 from, $0, {at(0)}; add.u32 place, $0, {at(blocks - turn)};
            {_copy(turn, blocks, size, barrier)}"""
            for turn in range(1, blocks)
        )
        _assembly(
            f"""{{ {_WHO}
            @first mbarrier.arrive.expect_tx.shared::cta.b64 _, [$1+{_offset(barrier)}], {(blocks - 1) * size};
            {copies} }}""",
            _address(buffer),
            _address(barriers),
        )

    run(buffer, barriers)


def scatter(going: Any, coming: Any, barriers: Any, barrier: int, *, layout: tuple, blocks: int, at: int) -> None:
    """Copies a tile to each of the other blocks: `going[at, t - 1]` to the block `t` places further on.

    There it becomes `coming[at, blocks - t - 1]`, so a block finds what comes from `t` places on in `[at, t - 1]`.

    Args:
      going, coming: `[n, blocks - 1, rows, columns]` in shared memory.
      barriers, barrier, layout, blocks: as for `broadcast`.
      at: which of the `n` to send.
    """
    size = _tile_bytes(going)
    base = at * (blocks - 1)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(layout), plgpu.RefType(layout), plgpu.RefType()))
    def run(_: Any, going: Any, coming: Any, barriers: Any) -> None:
        copies = "\n".join(
            f"""add.u32 from, $0, {(base + turn - 1) * size}; add.u32 place, $2, {(base + blocks - turn - 1) * size};
            {_copy(turn, blocks, size, barrier)}"""
            for turn in range(1, blocks)
        )
        _assembly(
            f"""{{ {_WHO}
            @first mbarrier.arrive.expect_tx.shared::cta.b64 _, [$1+{_offset(barrier)}], {(blocks - 1) * size};
            {copies} }}""",
            _address(going),
            _address(barriers),
            _address(coming),
        )

    run(going, coming, barriers)


def wait(barriers: Any, barrier: int, phase: Array) -> None:
    """Waits until the barrier has completed its `phase`: 0 the first time it is used, then 1, 0, ..."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT))
    def run(_: Any, barriers: Any, phase: Any) -> None:
        _assembly(
            f"""{{ .reg .pred done;
            AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [$0+{_offset(barrier)}], $1;
            @done bra DONE;
            bra AGAIN;
            DONE: }}""",
            _address(barriers),
            phase.registers.item(),
        )

    run(barriers, phase)


_MEET = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"


_WHO = """.reg .pred first, over; .reg .b32 thread, rank, from, place, to, there, block;
mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0; mov.u32 rank, %cluster_ctarank;"""
"""Whether this is the block's first thread, and which block of the cluster it is."""


def _copy(turn: int, blocks: int, size: int, barrier: int) -> str:
    """A copy `from` this block's memory to `place` in that of the block `turn` places on, whose barrier, `$1`, is
    notified."""
    return f"""add.u32 block, rank, {turn}; setp.ge.u32 over, block, {blocks}; @over sub.u32 block, block, {blocks};
    mapa.shared::cluster.u32 to, place, block; mapa.shared::cluster.u32 there, $1, block;
    @first cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes
      [to], [from], {size}, [there+{_offset(barrier)}];"""


def _tile_bytes(ref: Any) -> int:
    return math.prod(ref.shape[-2:]) * ref.dtype.itemsize


def _offset(barrier: int) -> int:
    return 4 * BARRIER_WORDS * barrier


def _address(ref: Any) -> Any:
    return llvm.ptrtoint(ir.IntegerType.get_signless(32), utils.memref_ptr(ref))


def _assembly(text: str, *registers: Any) -> None:
    void = ir.Type.parse("!llvm.void")
    llvm.inline_asm(void, list(registers), text, ",".join("r" for _ in registers), has_side_effects=True)
