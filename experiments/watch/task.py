# SPDX-License-Identifier: Apache-2.0
"""The task of a fold: learn from eight people, be judged by whole recordings of two others."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp

import seqjax
from experiments.study.task import Task
from experiments.watch import data, forest
from experiments.watch.crops import AS_RECORDED, Variation, crops
from experiments.watch.judge import every_step, judge, last_step
from seqjax.base import Cell, Layer
from seqjax.training import Batch

UNITS = 64
STEPS, COUNT = 500, 32
"""Of a batch of crops: ten seconds of 32 recordings."""
WHOLE = 16
"""Recordings in a batch of whole ones: seven batches are an epoch of eight people."""


def plain(cell: Cell) -> Layer:
    """The cell on the recording as it is, and what it says at every step."""
    return seqjax.Serial(seqjax.RNN(cell), seqjax.Dense(len(data.EXERCISES)))


def strided(cell: Cell, stride: int = 4) -> Layer:
    """The cell behind a causal convolution, which hands it every `stride`-th step."""
    front = seqjax.Conv1D(32, width=2 * stride, stride=stride, activation="relu")
    return seqjax.Serial(front, seqjax.RNN(cell), seqjax.Dense(len(data.EXERCISES)))


def dropped(cell: Cell, stride: int = 4, rate: float = 0.3) -> Layer:
    """As `strided`, with dropout of what goes into the cell and of what comes out."""
    front, *rest = strided(cell, stride).layers  # type: ignore[attr-defined]
    drop = seqjax.Dropout(rate)
    return seqjax.Serial(front, drop, rest[0], drop, rest[1])


def task(
    replicate: int = 0,
    *,
    validation: bool = False,
    whole: bool = False,
    mirrored: bool = False,
    variation: Variation = AS_RECORDED,
    loss: Literal["every", "last"] = "every",
    model: Callable[[Cell], Layer] = strided,
) -> Task:
    """The task of a fold.

    Args:
      replicate: the fold, 0 to 4, plus 5 for each further seed; see `data.split`.
      validation: judge by two of the eight people instead, and learn from the other six.
      whole: learn from whole recordings, padded, instead of crops of 500 steps.
      mirrored: recordings of the left arm, see `data.Recordings.as_right`; which arm it is, is known.
      variation: of crops.
      loss: of every step, or of the last one of a recording or crop.
      model: the standard one around a cell.
    """
    learnt, judged, scaler = _parts(replicate % data.FOLDS, validation, mirrored)
    xs, lengths = data.padded(judged, scaler)
    return Task(
        name=f"smartwatch recordings of {'people left out of training' if validation else 'unseen people'}, "
        f"learnt from {'whole ones' if whole else 'crops'}",
        make_batch=_whole_batches(learnt, scaler) if whole else _crop_batches(learnt, scaler, variation),
        loss={"every": every_step, "last": last_step}[loss],
        model=model,
        evaluator=lambda model: judge(model, xs, lengths, judged.labels),
        metric="accuracy",
        better="higher",
        baselines=_baselines(replicate % data.FOLDS, validation),
    )


@functools.lru_cache(maxsize=4 * data.FOLDS)
def _parts(fold: int, validation: bool, mirrored: bool) -> tuple[data.Recordings, data.Recordings, data.Scaler]:
    """The recordings learnt from, those judged by, and the scaler of the former."""
    split = data.split(fold, validation=validation)
    recordings = data.load().as_right() if mirrored else data.load()
    learnt, judged = (recordings.of(people) for people in split)
    return learnt, judged, data.Scaler.fit(learnt)


@functools.lru_cache(maxsize=2 * data.FOLDS)
def _baselines(fold: int, validation: bool) -> Mapping[str, float]:
    """What is reached on a fold by guessing, and by a forest that learns from the same people."""
    forests = {
        name: forest.accuracy(*_parts(fold, validation, mirrored)[:2])
        for name, mirrored in (("random forest", False), ("random forest, mirrored", True))
    }
    return {"chance": 1 / len(data.EXERCISES), **forests}


def _crop_batches(learnt: data.Recordings, scaler: data.Scaler, variation: Variation) -> Callable[[int, int], Batch]:
    def make_batch(seed: int, step: int) -> Batch:
        xs, labels = crops(learnt, scaler, steps=STEPS, count=COUNT, variation=variation, seed=seed, step=step)
        return Batch(jnp.asarray(xs), jnp.asarray(labels))

    return make_batch


def _whole_batches(learnt: data.Recordings, scaler: data.Scaler) -> Callable[[int, int], Batch]:
    xs, lengths = data.padded(learnt, scaler)
    epoch = len(lengths) // WHOLE

    def make_batch(seed: int, step: int) -> Batch:
        index = step % epoch
        rows = data.order(seed, step // epoch, len(lengths))[index * WHOLE : (index + 1) * WHOLE]
        mask = seqjax.mask_from_lengths(jnp.asarray(lengths[rows]), data.PADDED)
        return Batch(jnp.asarray(xs[:, rows]), jnp.asarray(learnt.labels[rows][None]), mask)

    return make_batch
