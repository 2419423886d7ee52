# SPDX-License-Identifier: Apache-2.0
"""Any cell with time split over devices: all run their pieces until each starts where the previous one ended."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Engine, Params
from seqjax.engines.sharding.devices import Layout, solution_specs
from seqjax.engines.solving.convergence import Solution, judge, refuse_derivatives
from seqjax.engines.solving.jacobians import copies
from seqjax.engines.solving.relaxation import cut_chunks, handed_on, idle_chunks, misfits
from seqjax.engines.steps.cotangents import without_float0
from seqjax.engines.steps.sequential import run_prepared
from seqjax.engines.steps.stepping import Steps


class Settled(NamedTuple):
    """A relaxation as one device sees it."""

    sweeps: Array
    starts: Carry
    """`[K, ...]`: where each piece starts in the next sweep, known to all devices."""
    start: Carry
    """Where this device's piece started in the last sweep."""
    end: Carry
    """Where the last piece ended."""
    outputs: Any
    """Of this device's piece."""
    good: Array
    """`[*batch]` bool: whether all pieces of a sequence start where the previous one ended."""
    residual: Array
    """`[*batch]`"""
    done: Array
    """bool, the same on all devices."""


def settle(
    layout: Layout,
    sweep: Callable[[Carry], tuple[Carry, Any]],
    starts: Carry,
    steps: Steps,
    tol: float | None,
    *,
    reverse: bool = False,
) -> Settled:
    """Solves starts[k + 1] = end of piece k, where (end, outputs) = sweep(start) runs this device's piece.

    Every device has all `starts [K, ...]`, of which the first is exact, so all decide alike. After n sweeps
    the first n pieces are exact, and there are never more than K sweeps. No sweep is spent on pieces that
    are all padding, as `steps`, those of this device, tell. With `reverse`, pieces follow each other from
    the last device to the first.
    """
    batch_ndim = steps.x.ndim - 2
    place = jax.lax.axis_index(layout.axis)
    place = layout.devices - 1 - place if reverse else place
    idle, cuts = in_order(jax.lax.all_gather((idle_chunks(steps), cut_chunks(steps)), layout.axis), reverse)

    def body(state: Settled) -> Settled:
        start = jax.tree.map(lambda s: s[place], state.starts)
        end, outputs = sweep(start)
        ends = in_order(jax.lax.all_gather(end, layout.axis), reverse)
        good, residual = judge(misfits(state.starts, ends), ends, cuts, tol, batch_ndim)
        starts = handed_on(state.starts, ends, idle)
        last = jax.tree.map(lambda e: e[-1], ends)
        # over all axes: devices with different batches must still exchange equally often
        done = jax.lax.pmin(good.all().astype(jnp.int32), layout.mesh.axis_names) == 1
        return Settled(state.sweeps + 1, starts, start, last, outputs, good.all(0), residual, done)

    unknown: Any = [None] * 6
    shapes = jax.eval_shape(body, Settled(jnp.int32(0), starts, *unknown))
    begin = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)._replace(starts=starts)
    return jax.lax.while_loop(lambda state: ~state.done & (state.sweeps < layout.devices), body, begin)


def in_order(pieces: Any, reverse: bool) -> Any:
    """What the devices hold, `[K, ...]`, in the order in which pieces follow each other."""
    return jax.tree.map(lambda a: jnp.flip(a, 0), pieces) if reverse else pieces


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def run_relaxed(
    engine: Any, inner: Engine, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> Solution:
    """Runs steps `[T, ...]`, of which each device holds its own, for a `Sharded` engine with `inner` on each device."""
    return _forward(engine, inner, cell, params, initial, carry, steps)[0]


def _forward(engine, inner, cell, params, initial, carry, steps):
    params, initial, carry, steps = refuse_derivatives(repr(engine), (params, initial, carry, steps))
    layout = engine.layout

    def piece(params: Params, initial: Carry | None, carry: Carry, steps: Steps) -> tuple[Solution, Carry]:
        sweep = functools.partial(run_prepared, inner, cell, params, initial, steps=steps)
        found = settle(layout, sweep, copies(carry, layout.devices), steps, engine.tol)
        solution = Solution(found.end, found.outputs, found.sweeps, found.residual, found.good, jnp.bool(False))
        return solution, copies(found.start, 1)

    everywhere, batch, split = layout.everywhere, layout.batch, layout.split
    solution, starts = layout.map(
        piece,
        in_specs=(everywhere, batch, batch, layout.steps),
        out_specs=(solution_specs(batch, split), split),
    )(params, initial, carry, steps)
    return solution, (params, initial, starts, steps)


def _reverse(engine, inner, cell, kept, cotangents):
    """The same relaxation, on the cotangents at the boundaries, last piece first."""
    layout = engine.layout

    def piece(kept: tuple, d_carry: Carry, d_ys: Array) -> tuple:
        params, initial, starts, steps = kept
        run = functools.partial(run_prepared, inner, cell)
        _, pull = jax.vjp(run, params, initial, jax.tree.map(lambda s: s[0], starts), steps)

        def sweep(d_end: Carry) -> tuple[Carry, tuple]:
            d_params, d_initial, d_start, d_steps = pull((d_end, d_ys))
            return d_start, without_float0((d_params, d_initial, d_steps))

        guess = jax.tree.map(lambda d: jnp.zeros((layout.devices, *d.shape), d.dtype).at[0].set(d), d_carry)
        found = settle(layout, sweep, guess, steps, engine.tol, reverse=True)
        d_params, d_initial, d_steps = found.outputs
        d_initial = jax.tree.map(lambda d: jax.lax.psum(d, layout.axis), d_initial)
        return layout.sum(d_params), d_initial, found.end, d_steps

    everywhere, batch, split = layout.everywhere, layout.batch, layout.split
    return layout.map(
        piece,
        in_specs=((everywhere, batch, split, layout.steps), batch, split),
        out_specs=(everywhere, batch, batch, split),
    )(kept, *refuse_derivatives(repr(engine), (cotangents.carry, cotangents.ys)))


run_relaxed.defvjp(_forward, _reverse)
