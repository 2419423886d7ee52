# SPDX-License-Identifier: Apache-2.0
"""The task: when does the neuron fire, given all of the sound until now?"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from experiments.spikes import data, glm
from experiments.spikes.likelihood import Surprise, bits_per_spike, entropy, log_odds, told
from experiments.study.task import Evaluator, Task, require
from seqjax import training
from seqjax.base import Array, Cell, Engine, Layer, Params
from seqjax.engines.auto import Auto
from seqjax.training import Batch

METRIC = "bits_per_spike"
"""A spike, above a constant rate."""
BINS = 200_000
READOUT = 32
Judge = Literal["later", "validation", "other"]


class Part(NamedTuple):
    """Bins [start, stop) of some of the recordings."""

    lanes: slice
    start: int
    stop: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """`array [N, B, ...]` there."""
        return array[self.start : self.stop, self.lanes]


def parts(bins: int, judge: Judge = "later") -> tuple[Part, Part]:
    """What is learnt from, and what is judged by: a later part of both recordings, or the other recording.

    "validation" is as "later", within the part that "later" learns from.

    >>> parts(200_000)[1]
    Part(lanes=slice(None, None, None), start=160000, stop=200000)
    """
    if judge == "other":
        return Part(slice(0, 1), 0, bins), Part(slice(1, 2), 0, bins)
    end = bins if judge == "later" else _cut(bins)
    return Part(slice(None), 0, _cut(end)), Part(slice(None), _cut(end), end)


def _cut(bins: int) -> int:
    """Four fifths, an even number."""
    return bins * 4 // 5 // data.RESOLUTION * data.RESOLUTION


def model(cell: Cell, engine: Engine = Auto()) -> seqjax.Serial:
    """The cell on the stimulus as it is, 20,000 values a second, and by how much it changes the log odds of a spike."""
    return seqjax.Serial(seqjax.RNN(cell, engine), seqjax.Dense(READOUT, activation="relu"), seqjax.Dense(1))


def task(
    replicate: int = 0,
    *,
    bins: int = BINS,
    judge: Judge = "later",
    history: bool = False,
    window: int | None = None,
) -> Task:
    """The firing of a neuron.

    Args:
      replicate: all learn from the same recordings.
      bins: the first so many of both recordings, an even number.
      judge: see `parts`.
      history: past spikes, up to 100 microseconds ago, are an input too.
      window: bins in a batch, the carry going on from each to the next, an even number; None is all that is
        learnt from at once.

    Raises:
      ValueError: a number out of range.
    """
    require("spikes", least=2000, bins=bins)
    require("spikes", least=2, window=window)
    for name, given in (("bins", bins), ("window", window)):
        if given is not None and given % 2:
            raise ValueError(f"spikes: {name} must be even, as likelihoods are of pairs of bins; got {given}.")
    recordings = data.load().first(bins)
    learnt, judged = parts(bins, judge)
    xs, ys = inputs(recordings, learnt, history), recordings.spikes[..., None]
    rate = float(learnt.of(recordings.spikes).mean())
    loss = Surprise(log_odds(rate))
    classics = baselines(bins, judge, history)
    asked = float(told(judged.of(recordings.spikes)).mean())
    return Task(
        name=f"firing of an auditory neuron, {learnt.stop:,} bins learnt from" + (", past spikes known" * history),
        make_batch=_batches(learnt.of(xs), learnt.of(ys), window),
        loss=loss,
        model=model,
        evaluator=lambda model: _evaluator(model, loss, xs, ys, judged),
        metric=METRIC,
        better="higher",
        baselines={name: bits_per_spike(nats, asked) for name, nats in classics.items()},
        also={"nats": classics},
        stateful=window is not None,
    )


def inputs(recordings: data.Recordings, learnt: Part, history: bool) -> np.ndarray:
    """`[N, 2, 1]`, or `[N, 2, 2]` with past spikes: levels, of each recording less their mean and by their deviation.

    Each by its own: the experimenters set the intensity of each stimulus so that the neuron fires alike.
    """
    seen = recordings.levels[: learnt.stop].astype(np.float64)
    levels = ((recordings.levels - seen.mean(0)) / seen.std(0)).astype(np.float32)
    if not history:
        return levels[..., None]
    # a pair of bins is predicted as one: neither may see a spike in the other
    past = np.concatenate([np.zeros_like(recordings.spikes[: data.RESOLUTION]), recordings.spikes[: -data.RESOLUTION]])
    return np.stack([levels, past], axis=-1)


def _batches(xs: np.ndarray, ys: np.ndarray, window: int | None) -> Callable[[int, int], Batch]:
    if window is None:
        whole = Batch(jnp.asarray(xs), jnp.asarray(ys))
        return lambda seed, step: whole
    lanes = xs.shape[1]  # one recording after the other, as `windows` cuts them again
    xs, ys = (np.concatenate([array[:, lane] for lane in range(lanes)]) for array in (xs, ys))
    return training.windows(xs, ys, window=window, batch=lanes)


def _evaluator(model: Layer, loss: Surprise, xs: np.ndarray, ys: np.ndarray, judged: Part) -> Evaluator:
    run = Part(judged.lanes, 0, judged.stop)  # the carry comes from all bins before
    inputs, spikes = jnp.asarray(run.of(xs)), jnp.asarray(run.of(ys))
    rate = float(told(judged.of(ys)).mean())

    def evaluate(params: Params) -> dict[str, float]:
        cost = float(_nats(model, loss, judged.start, params, inputs, spikes))
        return {METRIC: bits_per_spike(cost, rate), "nats": cost}

    return evaluate


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _nats(model: Layer, loss: Surprise, start: int, params: Params, xs: Array, ys: Array) -> Array:
    """The cross-entropy from `start` on, the model having run from the beginning."""
    _, outputs = model.apply(params, model.initial_carry(params, xs.shape[1:-1]), xs)
    return loss(outputs[start:], ys[start:])


@functools.lru_cache(maxsize=4)
def baselines(bins: int, judge: Judge, history: bool) -> dict[str, float]:
    """Nats a pair of bins of constant rates and of the linear model, on the part that is judged."""
    recordings = data.load().first(bins)
    learnt, judged = parts(bins, judge)
    xs, ys = glm.design(inputs(recordings, learnt, history)), told(recordings.spikes)
    learnt, judged = (Part(p.lanes, p.start // data.RESOLUTION, p.stop // data.RESOLUTION) for p in (learnt, judged))
    inner = np.arange(learnt.stop)[:, None] < _cut(learnt.stop)
    weights = glm.learn(learnt.of(xs), learnt.of(ys), np.broadcast_to(inner, learnt.of(ys).shape))
    before, rate = float(learnt.of(ys).mean()), float(judged.of(ys).mean())
    return {
        "constant rate of the judged part": entropy(rate),
        "constant rate of the learnt part": -rate * math.log(before) - (1 - rate) * math.log1p(-before),
        "linear model, past spikes too" if history else "linear model": glm.nats(weights, judged.of(xs), judged.of(ys)),
    }
