# SPDX-License-Identifier: Apache-2.0
"""Relaxation of the carries at the boundaries between chunks that run at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry
from seqjax.engines.solving.convergence import first_inexact, judge
from seqjax.engines.solving.jacobians import solve_recurrence
from seqjax.engines.steps.stepping import Steps
from seqjax.sequences import expand
from seqjax.spread import zeros


class Relaxation(NamedTuple):
    starts: Carry  # [K, ...]
    ends: Carry  # [K, ...]
    outputs: Any
    sweeps: Array
    residual: Array  # [*batch]
    converged: Array  # [*batch]


class State(NamedTuple):
    """Between two sweeps."""

    sweeps: Array
    starts: Carry  # [K, ...]
    ends: Carry  # [K, ...]
    outputs: Any
    good: Array  # [K, *batch] bool: which chunks end where the next one starts
    residual: Array  # [*batch]


def relax(
    engine: Any,
    sweep: Callable[[Carry], tuple[Carry, Any]],
    advance: Callable[[Array, Carry], Carry],
    guess: Carry,
    products: Carry | None,
    idle: Array | None,
    cuts: Array | None,
    batch_ndim: int,
) -> Relaxation:
    """Solves starts[k + 1] = ends[k] for (ends, outputs) = sweep(starts), with starts[0] = guess[0].

    `advance(k, starts[k])` is `ends[k]` for one chunk alone, for the fallback. Chunks that are `idle
    [K, *batch]` are known to end where they start, so that no sweep is spent on padding; chunks with `cuts
    [K, *batch]`, because of a reset, end the same wherever they start.
    """
    count = jax.tree.leaves(guess)[0].shape[0]
    limit = engine.max_sweeps or max(8, count // 4)

    def propose(starts: Carry, ends: Carry) -> Carry:
        if products is not None:
            return jax.tree.map(coupled, starts, ends, products)
        return handed_on(starts, ends, idle)

    def coupled(start: Array, end: Array, product: Array) -> Array:
        moved = solve_recurrence(product[:-1], end[:-1] - start[1:])  # of start[1:]
        moved = jnp.concatenate([jnp.zeros_like(start[:1]), moved[:-1]])
        return jnp.concatenate([start[:1], end[:-1] + product[:-1] * moved])

    def unfinished(state: State) -> Array:
        ends, good = state.ends, state.good
        # if a sequence's first mismatch is not finite, that is its true, useless answer; more sweeps do not help
        bad = jnp.argmin(good, axis=0)[None]
        numbers = functools.reduce(
            jnp.logical_and, [jnp.isfinite(e).all(tuple(range(1 + batch_ndim, e.ndim))) for e in jax.tree.leaves(ends)]
        )
        hopeful = ~good.all(0) & jnp.take_along_axis(numbers, bad, 0)[0]
        return (state.sweeps == 0) | ((state.sweeps < limit) & hopeful.any())

    def body(state: State) -> State:
        starts = propose(state.starts, state.ends)
        ends, outputs = sweep(starts)
        judgement = judge(misfits(starts, ends), ends, cuts, engine.tol, batch_ndim)
        return State(state.sweeps + 1, starts, ends, outputs, *judgement)

    unknown: Any = [None] * 3
    begin = jnp.int32(0), guess, jax.tree.map(lambda s: jnp.concatenate([s[1:], s[-1:]]), guess)
    shapes = jax.eval_shape(body, State(*begin, *unknown))
    found = jax.lax.while_loop(unfinished, body, State(*begin, *zeros(tuple(shapes[3:]), beside=guess)))

    def finish(starts: Carry, ends: Carry, outputs: Any) -> tuple:
        def put(k: Array, starts: Carry) -> Carry:
            end = advance(k, jax.tree.map(lambda s: s[k], starts))
            return jax.tree.map(lambda s, e: s.at[k + 1].set(e), starts, end)

        begin = first_inexact(misfits(starts, ends), ends, cuts, batch_ndim)
        starts = jax.lax.fori_loop(begin, count - 1, put, starts)
        return starts, *sweep(starts)

    converged = found.good.all(0)
    answer = found.starts, found.ends, found.outputs
    if engine.on_failure == "sequential":
        answer = jax.lax.cond(converged.all(), lambda *answer: answer, finish, *answer)
    return Relaxation(*answer, found.sweeps, found.residual, converged)


def misfits(starts: Carry, ends: Carry) -> Carry:
    """How far each chunk's end `[K, ...]` is from the start of the next one; nothing, for the last chunk."""
    return jax.tree.map(lambda s, e: e - jnp.concatenate([s[1:], e[-1:]]), starts, ends)


def handed_on(starts: Carry, ends: Carry, idle: Array | None) -> Carry:
    """Starts `[K, ...]` for the next sweep: each chunk that is not idle hands on its end."""
    proposed = jax.tree.map(lambda s, e: jnp.concatenate([s[:1], e[:-1]]), starts, ends)
    return proposed if idle is None else jax.tree.map(functools.partial(skip, idle), proposed)


def idle_chunks(steps: Steps) -> Array | None:
    """`[K, ...]` bool: the chunks that are all padding."""
    if steps.mask is None:
        return None
    return ~(steps.mask if steps.reset is None else steps.mask | steps.reset).any(0)


def cut_chunks(steps: Steps) -> Array | None:
    """`[K, ...]` bool: the chunks in which a sequence begins anew."""
    return None if steps.reset is None else steps.reset.any(0)


def skip(idle: Array, starts: Array) -> Array:
    """Starts `[K, ...]`, with the start of an idle chunk handed on to the next one."""
    here = expand(jnp.arange(1, idle.shape[0]), idle)
    source = jnp.concatenate([jnp.zeros(idle[:1].shape, here.dtype), jnp.where(idle[:-1], 0, here)])
    return jnp.take_along_axis(starts, expand(jax.lax.cummax(source), starts), axis=0)
