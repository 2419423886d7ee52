# SPDX-License-Identifier: Apache-2.0
"""The adding problem as a task: the last step's output is the sum."""

import functools

import seqjax
from experiments.adding import data
from experiments.study import drawn
from experiments.study.task import Task, require
from seqjax import training
from seqjax.base import Cell
from seqjax.training import Batch

METRIC = "mse"


def task(
    replicate: int = 0, *, length: int = 600, batch_size: int = 32, curriculum: int = 0, fresh: int = 1000
) -> Task:
    """The adding problem.

    Args:
      replicate: of the sequences that models are judged by.
      length: T, steps of a sequence.
      batch_size: sequences in a training batch.
      curriculum: over so many steps of training sequences grow to `length`.
      fresh: how many sequences that training never sees models are judged by.

    Raises:
      ValueError: a number out of range.
    """
    require("the adding problem", batch_size=batch_size, fresh=fresh)
    require("the adding problem", least=2, length=length)
    require("the adding problem", least=0, curriculum=curriculum)

    def make_batch(seed: int, step: int) -> Batch:
        T = data.stage_length(length, step, curriculum)
        return drawn.batch(functools.partial(data.sequences, T), batch_size, seed, step)

    draw = functools.partial(data.sequences, length)
    return Task(
        name=f"adding problem, T = {length:,}",
        make_batch=make_batch,
        loss=training.mean_squared_error,
        model=model,
        evaluator=functools.partial(drawn.evaluator, draw, fresh, replicate, {METRIC: training.mean_squared_error}),
        metric=METRIC,
        baselines={"always 1 (exact: 1/6)": data.CHANCE},
    )


def model(*cells: Cell) -> seqjax.Serial:
    """Recurrent layers of these cells, their last step, and a dense layer."""
    return seqjax.Serial(*(seqjax.RNN(cell) for cell in cells), seqjax.Last(), seqjax.Dense(1))
