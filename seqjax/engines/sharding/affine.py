# SPDX-License-Identifier: Apache-2.0
"""An affine cell with time split over devices: its linear recurrence extends from one to the next.

A piece of a linear recurrence is an affine map of the state that enters it, h -> A ⊗ h + b, where A is
the product of its decays and b its last state when started from zero. So each device solves its piece
from zero, all gather (A, b), and each composes the maps before its own and solves again from the state
that actually enters: two local solves and one exchange, exact. As in `linear`, JAX is told that this
solves (I - a S) h = b, where S now fetches the state before the first from the previous device; forward
mode, reverse mode and higher orders follow.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Params
from seqjax.engines import associative
from seqjax.engines.linear import keep, solve_scan, solved, solver
from seqjax.engines.sharding.devices import Layout
from seqjax.engines.steps.stepping import Steps


def run_affine_on_devices(
    layout: Layout, method: str, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The carry after the last step and the outputs of all steps, `[T, ...]`, of which each device holds its own."""
    recurrence = functools.partial(sharded_recurrence, layout, method=method)

    def piece(*arguments: Any) -> tuple[Carry, Array]:
        last, ys = associative.run_affine(cell, recurrence, *arguments)
        return jax.tree.map(lambda leaf: leaf[None], last), ys

    run = layout.map(
        piece,
        in_specs=(layout.everywhere, layout.batch, layout.batch, layout.steps),
        out_specs=(layout.split, layout.split),
    )
    ends, ys = run(params, initial, carry, steps)
    return jax.tree.map(lambda leaf: leaf[-1], ends), ys


def sharded_recurrence(
    layout: Layout, decay: Array, drive: Array, initial: Array, *, cut: Array | None, method: str
) -> Array:
    """This device's states of h_t = a_t ⊗ h_{t-1} + b_t; to be called inside `jax.shard_map`.

    Args:
      layout: the mesh, over whose axis `layout.axis` time is split.
      decay: a of this device's steps, broadcastable to `drive`.
      drive: b, `[L, ..., N]`, real or complex.
      initial: the state before the first step of the first device, `[..., N]`, on all devices.
      cut: `[L, ...]` bool; where it is True h_t = b_t.
      method: as for `linear_recurrence`, for the local solves.

    Returns:
      `[L, ..., N]`.
    """
    decay = decay.reshape((1,) * (drive.ndim - decay.ndim) + decay.shape)
    entering = decay[0] * keep(_first(cut), initial)
    is_first = jax.lax.axis_index(layout.axis) == 0
    drive = drive.at[0].add(jnp.where(is_first, entering, jnp.zeros_like(entering)))
    solve = functools.partial(_solve, layout, method, decay, cut)
    to_next = [(k, k + 1) for k in range(layout.devices - 1)]

    def arriving(last: Array) -> Array:
        return jax.lax.ppermute(last, layout.axis, to_next)  # zeros on the first device

    return solved(solve, decay, cut, drive, arriving)


def _solve(layout: Layout, method: str, decay: Array, cut: Array | None, drive: Array, *, reverse: bool) -> Array:
    """The states of `drive`, or with `reverse` the adjoint states."""
    local = functools.partial(solver(method), decay, cut, reverse=reverse)
    states = local(drive)
    leaving = keep(_first(cut), decay[0] * states[0]) if reverse else states[-1]
    severed = None if cut is None else cut.any(0)
    product = keep(severed, jnp.broadcast_to(decay, (drive.shape[0], *decay.shape[1:])).prod(0))
    pieces = jax.lax.all_gather((product, severed, leaving), layout.axis)
    before = jax.lax.axis_index(layout.axis)
    if reverse:
        before, pieces = layout.devices - 1 - before, jax.tree.map(lambda a: jnp.flip(a, 0), pieces)
    passed = solve_scan(*pieces)
    entering = jnp.where(before == 0, jnp.zeros_like(leaving), passed[before - 1])
    if reverse:
        return local(drive.at[-1].add(entering))
    return local(drive.at[0].add(decay[0] * keep(_first(cut), entering)))


def _first(cut: Array | None) -> Array | None:
    return None if cut is None else cut[0]
