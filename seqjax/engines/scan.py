# SPDX-License-Identifier: Apache-2.0
"""The sequential engine: one `lax.scan`, with a hand-written reverse pass where the cell offers one."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Params
from seqjax.engines.cotangents import add, zeros_like
from seqjax.engines.pieces import delayed, loop, scan_pieces, split_at
from seqjax.engines.residuals import Stored, recall, store
from seqjax.engines.sequential import SequentialEngine
from seqjax.engines.stepping import Steps, leave, masked_step, reset, select, visible
from seqjax.plan import Plan, is_known, residual_bytes, tree_bytes
from seqjax.sequences import hide

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


@dataclasses.dataclass(frozen=True, repr=False)
class Scan(SequentialEngine):
    """Runs a cell step by step.

    If a cell offers the adjoint capability, the reverse pass is hand-written: the forward pass keeps what the
    cell chooses, storing outputs only once; the reverse loop computes no weight gradients, which come from one
    matmul per block of steps, just as inputs are projected by one per block. The projections of a block fit the
    cache; if blocks do not divide T, the remaining steps have a loop of their own. The numbers are those of
    autodiff. Other cells, and `adjoint=False`, go through autodiff.

    A gradient takes O(T) memory. Forward-mode differentiation (`jvp`, `jacfwd`) needs `adjoint=False`, as JAX
    does not allow it for hand-written reverse rules; gradients of gradients work either way.

    Args:
      unroll: steps in one iteration of the compiled loop.
      adjoint: whether to use the hand-written reverse pass.

    Raises:
      ValueError: `unroll` is not a positive integer.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.GRU(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = Scan().run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((5, 2, 3)))
    >>> ys.shape
    (5, 2, 4)
    """

    unroll: int = 1
    adjoint: bool = True

    def __post_init__(self):
        require.positive("Scan", unroll=self.unroll)
        require.boolean("Scan", adjoint=self.adjoint)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        T, how = xs.shape[0], "hand-written reverse pass" if self._by_hand(cell) else "reverse pass by autodiff"
        return Plan(repr(cell), repr(self), how, T * self.step_bytes(cell, params, carry, xs), T)

    def step_bytes(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> int:
        """Bytes that a gradient keeps of each step: residuals, and cotangents too if no blocks contract them."""
        x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        if self._by_hand(cell):
            z = jax.eval_shape(cell.project, params, x)
            stored, y, residuals = jax.eval_shape(functools.partial(_stored_step, cell), params, carry, z)
            _, d_z, extra = jax.eval_shape(cell.step_transpose, params, residuals, carry, y)
            whole = block_size(cell, params, xs) == 1
            return tree_bytes((stored, d_z, extra) if whole else stored)

        def step(params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
            return cell.step(params, carry, cell.project(params, x))

        def kept(copies: int) -> int:
            carries, inputs = (
                jax.tree.map(lambda a: jax.ShapeDtypeStruct((copies, *a.shape), a.dtype), tree) for tree in (carry, x)
            )
            return residual_bytes(step, params, carries, inputs)

        return kept(2) - kept(1)  # what does not grow with the batch (weights) is kept only once, not per step

    def _by_hand(self, cell: Cell) -> bool:
        return self.adjoint and "adjoint" in cell.capabilities

    def run_steps(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        run = functools.partial(in_whole_blocks, scan_adjoint) if self._by_hand(cell) else scan
        return run(cell, self.unroll, params, initial, carry, steps)

    def run_without_rule(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        run = functools.partial(in_whole_blocks, scan_blocks) if self._by_hand(cell) else scan
        return run(cell, self.unroll, params, initial, carry, steps)


def scan(
    cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The plain loop, differentiated by JAX."""
    step = functools.partial(masked_step, cell, params, initial)
    return loop(step, carry, steps, unroll=unroll)


def in_whole_blocks(
    run: Callable[..., tuple[Carry, Array]],
    cell: Cell,
    unroll: int,
    params: Params,
    initial: Carry | None,
    carry: Carry,
    steps: Steps,
) -> tuple[Carry, Array]:
    """`run` on as many steps as fill whole blocks, and then on the rest, if there is one."""
    T, size = steps.x.shape[0], block_size(cell, params, steps.x)
    if size == 1 or T % size == 0:
        return run(cell, unroll, params, initial, carry, steps)
    whole, rest = split_at(steps, T - T % size)
    carry, ys = run(cell, unroll, params, initial, carry, whole)
    carry, last_ys = run(cell, unroll, params, initial, carry, rest)
    return carry, jnp.concatenate([ys, last_ys])


Kept = tuple[Stored, Array | None, Array | None]
"""What is stored of steps, their outputs, and the outputs one step earlier: everything that `recall` needs."""


