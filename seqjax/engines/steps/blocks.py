# SPDX-License-Identifier: Apache-2.0
"""Blocks of steps whose inputs are projected by one matmul: how large they are, and a loop over them."""

import math
from collections.abc import Callable
from typing import Any

import jax

from seqjax.base import Array, Carry, Cell, Params
from seqjax.engines.steps.loops import loop, scan_pieces
from seqjax.engines.steps.stepping import Steps, visible
from seqjax.machine import platform
from seqjax.trees import is_known, tree_bytes

BLOCK_BYTES, WHOLE_BYTES = 2**20, 2**21
"""The most bytes that the projected inputs of a block may take (or the size of the params, if that is more), and those
up to which a sequence is a single block, as one loop compiles in two thirds of the time of two. Measured on CPUs with 1
to 2 MiB of cache per core."""
LONGEST_BLOCK, SHORTEST_BLOCK = 64, 8
LARGE_BATCH = 48
"""The number of sequences from which blocks of projected inputs do not pay: without them forward passes were 1.00 to
1.25 times as fast, and training steps 0.98 to 1.12, at H from 16 to 256."""
LARGE_BYTES = 2**28
"""`BLOCK_BYTES` off the CPU, where there is no such cache and every operation of a loop is a launch."""


def blockwise(
    cell: Cell, unroll: int, params: Params, step: Callable[..., tuple[Carry, Any]], carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """`loop` of `step(carry, step, z)`, with the inputs of a block of steps projected by one matmul where that pays."""
    T = steps.x.shape[0]
    size = 1 if projects_each_step(carry, steps.x) else block_size(cell, params, steps.x)

    def alone(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        return step(carry, now, cell.project(params, visible(now)))

    def block(carry: Carry, some: Steps, _: None) -> tuple[Carry, tuple[Any, None]]:
        inputs = some._replace(x=None), cell.project(params, visible(some))
        carry, outputs = loop(lambda carry, now: step(carry, *now), carry, inputs, unroll=unroll)
        return carry, (outputs, None)

    if size == 1:
        return loop(alone, carry, steps, unroll=unroll)
    carry, (outputs, _) = block(carry, steps, None) if size == T else scan_pieces(block, carry, steps, size)
    return carry, outputs


def projects_each_step(carry: Carry, xs: Array) -> bool:
    """Whether inputs `[T, ..., D]` are projected step by step.

    A single input is, by a multiplication that fuses with the step. On a CPU so are those of a large batch, unless they
    are larger than the carry: storing and reading their projections costs more than one matmul for a block saves.
    """
    *batch, inputs = xs.shape[1:]
    if inputs == 1 or not is_known(xs):
        return True
    large = platform() == "cpu" and math.prod(batch) >= LARGE_BATCH
    return large and tree_bytes(xs) <= xs.shape[0] * tree_bytes(carry)


def block_size(cell: Cell, params: Params, xs: Array | jax.ShapeDtypeStruct) -> int:
    """Steps in a block: all of them if they fit in one, 1 if their number is symbolic."""
    T = xs.shape[0]
    if not is_known(xs) or T == 0:
        return 1
    step_bytes = max(1, tree_bytes(jax.eval_shape(cell.project, params, xs)) // T)
    if platform() != "cpu":
        return block_steps(T, LARGE_BYTES // step_bytes)
    own = tree_bytes(params)  # large weights are worth reading less often
    if T * step_bytes <= max(WHOLE_BYTES, own):
        return T
    return block_steps(T, min(LONGEST_BLOCK, max(BLOCK_BYTES, own) // step_bytes))


def block_steps(T: int, most: int) -> int:
    """Steps in a block, at most `most`: the largest divisor of `T`, or `most` itself if that divisor is too small.

    >>> block_steps(1000, 64), block_steps(1000, 9), block_steps(997, 16), block_steps(100, 4), block_steps(7, 0)
    (50, 8, 16, 4, 1)
    """
    most = max(1, min(T, most))
    divisor = next(size for size in range(most, 0, -1) if T % size == 0)
    return divisor if divisor >= min(SHORTEST_BLOCK, most / 4) else most
