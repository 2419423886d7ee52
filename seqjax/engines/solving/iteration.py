# SPDX-License-Identifier: Apache-2.0
"""Newton's iteration on the states of all steps, with safeguards against divergence."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.dtypes import widen
from seqjax.engines.solving.convergence import first_inexact, judge
from seqjax.engines.solving.jacobians import Packing, solve_recurrence
from seqjax.engines.steps.pieces import delayed

SHORTEST = 0.25
"""The smallest fraction of a Newton direction that is tried."""


class Iteration(NamedTuple):
    states: Array  # [T, *batch, ...], packed
    iterations: Array
    residual: Array  # [*batch]
    converged: Array  # [*batch]


class State(NamedTuple):
    """Between two iterations."""

    iterations: Array
    states: Array  # [T, *batch, ...], packed
    defects: Array  # of the same shape: evaluate(before) - states
    merit: Array  # [*batch]: their sum of squares
    active: Array  # [*batch] bool: what is still iterated on


def iterate(
    engine: Any,
    packing: Packing,
    evaluate: Callable[[Array], Array],
    jacobians: Callable[[Array], Array],
    advance: Callable[[Array, Array], Array],
    start: Array,
    guess: Array,
    cuts: Array | None,
    *,
    linear: bool = False,
) -> Iteration:
    """Solves states[t] = evaluate(before)[t], where before = (start, states[:-1]), in packed arrays.

    With the defects r = evaluate(before) - states and the direction δ_t = J_t δ_{t-1} + r_t, states move
    by α δ, where α is, for each sequence, the first of 1, 1/2, 1/4 that lowers the sum of r². If none
    does, δ has grown beyond where its linearization holds: it is then followed only up to the first step
    at which it exceeds the largest state, and from there on a fixed-point step, r, is taken. So bounded
    states stay bounded, and what has converged at the front stays.

    Args:
      engine: has `tol`, `max_iterations` and `on_failure`.
      packing: of the states.
      evaluate: computes all steps at once.
      jacobians: those of `evaluate` at `before`, or their diagonals.
      advance: `advance(t, before[t])` is `evaluate(before)[t]` for one step alone, for the fallback.
      start: the state before the first step, `[*batch, ...]`.
      guess: `[T, *batch, ...]`.
      cuts: see `convergence.judge`.
      linear: whether `evaluate` is affine, so that every direction is followed in full.
    """
    T, batch_ndim = guess.shape[0], guess.ndim - 1 - packing.trailing
    features = tuple(range(1 + batch_ndim, guess.ndim))

    def before(states: Array) -> Array:
        return delayed(states, start)

    def measure(states: Array) -> tuple[Array, Array]:
        defects = evaluate(before(states)) - states
        return defects, jnp.square(widen(defects)).sum((0, *features))

    def judged(states: Array, defects: Array) -> tuple[Array, Array]:
        return judge(packing.unpack(defects), packing.unpack(states), cuts, engine.tol, batch_ndim)

    def over_features(flag: Array) -> Array:
        return flag.reshape(flag.shape + (1,) * packing.trailing)

    def restrain(states: Array, defects: Array, direction: Array) -> Array:
        largest = jnp.where(jnp.isfinite(states), jnp.abs(states), 0).max((0, *features))
        within = jnp.abs(direction).max(features) <= largest
        within = jax.lax.cummin(within.astype(jnp.int32)) == 1
        return jnp.where(over_features(within), direction, defects)

    def unfinished(state: State) -> Array:
        return (state.iterations < engine.max_iterations) & state.active.any()

    def line_search(state: State, direction: Array) -> tuple:
        _, states, defects, merit, active = state
        restrained = restrain(states, defects, direction)

        def shorten(search: tuple) -> tuple:
            step, *_, accepted = search
            step = jnp.where(accepted, step, step / 2)
            last = step < SHORTEST
            moved = states + jnp.where(over_features(last), restrained, over_features(step) * direction)
            new_defects, new_merit = measure(moved)
            return step, moved, new_defects, new_merit, accepted | last | (new_merit < merit) | (merit == 0)

        usable = jnp.isfinite(direction).all((0, *features))
        step = jnp.where(usable, 2.0, SHORTEST).astype(states.dtype)
        search = step, states, defects, merit, ~active
        _, *moved, _ = jax.lax.while_loop(lambda search: ~search[-1].all(), shorten, search)
        return tuple(moved)

    def move(state: State) -> State:
        direction = solve_recurrence(jacobians(before(state.states)), state.defects)
        if linear:
            moved = state.states + direction
            new_defects, new_merit = measure(moved)
        else:
            moved, new_defects, new_merit = line_search(state, direction)
        states = jnp.where(over_features(state.active), moved, state.states)
        defects = jnp.where(over_features(state.active), new_defects, state.defects)
        merit = jnp.where(state.active, new_merit, state.merit)
        good, _ = judged(states, defects)
        hopeful = jnp.isfinite(defects).all((0, *features))
        return State(state.iterations + 1, states, defects, merit, state.active & hopeful & ~good.all(0))

    defects, merit = measure(guess)
    begin = State(jnp.int32(0), guess, defects, merit, jnp.ones_like(merit, bool))
    found = jax.lax.while_loop(unfinished, move, begin)
    good, residual = judged(found.states, found.defects)
    converged = good.all(0)

    def finish(states: Array, defects: Array) -> Array:
        def put(t: Array, states: Array) -> Array:
            return states.at[t].set(advance(t, jnp.where(t == 0, start, states[t - 1])))

        begin = first_inexact(packing.unpack(defects), packing.unpack(states), cuts, batch_ndim)
        return jax.lax.fori_loop(begin, T, put, states)

    states = found.states
    if engine.on_failure == "sequential":
        states = jax.lax.cond(converged.all(), lambda states, _: states, finish, states, found.defects)
    return Iteration(states, found.iterations, residual, converged)
