# SPDX-License-Identifier: Apache-2.0
"""A task and a variant: what is to be learnt, and one way to learn it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax

from seqjax.base import Cell, Layer, Params
from seqjax.training import Batch
from seqjax.training.description import Types
from seqjax.training.losses import Loss

Evaluator = Callable[[Params], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be learnt, apart from the model that learns it.

    Args:
      name: as a table's title has it: "adding problem, T = 600".
      make_batch: the batch of `(seed, step)`, pure, time-major.
      loss: of predictions, targets and mask.
      model: the task's standard model around a cell.
      evaluator: jits once for a model; what it returns measures params, each measure by its name.
      metric: the measure that models are judged by.
      better: whether a lower or a higher value of it is.
      baselines: what is reached without learning or by a classic, in the unit of `metric`.
      also: further measures that the table shows, each with what baselines reach in it.
      finish: jits once for a model; what params go through before they are judged, and as they are kept at
        the end (`layer.calibrate` with training data, say).
      stateful: batches are consecutive windows and the model goes on from its last carry.
      data: what is learnt from, as JSON, where files may change: a run is not resumed on others.
    """

    name: str
    make_batch: Callable[[int, int], Batch]
    loss: Loss
    model: Callable[[Cell], Layer]
    evaluator: Callable[[Layer], Evaluator]
    metric: str
    better: Literal["lower", "higher"] = "lower"
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    also: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    finish: Callable[[Layer], Callable[[Params], Params]] | None = None
    stateful: bool = False
    data: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a study: a model and how it is trained.

    Args:
      name: of the row, and of its folder.
      task: that of replicate r: the same for all seeds, or fold r.
      model: what is trained.
      optimizer: any optax transformation; clip with `training.clipped`.
      steps: of training.
      published: figures of others by the name of their measure, as text.
      note: what the reader should know about this row.
      types: your own classes in the model, see `training.describe`.
      every: `evaluate_every`, `checkpoint_every` or `log_every` of this row, where it is not the study's.
    """

    name: str
    task: Callable[[int], Task]
    model: Layer
    optimizer: optax.GradientTransformation
    steps: int
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""
    types: Types = ()
    every: Mapping[str, int] = dataclasses.field(default_factory=dict)


def require(task: str, least: int = 1, **given: int | None) -> None:
    """Refuses options of a task that are below `least`; those that are None are let through.

    Raises:
      ValueError: naming the option and what was given.
    """
    for name, number in given.items():
        if number is not None and number < least:
            raise ValueError(f"{task}: {name} must be at least {least}, got {number}.")
