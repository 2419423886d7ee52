# SPDX-License-Identifier: Apache-2.0
"""All diagnostics of a model, as NumPy numbers."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.diagnose.subject import Subject
from seqjax import diagnostics
from seqjax.base import Array, Layer, Mask, Params, Resets
from seqjax.diagnostics import ClipHistory, GradientFlow, Saturation, Spectrum, Trajectory
from seqjax.layers import BatchMajor, Bidirectional, Embed, Residual, Serial
from seqjax.sequences import expand, last_step
from seqjax.training import Batch
from seqjax.training.losses import Loss, last_valid

EXACT_OUTPUTS = 16
"""Up to so many outputs the memory profile is exact; beyond, it is estimated from as many projections."""
SPECTRUM_STEPS, SPECTRUM_SEQUENCES = 64, 8
"""Jacobians are looked at in so many places at most."""


@dataclasses.dataclass(frozen=True)
class LayerNumbers:
    """One recurrent layer's, over its own steps T'."""

    name: str
    """Its place in the params, its direction if it has one, and its cell: `"0 LSTM(20)"`, `"0.1 backward GRU(6)"`."""
    flow_last: np.ndarray
    """`[T']`: ‖dL/dcarry_t‖ through the last output alone, over all sequences, which end together."""
    flow_all: np.ndarray
    """`[T']`: through all outputs."""
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


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What the report is made of."""

    layers: tuple[LayerNumbers, ...]
    profile: np.ndarray | None
    """`[T]`: root mean square over sequences of ‖∂y_T/∂x_t‖ against the lag; None of ids that nothing embeds."""
    exact: bool
    """Whether `profile` is exact and not estimated."""
    horizon: int
    """The lag from which it stays below 1% of its largest."""
    reached: bool
    """Whether it falls so far within the sequence."""
    stride: bool
    """Whether a strided front end could come first: the model has no stride yet, and not every step has a target."""
    clipping: ClipHistory | None


def measure(subject: Subject) -> Numbers:
    """Runs every diagnostic on a subject."""
    batch = jax.tree.map(jnp.asarray, subject.seen.batch)
    run = jax.jit(functools.partial(_layers, subject.model, subject.seen.loss))
    layers = tuple(_numbers(subject.model, found) for found in jax.device_get(run(subject.params, batch)))
    profile, exact = memory(subject.model, subject.params, batch)
    found = None if profile is None else diagnostics.memory_horizon(jnp.asarray(profile))
    return Numbers(
        layers=layers,
        profile=profile,
        exact=exact,
        horizon=0 if found is None else int(found.lag),
        reached=found is None or bool(found.reached),
        stride=subject.model.stride == 1 and (batch.ys is None or len(batch.ys) == 1),
        clipping=diagnostics.clip_history(subject.history) if subject.history else None,
    )


class _Found(NamedTuple):
    """What is found out about a layer at one go."""

    flow_last: GradientFlow
    flow_all: GradientFlow
    gates: dict[str, Saturation]
    mask: Array
    """`[T', ...]`: False where a step is padding."""
    exponents: Array
    """`[...]`, for every sequence."""
    spectrum: Spectrum
    """`[steps looked at, ...]`: the largest values alone."""
    spectrum_mask: Array


def _layers(model: Layer, loss: Loss, params: Params, batch: Batch) -> list[_Found]:
    """Every recurrent layer, in the order of the params."""
    xs, targets, mask, resets = batch

    def everywhere(ys: Array, mask: Mask) -> Array:
        return loss(ys, targets, mask)

    def last(ys: Array, mask: Mask) -> Array:
        newest = jnp.arange(len(ys)) == len(ys) - 1 if mask is None else last_valid(mask)
        return loss(jnp.where(expand(newest, ys), ys, jax.lax.stop_gradient(ys)), targets, mask)

    trajectories = diagnostics.trajectories(model, params, xs, mask=mask, resets=resets)
    flows = (
        diagnostics.gradient_flow(model, params, xs, through, mask=mask, resets=resets)
        for through in (last, everywhere)
    )
    return [_look_into(*found) for found in zip(trajectories, *flows, strict=True)]


def _look_into(trajectory: Trajectory, last: GradientFlow, everywhere: GradientFlow) -> _Found:
    xs, mask = trajectory.xs, trajectory.mask
    few = (trajectory if xs.ndim < 3 else _first_sequences(trajectory)).every(_stride(len(xs)))
    return _Found(
        flow_last=_ending_together(last, mask),
        flow_all=_ending_together(everywhere, mask),
        gates=diagnostics.saturation(trajectory),
        mask=_filled(mask, xs),
        exponents=diagnostics.lyapunov_exponents(trajectory, discard=_discarded(len(xs)))[..., 0],
        spectrum=Spectrum(*(values[..., 0] for values in diagnostics.jacobian_spectrum(few))),
        spectrum_mask=_filled(few.mask, few.xs),
    )


