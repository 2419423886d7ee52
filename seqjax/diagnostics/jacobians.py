# SPDX-License-Identifier: Apache-2.0
"""The Jacobians of single steps along a trajectory, and their spectra."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.diagnostics.trajectory import Trajectory, check_trajectory
from seqjax.engines.solving.jacobians import columns


def push(trajectory: Trajectory, state: Array, x: Array, tangents: Array) -> Array:
    """J_t times tangents `[K, ..., N]` at one step, given its state `[..., N]` and input `[..., D]`."""
    _, pushed = jax.linearize(_step(trajectory, x), state)
    return jax.vmap(pushed)(tangents)


def _step(trajectory: Trajectory, x: Array) -> Callable[[Array], Array]:
    """From one state `[..., N]` to the next, with input `x [..., D]`."""
    cell, params, layout = trajectory.cell, trajectory.params, trajectory.layout
    return lambda state: layout.pack(cell.step(params, layout.unpack(state), cell.project(params, x))[0])


def step_jacobians(trajectory: Trajectory) -> Array:
    """J_t = ∂carry_t/∂carry_{t-1} at every step of a trajectory.

    Args:
      trajectory: that of a recurrent layer (see `trajectories`); `trajectory.every(k)` for every k-th step.

    Returns:
      `[T, ..., N, N]` over the real vectors of `StateLayout`: for an LSTM of H units N = 2 H, h before
      c. Masked steps have the Jacobian that a step from zeros would have; a step with a reset has that
      of a step from the initial carry.

    >>> import seqjax
    >>> from seqjax.diagnostics import trajectories
    >>> model, xs = seqjax.RNN(seqjax.LSTM(4)), jnp.ones((5, 2, 1))
    >>> (seen,) = trajectories(model, model.init(jax.random.key(0), xs), xs)
    >>> step_jacobians(seen).shape
    (5, 2, 8, 8)
    """
    check_trajectory("step_jacobians", trajectory)
    return jax.lax.map(lambda at: _jacobian(trajectory, *at), (_states(trajectory), trajectory.xs))


def _states(trajectory: Trajectory) -> Array:
    return trajectory.layout.pack(trajectory.carries)


def _jacobian(trajectory: Trajectory, state: Array, x: Array) -> Array:
    return columns(_step(trajectory, x), state)


class Spectrum(NamedTuple):
    """The spectrum of the Jacobian of every step; NaN where a step is masked.

    Attributes:
      singular_values: `[T, ..., N]`, largest first: how much the step stretches.
      eigenvalue_moduli: `[T, ..., N]`, largest first; the first is the spectral radius.
    """

    singular_values: Array
    eigenvalue_moduli: Array


def jacobian_spectrum(trajectory: Trajectory) -> Spectrum:
    """Singular values and eigenvalue moduli of every step's Jacobian.

    If the largest singular value is below 1 at every step, gradients must vanish; above 1 they may
    explode. For what they do over many steps, see `lyapunov_exponents`. Only one step's Jacobians are
    held at a time.

    Args:
      trajectory: that of a recurrent layer; `trajectory.every(k)` looks at every k-th step.

    Returns:
      The spectra, over the real vectors of `StateLayout`.

    >>> import seqjax
    >>> from seqjax.diagnostics import trajectories
    >>> model, xs = seqjax.RNN(seqjax.Simple(4, activation="identity")), jnp.ones((5, 1))
    >>> (seen,) = trajectories(model, model.init(jax.random.key(0), xs), xs)  # orthogonal recurrent weights
    >>> bool(jnp.allclose(jacobian_spectrum(seen).singular_values, 1, atol=1e-5))
    True

    Source: Pascanu, Mikolov and Bengio 2013, section 2.1.
    """

    check_trajectory("jacobian_spectrum", trajectory)

    def spectrum(at: tuple[Array, Array]) -> Spectrum:
        jacobian = _jacobian(trajectory, *at)
        moduli = jnp.abs(jnp.linalg.eigvals(jacobian))
        return Spectrum(jnp.linalg.svd(jacobian, compute_uv=False), jnp.sort(moduli, axis=-1, descending=True))

    found = jax.lax.map(spectrum, (_states(trajectory), trajectory.xs))
    if trajectory.mask is None:
        return found
    return Spectrum(*(jnp.where(trajectory.mask[..., None], values, jnp.nan) for values in found))
