# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping as an optax transformation that reports whether it clipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqjax import require
from seqjax.base import Array, Params
from seqjax.norms import global_norm, scaled


class ClipState(NamedTuple):
    """The state of `clip`.

    Attributes:
      clipped: bool `()`: whether the last update was clipped.
    """

    clipped: Array


def clip(
    *, norm: float | None = None, value: float | None = None, adaptive: float | None = None
) -> optax.GradientTransformation:
    """Clips gradients by global norm, by value and adaptively, in this order, leaving out those that are None.

    Each way only shrinks gradients, so it keeps the bounds of those before it. Norms are computed in at least
    float32, for anything within the gradients' range. The state is a `ClipState`, which `was_clipped` finds
    anywhere in a chain.

    Args:
      norm: the largest global L2 norm; the direction is kept (Pascanu, Mikolov and Bengio 2013).
      value: the largest absolute value of an element; the direction may change.
      adaptive: the largest ratio of a unit's gradient norm to its weight norm, e.g. 0.01
        (Brock et al. 2021, equation 3). A unit is everything with the same last index: a column of
        a matrix, a filter of a convolution; a vector is one unit. Weight norms count as at least 1e-3.

    Returns:
      The transformation; with `adaptive`, its `update` needs the params.

    Raises:
      ValueError: a limit that is not a positive finite number.

    >>> clipping = clip(value=1.0)
    >>> grads, state = clipping.update(jnp.array([0.5, 4.0]), clipping.init(jnp.zeros(2)))
    >>> grads.tolist(), bool(state.clipped)
    ([0.5, 1.0], True)
    """
    limits = {"norm": norm, "value": value, "adaptive": adaptive}
    ways = {"norm": _by_norm, "value": optax.clip, "adaptive": _by_unit}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    require.positive_number("clip", **given)
    inner = optax.chain(optax.identity(), *(ways[name](float(limit)) for name, limit in given.items()))

    def init(params: Params) -> ClipState:
        return ClipState(jnp.zeros((), bool))

    def update(grads: Params, state: ClipState, params: Params | None = None) -> tuple[Params, ClipState]:
        # Each way of clipping is stateless, so the inner state need not be kept.
        with jax.numpy_dtype_promotion("standard"):  # leaves may differ in dtype
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
    """`optimizer` on clipped gradients: `optax.chain(clip(...), optimizer)`.

    Args:
      optimizer: any optax transformation.
      norm, value, adaptive: as for `clip`.

    Returns:
      The chain, an optax transformation.

    Raises:
      ValueError: a limit that is not a positive finite number.

    >>> optimizer = clipped(optax.adam(1e-3), norm=1.0)
    """
    check_optimizer("clipped", optimizer)
    return optax.chain(clip(norm=norm, value=value, adaptive=adaptive), optimizer)


def check_optimizer(owner: str, given: Any) -> None:
    """Rejects anything that is not an optax transformation.

    Raises:
      ValueError: naming what was given.
    """
    if not (hasattr(given, "init") and hasattr(given, "update")):
        raise ValueError(
            f"{owner}: optimizer must be an optax transformation such as optax.adam(1e-3), got {require.shown(given)}."
        )


def was_clipped(opt_state: optax.OptState) -> Array:
    """Whether any `clip` in the optimizer clipped in its last update.

    Args:
      opt_state: an optimizer's state.

    Returns:
      bool `()`; False without a `clip`.

    >>> optimizer, params = clipped(optax.sgd(0.1), norm=1.0), jnp.zeros(2)
    >>> _, state = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)
    >>> bool(was_clipped(state))
    True
    """
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ClipState))
    flags = [state.clipped for state in states if isinstance(state, ClipState)]
    return jnp.any(jnp.stack(flags)) if flags else jnp.zeros((), bool)


def forget_clipping(opt_state: optax.OptState) -> optax.OptState:
    """The state with every `clip` marked as not having clipped, so that an update that skips one, as `optax.MultiSteps`
    does between its own updates, does not report earlier clipping."""

    def forget(node: Any) -> Any:
        return ClipState(jnp.zeros_like(node.clipped)) if isinstance(node, ClipState) else node

    return jax.tree.map(forget, opt_state, is_leaf=lambda node: isinstance(node, ClipState))


def _within(limit: Array | float, tree: Params) -> Params:
    """`tree`, scaled to a norm of `limit` if its norm is larger."""
    largest, parts, norm = scaled(tree)
    return jax.tree.map(
        lambda leaf, x: jnp.where(norm <= limit / largest, leaf, (x * (limit / norm)).astype(leaf.dtype)), tree, parts
    )


def _by_norm(limit: float) -> optax.GradientTransformation:
    return optax.stateless(lambda grads, params: _within(limit, grads))


def _by_unit(ratio: float) -> optax.GradientTransformation:
    """Like `optax.adaptive_grad_clip`, which with three axes would cut a Conv1D filter into pieces."""

    def clip_unit(grad: Array, param: Array) -> Array:
        return _within(ratio * jnp.maximum(global_norm(param), 1e-3), grad)

    def clip_leaf(grad: Array, param: Array) -> Array:
        return clip_unit(grad, param) if grad.ndim < 2 else jax.vmap(clip_unit, -1, -1)(grad, param)

    def update(grads: Params, params: Params | None) -> Params:
        if params is None:
            raise ValueError("adaptive clipping needs the params: optimizer.update(grads, state, params).")
        return jax.tree.map(clip_leaf, grads, params)

    return optax.stateless(update)


def _differ(before: Params, after: Params) -> Array:
    changed = [jnp.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    return jnp.any(jnp.stack(changed)) if changed else jnp.zeros((), bool)