def scan_blocks(
    cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The same loop, with inputs projected block by block."""

    def step(carry: Carry, step: Steps, z: Any) -> tuple[Carry, Array]:
        before = reset(initial, carry, step)
        after, y = cell.step(params, before, z)
        return leave(before, after, y, step)

    return blockwise(cell, unroll, params, step, carry, steps)


def _forward(cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps):
    def step(carry: Carry, step: Steps, z: Any) -> tuple[Carry, tuple[Array, Any]]:
        before = reset(initial, carry, step)
        after, y, residuals = cell.step_residuals(params, before, z)
        after, y = leave(before, after, y, step)
        return after, (y, store(residuals, carry, after, y))

    after, (ys, stored) = blockwise(cell, unroll, params, step, carry, steps)
    return (after, ys), (params, initial, carry, steps, stored, None if stored.all_here else ys)


def _stored_step(cell: Cell, params: Params, carry: Carry, z: Any) -> tuple[Stored, Array, Any]:
    """What is stored of a step without mask and reset, along with its output and its residuals."""
    after, y, residuals = cell.step_residuals(params, carry, z)
    return store(residuals, carry, after, y), y, residuals


def _reverse(cell: Cell, unroll: int, kept: tuple, cotangents: tuple[Carry, Array]):
    params, initial, carry, steps, stored, ys = kept
    d_carry, d_ys = cotangents

    def step(state: tuple[Carry, Carry | None], inputs: tuple[Steps, Kept, Array]):
        (d_carry, d_initial), (step, kept, d_y) = state, inputs
        d_after = select(step.mask, d_carry, zeros_like(d_carry))
        d_y = hide(d_y, step.mask)
        d_before, d_z, extra = cell.step_transpose(params, recall(*kept), d_after, d_y)
        if step.mask is not None:
            d_before = add(d_before, select(step.mask, zeros_like(d_carry), d_carry))
        if step.reset is not None:
            zeros = zeros_like(d_before)
            d_initial = add(d_initial, select(step.reset, d_before, zeros))
            d_before = select(step.reset, zeros, d_before)
        return (d_before, d_initial), (d_z, extra)

    def block(state: tuple[Carry, Carry | None], inputs: tuple[Steps, Stored, Array | None, Array], y: Array | None):
        some, stored, ys, d_ys = inputs
        kept = stored, ys, None if ys is None or y is None else delayed(ys, y)
        flags = some._replace(x=None, key=None)
        state, (d_zs, extras) = loop(step, state, (flags, kept, d_ys), reverse=True, unroll=unroll)
        d_params = cell.accumulate(params, recall(*kept), d_zs, extras)
        d_projected, d_xs = cell.project_transpose(params, visible(some), d_zs)
        return state, add(d_params, d_projected), d_xs

    def add_block(state: tuple, inputs: tuple, y: Array | None) -> tuple[tuple, tuple[Array, None]]:
        (state, d_params), (state_before, more, d_xs) = state, block(state[0], inputs, y)
        return (state_before, add(d_params, more)), (d_xs, None)

    state, inputs = (d_carry, zeros_like(initial)), (steps, stored, ys, d_ys)
    first = jax.tree.leaves(carry)[stored.place.carried] if stored.place.previous else None
    T = steps.x.shape[0]
    size = block_size(cell, params, steps.x)
    if size in (1, T):
        (d_carry, d_initial), d_params, d_xs = block(state, inputs, first)
    else:
        before = None if first is None else jnp.concatenate([first[None], ys[size - 1 : -1 : size]])
        start = state, zeros_like(params)
        (state, d_params), (d_xs, _) = scan_pieces(add_block, start, inputs, size, before, reverse=True)
        d_carry, d_initial = state
    return d_params, d_initial, d_carry, Steps(d_xs, None, None, None)


scan_adjoint = jax.custom_vjp(scan_blocks, nondiff_argnums=(0, 1))
scan_adjoint.defvjp(_forward, _reverse)


def blockwise(
    cell: Cell, unroll: int, params: Params, step: Callable[..., tuple[Carry, Any]], carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """`loop` of `step(carry, step, z)`, with the inputs of a block of steps projected by one matmul where that pays."""
    T = steps.x.shape[0]
    size = 1 if in_step(carry, steps.x) else block_size(cell, params, steps.x)

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


def in_step(carry: Carry, xs: Array) -> bool:
    """Whether inputs `[T, ..., D]` are projected step by step.

    A single input is, by a multiplication that fuses with the step. On a CPU so are those of a large batch, unless they
    are larger than the carry: storing and reading their projections costs more than one matmul for a block saves.
    """
    *batch, inputs = xs.shape[1:]
    if inputs == 1 or not is_known(xs):
        return True
    large = jax.default_backend() == "cpu" and math.prod(batch) >= LARGE_BATCH
    return large and tree_bytes(xs) <= xs.shape[0] * tree_bytes(carry)


def block_size(cell: Cell, params: Params, xs: Array | jax.ShapeDtypeStruct) -> int:
    """Steps in a block: all of them if they fit in one, 1 if their number is symbolic."""
    T = xs.shape[0]
    if not is_known(xs) or T == 0:
        return 1
    step_bytes = max(1, tree_bytes(jax.eval_shape(cell.project, params, xs)) // T)
    if jax.default_backend() != "cpu":
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
