# SPDX-License-Identifier: Apache-2.0
"""Copy memory as a task, judged against the exact chance level."""

import functools

import seqjax
from experiments.copy import data
from experiments.study import drawn
from experiments.study.task import Task, require
from seqjax import training
from seqjax.base import Cell
from seqjax.training.losses import Loss

METRIC = "cross_entropy"
RECALL = "recall_accuracy"
READOUT = 64
"""Units between the recurrent layer and the logits: without them a linear cell could not wait for the signal."""


def task(replicate: int = 0, *, length: int = 100, batch_size: int = 32, fresh: int = 500) -> Task:
    """Copy memory.

    Args:
      replicate: of the sequences that models are judged by.
      length: T, the pause; sequences have T + 20 steps.
      batch_size: sequences in a training batch.
      fresh: how many sequences that training never sees models are judged by.

    Raises:
      ValueError: a number out of range.
    """
    require("copy memory", length=length, batch_size=batch_size, fresh=fresh)
    draw = functools.partial(data.sequences, length)
    measures: dict[str, Loss] = {
        METRIC: training.cross_entropy,
        RECALL: training.AtLastStep(training.accuracy, data.RECALLED),
    }
    return Task(
        name=f"copy memory, T = {length:,}",
        make_batch=functools.partial(drawn.batch, draw, batch_size),
        loss=training.cross_entropy,
        model=model,
        evaluator=functools.partial(drawn.evaluator, draw, fresh, replicate, measures),
        metric=METRIC,
        baselines={"chance (exact)": data.chance(length)},
        also={RECALL: {"chance (exact)": 1 / data.SYMBOLS}},
    )


def model(cell: Cell) -> seqjax.Serial:
    """A recurrent layer of this cell, and a hidden layer and logits at every step."""
    return seqjax.Serial(seqjax.RNN(cell), seqjax.Dense(READOUT), seqjax.Activation("relu"), seqjax.Dense(data.TOKENS))
