# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping as an optax transformation that says whether it clipped."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqjax import require
from seqjax.base import Array, Params


class ClipState(NamedTuple):
    """Whether the last update was clipped: bool, shape `()`."""

    clipped: Array


def clip(
    *, norm: float | None = None, value: float | None = None, adaptive: float | None = None
) -> optax.GradientTransformation:
    """Clips gradients by global norm, by value and adaptively, in this order; what is None is left out.

    Each way only shrinks, so a later one keeps the bounds of those before it. The state is a
    `ClipState`, which `was_clipped` finds wherever in a chain it is.

    Args:
      norm: the largest global L2 norm; the direction is kept (Pascanu, Mikolov and Bengio 2013).
      value: the largest absolute value of an element; the direction may change.
      adaptive: the largest ratio of a unit's gradient norm to its weight norm, 0.01 say
        (Brock et al. 2021, equation 3). A unit is what shares the last index: a column of a
        matrix, a filter of a convolution; a vector is one unit. Weight norms count as at least 1e-3.

    Raises:
      ValueError: a limit that is not a positive finite number.

    >>> clipping = clip(value=1.0)
    >>> grads, state = clipping.update(jnp.array([0.5, 4.0]), clipping.init(jnp.zeros(2)))
    >>> grads.tolist(), bool(state.clipped)
    ([0.5, 1.0], True)
    """
    ways = []
    if norm is not None:
        ways.append(optax.clip_by_global_norm(_positive("norm", norm)))
    if value is not None:
        ways.append(optax.clip(_positive("value", value)))
    if adaptive is not None:
        ways.append(_by_unit(_positive("adaptive", adaptive)))
    inner = optax.chain(*ways) if ways else optax.identity()

    def init(params: Params) -> ClipState:
        return ClipState(jnp.zeros((), bool))

    def update(grads: Params, state: ClipState, params: Params | None = None) -> tuple[Params, ClipState]:
        # Every way is stateless, so the inner state never needs to be kept.
        clipped, _ = inner.update(grads, inner.init(params), params)
        return clipped, ClipState(_differ(grads, clipped))

    return optax.GradientTransformation(init, update)


def clipped(
    optimizer: optax.GradientTransformation,
    *,
    norm: float | None = None,
    value: float | None = None,
    adaptive: float | None = None,
) -> optax.GradientTransformation:
    """`optimizer` fed with clipped gradients: `optax.chain(clip(...), optimizer)`.

    Args and Raises: see `clip`.

    >>> optimizer = clipped(optax.adam(1e-3), norm=1.0)
    """
    return optax.chain(clip(norm=norm, value=value, adaptive=adaptive), optimizer)


def was_clipped(opt_state: optax.OptState) -> Array:
    """Whether any `clip` in the optimizer clipped in its last update: bool, shape `()`."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ClipState))
    flags = [state.clipped for state in states if isinstance(state, ClipState)]
    return jnp.any(jnp.stack(flags)) if flags else jnp.zeros((), bool)


def _by_unit(ratio: float) -> optax.GradientTransformation:
    """`optax.adaptive_grad_clip` whose unit is the last axis in every rank."""

    def clip_leaf(grad: Array, param: Array) -> Array:
        # optax takes a rank of 3 for attention heads and would cut a Conv1D filter in pieces.
        axis = tuple(range(grad.ndim - 1)) if grad.ndim > 2 else None
        leaf = optax.adaptive_grad_clip(ratio, axis=axis)
        return leaf.update(grad, leaf.init(param), param)[0]

    def update(grads: Params, state: optax.EmptyState, params: Params | None = None):
        if params is None:
            raise ValueError("adaptive clipping needs the params: optimizer.update(grads, state, params).")
        return jax.tree.map(clip_leaf, grads, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _differ(before: Params, after: Params) -> Array:
    changed = [jnp.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    return jnp.any(jnp.stack(changed)) if changed else jnp.zeros((), bool)


def _positive(name: str, limit: float) -> float:
    if not require.is_number(limit) or not 0 < limit < math.inf:
        raise ValueError(f"clip({name}=...) must be a positive finite number, or None to leave it out, got {limit!r}.")
    return float(limit)
