# SPDX-License-Identifier: Apache-2.0
"""The loop with a hand-written reverse pass, for cells that offer the adjoint capability.

Forward, a step's residuals are stored, but for those that are its output or the previous one (see `residuals`). In
reverse, a loop finds the cotangents of a block of steps, and one matmul contracts them with the residuals.
"""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Params
from seqjax.engines.steps.blocks import block_size, blockwise
from seqjax.engines.steps.cotangents import add, zeros_like
from seqjax.engines.steps.loops import loop, scan_pieces
from seqjax.engines.steps.pieces import delayed
from seqjax.engines.steps.residuals import Stored, recall, store
from seqjax.engines.steps.stepping import Steps, leave, reset, select, visible
from seqjax.sequences import hide

Kept = tuple[Stored, Array | None, Array | None]
"""What is stored of steps, their outputs, and the outputs one step earlier: everything that `recall` needs."""


def scan_blocks(
    cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The plain loop, with inputs projected block by block; `scan_adjoint` is this function with a reverse pass of its
    own."""

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


def stored_step(cell: Cell, params: Params, carry: Carry, z: Any) -> tuple[Stored, Array, Any]:
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
