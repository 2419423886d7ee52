# SPDX-License-Identifier: Apache-2.0
"""All diagnostics of a model, as NumPy numbers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.diagnose.subject import Subject
from seqjax import diagnostics
from seqjax.base import Array, Layer, Mask, Params
from seqjax.diagnostics import ClipHistory, GradientFlow, Saturation
from seqjax.training import mean_squared_error

EXACT_OUTPUTS = 16
"""Up to so many outputs the memory profile is exact; beyond, it is estimated from as many projections."""
SPECTRUM_STEPS, SPECTRUM_SEQUENCES = 64, 8
"""Jacobians are looked at in so many places at most."""


@dataclasses.dataclass(frozen=True)
class LayerNumbers:
    """One recurrent layer's, over its own steps T'."""

    name: str
    """Its place in the params, and its cell: `"0 LSTM(20)"`."""
    flow_last: np.ndarray
    """`[T']`: ‖dL/dcarry_t‖ for the loss at the last step, over all sequences."""
    flow_all: np.ndarray
    """`[T']`: for the loss over all steps."""
    gates: dict[str, Saturation]
    singular: np.ndarray
    """`[steps looked at]`: the median over sequences of the largest singular value."""
    stretch: float
    """The largest one in any step and sequence looked at."""
    radius: np.ndarray
    """`[steps looked at]`: of the spectral radius."""
    spectrum_steps: np.ndarray
    """Which steps these are."""
    exponents: np.ndarray
    """`[sequences]`: the largest Lyapunov exponent of each, in nats per step."""

    @property
    def exponent(self) -> tuple[float, float]:
        """Their mean and standard deviation."""
        with np.errstate(invalid="ignore"):  # an exponent of -inf has no spread
            return float(np.mean(self.exponents)), float(np.std(self.exponents))


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What the report is made of."""

    layers: tuple[LayerNumbers, ...]
    profile: np.ndarray | None
    """`[T]`: root mean square over sequences of ‖∂y_T/∂x_t‖ against the lag; None where inputs are ids."""
    exact: bool
    """Whether `profile` is exact and not estimated."""
    horizon: int
    """The lag from which it stays below 1% of its largest."""
    reached: bool
    """Whether it falls so far within the sequence."""
    clipping: ClipHistory | None


def measure(subject: Subject) -> Numbers:
    """Runs every diagnostic on a subject."""
    run = jax.jit(functools.partial(_layers, subject.model))
    targets = None if subject.targets is None else jnp.asarray(subject.targets)
    flows, seen = jax.device_get(run(subject.params, jnp.asarray(subject.xs), targets))
    layers = tuple(
        _numbers(last, everywhere, found) for last, everywhere, found in zip(*flows, seen.values(), strict=True)
    )
    profile, exact = memory(subject)
    found = None if profile is None else diagnostics.memory_horizon(jnp.asarray(profile))
    return Numbers(
        layers=layers,
        profile=profile,
        exact=exact,
        horizon=0 if found is None else int(found.lag),
        reached=found is None or bool(found.reached),
        clipping=diagnostics.clip_history(subject.history) if subject.history else None,
    )


def _layers(
    model: Layer, params: Params, xs: Array, targets: Array | None
) -> tuple[tuple[tuple[GradientFlow, ...], ...], dict[str, Any]]:
    """Gradient flow for both losses, and what the trajectory of each layer tells."""

    def everywhere(ys: Array, mask: Mask) -> Array:
        return mean_squared_error(ys, jnp.zeros_like(ys) if targets is None else targets, mask)

    def last(ys: Array, mask: Mask) -> Array:
        return mean_squared_error(ys[-1:], jnp.zeros_like(ys[-1:]) if targets is None else targets[-1:], None)

    flows = tuple(diagnostics.gradient_flow(model, params, xs, loss) for loss in (last, everywhere))
    seen = {}
    for found in diagnostics.trajectories(model, params, xs):
        stride = -(-len(found.xs) // SPECTRUM_STEPS)
        few = found if xs.ndim < 3 else _first_sequences(found)
        exponents = diagnostics.lyapunov_exponents(found, discard=len(found.xs) // 4)[..., 0]
        spectrum = diagnostics.jacobian_spectrum(few.every(stride))
        largest = tuple(values[..., 0].reshape(len(values), -1) for values in spectrum)
        seen[found.name] = (diagnostics.saturation(found), largest, exponents.reshape(-1))
    return flows, seen


def _first_sequences(found: diagnostics.Trajectory) -> diagnostics.Trajectory:
    carries, xs = jax.tree.map(lambda a: a[:, :SPECTRUM_SEQUENCES], (found.carries, found.xs))
    return dataclasses.replace(found, carries=carries, xs=xs)


def _numbers(last: GradientFlow, everywhere: GradientFlow, seen: tuple) -> LayerNumbers:
    gates, (singular, radius), exponents = seen
    steps = len(last.total)
    return LayerNumbers(
        name=last.name,
        flow_last=np.asarray(last.total),
        flow_all=np.asarray(everywhere.total),
        gates=gates,
        singular=np.median(singular, axis=1),
        stretch=float(np.max(singular)),
        radius=np.median(radius, axis=1),
        spectrum_steps=np.arange(0, steps, -(-steps // SPECTRUM_STEPS)),
        exponents=np.asarray(exponents),
    )


def memory(subject: Subject) -> tuple[np.ndarray | None, bool]:
    """The memory profile over all sequences, and whether it is exact."""
    xs = jnp.asarray(subject.xs)
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        return None, True
    carry = subject.model.initial_carry(subject.params, subject.model.batch_shape(xs))
    ys = jax.eval_shape(subject.model.apply, subject.params, carry, xs)[1]
    exact = ys.shape[-1] <= EXACT_OUTPUTS
    projections, key = (None, None) if exact else (EXACT_OUTPUTS, jax.random.key(0))

    def run(params: Params, xs: Array) -> Array:
        return diagnostics.memory_profile(subject.model, params, xs, projections=projections, projection_key=key)

    profile = jax.jit(run)(subject.params, xs)
    squares = np.square(np.asarray(profile, np.float64)).reshape(len(xs), -1)
    return np.sqrt(squares.mean(1)), exact
