# SPDX-License-Identifier: Apache-2.0
"""A stretch of sound, spikes and what was predicted."""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from experiments.spikes import data
from experiments.spikes.likelihood import log_odds
from experiments.spikes.task import Judge, inputs, parts
from experiments.study.runner import Row
from experiments.study.style import STYLE, line
from seqjax import training
from seqjax.base import Array, Layer, Params

STRETCH = 4000
"""Bins: 200 ms."""


def stretch(
    path: pathlib.Path, rows: Sequence[Row], run_dir: pathlib.Path, bins: int, judge: Judge, history: bool
) -> None:
    """Sound, spikes and predicted rates where the judged part begins, in its first recording."""
    learnt, judged = parts(bins, judge)
    recordings = data.load().first(bins)
    lane, length = judged.lanes.indices(2)[0], min(STRETCH, judged.stop - judged.start)
    window = slice(judged.start, judged.start + length)
    xs = inputs(recordings, learnt, history)[: window.stop, lane]
    base = log_odds(float(learnt.of(recordings.spikes).mean()))
    milliseconds = np.arange(window.start, window.stop) * data.MICROSECONDS / 1000
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        sound, firing = figure.subplots(2, sharex=True, height_ratios=(2, 3))
        sound.plot(milliseconds, recordings.levels[window, lane], color="0.3", lw=0.8)
        sound.set(ylabel="dB SPL", title="the sound's envelope")
        for moment in milliseconds[recordings.spikes[window, lane] > 0]:
            firing.axvline(moment, color="0.8", lw=1.5)
        for index, row in enumerate(rows):
            folder = run_dir / row.variant.name / str(row.outcomes[0].replicate)
            logits = _outputs(row.variant.model, training.load(folder).params, jnp.asarray(xs))[window]
            rate = 1e6 / data.MICROSECONDS / (1 + np.exp(-(np.asarray(logits, np.float64) + base)))
            firing.plot(milliseconds, rate, **line(index), lw=1, label=row.variant.name)
        firing.set(xlabel="ms", ylabel="spikes a second", title="spikes (grey) and predicted rates")
        figure.legend(loc="outside right center")
        figure.savefig(path)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model: Layer, params: Params, xs: Array) -> Array:
    return model.apply(params, model.initial_carry(params, ()), xs)[1][:, 0]
