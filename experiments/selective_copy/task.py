# SPDX-License-Identifier: Apache-2.0
"""Selective copying as a task, judged against the exact chance level."""

import functools

import seqjax
from experiments.copy.measures import AtLastSteps
from experiments.selective_copy import data
from experiments.study.blocks import blocks
from experiments.study.task import Evaluator, Task, require
from seqjax import training
from seqjax.base import Cell, Layer, Params
from seqjax.initializers import Uniform
from seqjax.training.losses import Loss

METRIC = "accuracy"
CROSS_ENTROPY = "cross_entropy"


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
    return Task(
        name=f"selective copying, {recalled} symbols in L = {length:,}",
        make_batch=data.batches(length, recalled, batch_size),
        loss=AtLastSteps(training.cross_entropy, recalled),
        model=functools.partial(model, layers=layers, width=width),
        evaluator=functools.partial(_evaluator, length, recalled, fresh, replicate),
        metric=METRIC,
        better="higher",
        baselines={"chance (exact: 1/14)": data.CHANCE_ACCURACY},
    )


def model(cell: Cell, layers: int = 3, width: int = 32) -> seqjax.Serial:
    """So many residual blocks around a cell, of `width` features."""
    return seqjax.Serial(
        seqjax.Embed(data.TOKENS, width, table_init=Uniform(-1.0, 1.0)),
        *blocks(cell, layers, width),
        seqjax.LayerNorm(),
        seqjax.Dense(data.TOKENS),
    )


def _evaluator(length: int, recalled: int, fresh: int, replicate: int, model: Layer) -> Evaluator:
    batches = data.fresh(length, recalled, fresh, replicate)
    measures: dict[str, Loss] = {
        METRIC: AtLastSteps(training.accuracy, recalled),
        CROSS_ENTROPY: AtLastSteps(training.cross_entropy, recalled),
    }
    step = training.make_eval_step(model, measures)

    def evaluate(params: Params) -> dict[str, float]:
        return training.evaluate(step, params, batches)

    return evaluate
