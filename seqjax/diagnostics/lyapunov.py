# SPDX-License-Identifier: Apache-2.0
"""Lyapunov exponents: the rates at which neighbouring trajectories of a recurrent layer diverge or converge."""

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array
from seqjax.diagnostics.jacobians import push
from seqjax.diagnostics.trajectory import Trajectory, check_trajectory


def lyapunov_exponents(
    trajectory: Trajectory, count: int = 1, *, discard: int = 0, vector_key: Array | None = None
) -> Array:
    """The largest Lyapunov exponents along a trajectory, in nats per step.

    Q_t R_t = J_t Q_{t-1} with Q orthonormal `[N, count]`; exponent k is the mean of log |R_t[k, k]|.
    If λ is negative, the layer forgets, by a factor e in -1/λ steps, and gradients vanish at that rate. If it
    is positive, the layer is chaotic for these inputs, and gradients explode. The exponents are those of the
    layer as driven by its inputs, over all the steps given; an average over few steps still depends on where
    it starts.

    Args:
      trajectory: that of a recurrent layer; see `trajectories`.
      count: how many exponents, at most N.
      discard: number of first steps that only turn the tangent vectors into the directions that grow most.
      vector_key: draws the initial vectors; by default a fixed key.

    Returns:
      `[..., count]` for every sequence, largest first. Masked steps do not count; at a reset the
      vectors continue from the initial carry. -inf where a direction is lost in one step (a relu that
      is off), NaN where a sequence has no step after `discard`.

    Raises:
      ValueError: a count that is not a positive integer or is larger than the state, or no step left after `discard`.

    >>> import seqjax
    >>> from seqjax.cells import LambdaCell
    >>> from seqjax.diagnostics import trajectories
    >>> logistic = LambdaCell(
    ...     lambda key, in_dim: (),
    ...     lambda params, h, x: (4 * h * (1 - h), h),
    ...     lambda params, batch_shape: jnp.full((*batch_shape, 1), 0.3),
    ... )
    >>> (seen,) = trajectories(seqjax.RNN(logistic), (), jnp.zeros((2000, 1)))
    >>> bool(abs(lyapunov_exponents(seen)[0] - jnp.log(2)) < 0.01)
    True

    Source: Benettin et al. 1980; for recurrent networks Engelken, Wolf and Abbott 2023.
    """
    check_trajectory("lyapunov_exponents", trajectory)
    layout, T = trajectory.layout, len(trajectory.xs)
    require.positive("lyapunov_exponents", count=count)
    if count > layout.size:
        raise ValueError(f"count must be from 1 to the {layout.size} numbers of the state, got {count}.")
    if not 0 <= discard < T:
        raise ValueError(f"discard must leave a step of the {T} there are, got {discard}.")
    states = layout.pack(trajectory.carries)
    batch_shape = states.shape[1:-1]
    key = jax.random.key(0) if vector_key is None else vector_key
    start, _ = jnp.linalg.qr(jax.random.normal(key, (layout.size, count), states.dtype))
    start = jnp.broadcast_to(start, (*batch_shape, *start.shape))
    valid = jnp.ones((T, *batch_shape), bool) if trajectory.mask is None else trajectory.mask

    def step(state: tuple[Array, Array], at: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        (vectors, total), (before, x, taken, counted) = state, at
        pushed = push(trajectory, before, x, jnp.moveaxis(vectors, -1, 0))
        turned, triangle = jnp.linalg.qr(jnp.moveaxis(pushed, 0, -1))
        growth = jnp.log(jnp.abs(jnp.diagonal(triangle, axis1=-2, axis2=-1)))
        vectors = jnp.where(taken[..., None, None], turned, vectors)
        return (vectors, total + jnp.where((taken & counted)[..., None], growth, jnp.zeros_like(growth))), None

    begin = start, jnp.zeros((*batch_shape, count), states.dtype)
    (_, total), _ = jax.lax.scan(step, begin, (states, trajectory.xs, valid, jnp.arange(T) >= discard))
    return total / valid[discard:].sum(0)[..., None].astype(total.dtype)
