# SPDX-License-Identifier: Apache-2.0
"""Selective copying as a task, judged against the exact chance level."""

import functools

import seqjax
from experiments.selective_copy import data
from experiments.study import drawn
from experiments.study.blocks import blocks
from experiments.study.task import Task, require
from seqjax import training
from seqjax.base import Cell
from seqjax.initializers import Uniform

METRIC = "accuracy"
CROSS_ENTROPY = "cross_entropy"
CHANCE = "chance (exact: 1/14)"


def task(
    replicate: int = 0,
    *,
    length: int = 64,
    recalled: int = 8,
    batch_size: int = 32,
    fresh: int = 500,
    layers: int = 3,
    width: int = 32,
) -> Task:
    """Selective copying.

    Args:
      replicate: of the sequences that models are judged by.
      length: L, steps among which the symbols are; sequences have L + `recalled` steps.
      recalled: how many symbols.
      batch_size: sequences in a training batch.
      fresh: how many sequences that training never sees models are judged by.
      layers, width: see `model`.

    Raises:
      ValueError: a number out of range.
    """
    counts = {"length": length, "recalled": recalled, "batch_size": batch_size, "fresh": fresh}
    require("selective copying", **counts, layers=layers, width=width)
    if recalled > length:
        raise ValueError(
            f"selective copying: {recalled} symbols do not fit in {length} steps; lower recalled or raise length."
        )
    draw = functools.partial(data.sequences, length, recalled)
    loss = training.AtLastStep(training.cross_entropy, recalled)
    measures = {METRIC: training.AtLastStep(training.accuracy, recalled), CROSS_ENTROPY: loss}
    return Task(
        name=f"selective copying, {recalled} symbols in L = {length:,}",
        make_batch=functools.partial(drawn.batch, draw, batch_size),
        loss=loss,
        model=functools.partial(model, layers=layers, width=width),
        evaluator=functools.partial(drawn.evaluator, draw, fresh, replicate, measures),
        metric=METRIC,
        better="higher",
        baselines={CHANCE: data.CHANCE_ACCURACY},
        also={CROSS_ENTROPY: {CHANCE: data.CHANCE_CROSS_ENTROPY}},
    )


def model(cell: Cell, layers: int = 3, width: int = 32) -> seqjax.Serial:
    """So many residual blocks around a cell, of `width` features."""
    return seqjax.Serial(
        seqjax.Embed(data.TOKENS, width, table_init=Uniform(-1.0, 1.0)),
        *blocks(cell, layers, width),
        seqjax.LayerNorm(),
        seqjax.Dense(data.TOKENS),
    )