def _filled(mask: Mask, xs: Array) -> Array:
    """The mask of `xs [T, ..., D]`, where None is that no step is padding."""
    return jnp.ones(xs.shape[:-1], bool) if mask is None else mask


def _stride(steps: int) -> int:
    return -(-steps // SPECTRUM_STEPS)


def _discarded(steps: int) -> int:
    """How many first steps do not count for Lyapunov exponents."""
    return steps // 4


def _first_sequences(trajectory: Trajectory) -> Trajectory:
    parts = trajectory.carries, trajectory.xs, trajectory.mask
    carries, xs, mask = jax.tree.map(lambda a: a[:, :SPECTRUM_SEQUENCES], parts)
    return dataclasses.replace(trajectory, carries=carries, xs=xs, mask=mask)


def _ending_together(flow: GradientFlow, mask: Mask) -> GradientFlow:
    """The flow with the shorter sequences of `mask [T', ...]` shifted, so that all end at the last step."""
    if mask is None:
        return flow
    ends = jnp.where(mask.any(axis=0), last_step(mask), 0)
    steps = jnp.arange(1 - len(mask), 1).reshape(-1, *[1] * ends.ndim) + ends

    def shifted(norms: Array) -> Array:
        return jnp.where(steps < 0, 0, jnp.take_along_axis(norms, jnp.maximum(steps, 0), axis=0))

    return dataclasses.replace(flow, norms=jax.tree.map(shifted, flow.norms))


def directed(model: Layer, name: str) -> str:
    """The name of a layer with its direction, if it is in a `Bidirectional`.

    >>> import seqjax
    >>> directed(seqjax.Serial(seqjax.Bidirectional(seqjax.RNN(seqjax.GRU(6)))), "0.1 GRU(6)")
    '0.1 backward GRU(6)'
    """
    path, _, cell = name.partition(" ")
    turns = []
    for place in path.split("."):
        while isinstance(model, BatchMajor | Residual):  # their params are those of the layer inside
            model = model.layer
        if not isinstance(model, Bidirectional | Serial):
            break
        if isinstance(model, Bidirectional):
            turns.append(place == "1")
        model = model.layers[int(place)]
    return f"{path} {('forward', 'backward')[sum(turns) % 2]} {cell}" if turns else name


def _numbers(model: Layer, found: _Found) -> LayerNumbers:
    steps = len(found.mask)
    longest = int(found.mask.reshape(steps, -1).any(axis=1).nonzero()[0].max()) + 1
    valid = found.spectrum_mask.reshape(len(found.spectrum_mask), -1)
    singular, radius = (np.ma.MaskedArray(values.reshape(valid.shape), ~valid) for values in found.spectrum)
    looked_at = valid.any(axis=1)
    counted = found.mask[_discarded(steps) :].any(axis=0)
    return LayerNumbers(
        name=directed(model, found.flow_last.name),
        flow_last=np.asarray(found.flow_last.total)[-longest:],
        flow_all=np.asarray(found.flow_all.total)[-longest:],
        gates=found.gates,
        singular=np.ma.filled(np.ma.median(singular[looked_at], axis=1)),
        stretch=float(np.max(singular)),
        radius=np.ma.filled(np.ma.median(radius[looked_at], axis=1)),
        spectrum_steps=np.arange(0, steps, _stride(steps))[looked_at],
        exponents=np.asarray(found.exponents[counted]).reshape(-1),
    )


def memory(model: Layer, params: Params, batch: Batch) -> tuple[np.ndarray | None, bool]:
    """The memory profile over all sequences, and whether it is exact; of a model of ids, that behind its `Embed`."""
    xs, _, mask, resets = batch
    if isinstance(model, Serial) and isinstance(model.layers[0], Embed):
        _, xs = model.layers[0].apply(params[0], (), xs, mask=mask)
        model, params = Serial(*model.layers[1:]), params[1:]
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        return None, True
    carry = model.initial_carry(params, model.batch_shape(xs))
    ys = jax.eval_shape(model.apply, params, carry, xs)[1]
    exact = ys.shape[-1] <= EXACT_OUTPUTS
    projections, key = (None, None) if exact else (EXACT_OUTPUTS, jax.random.key(0))

    def run(params: Params, xs: Array, mask: Mask, resets: Resets) -> Array:
        return diagnostics.memory_profile(
            model, params, xs, mask=mask, resets=resets, projections=projections, projection_key=key
        )

    profile = jax.jit(run)(params, xs, mask, resets)
    squares = np.square(np.asarray(profile, np.float64)).reshape(len(xs), -1)
    squares = squares[~np.isnan(squares).all(axis=1)]  # lags that some sequence has
    return np.sqrt(np.nanmean(squares, axis=1)), exact
