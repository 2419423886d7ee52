# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.compare import tasks
from experiments.study.cells import cells
from experiments.study.command import Command, check_numbers


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares cells on a task: the task's model around each cell, the same budget and optimizer for all.

    Args:
      preset: smoke (seconds, to see that it runs), default, paper (ten seeds of 10,000 steps with 128 units).
      task: an experiment that has one: adding, copy, selective_copy, mnist1d, watch, forecast,
        bytes, chorales, pixels, spikes.
      options: what the task is to be given, as NAME=VALUE, for instance length=100 batch_size=16.
      cells: separated by commas; an unknown one is answered with the list of all.
      hidden_dim: units of each cell.
      steps: of each run.
      seconds: of training for each run, in place of steps: a cell is timed first and gets the steps that it
        does in so long, without compilation, evaluation and checkpoints.
      seeds: runs of each cell, with seeds 0, 1, ...; for tasks with folds, their number.
      learning_rate: of Adam, constant.
      clip_norm: the global norm that gradients are clipped to, or None.
      evaluate_every: in steps; by default twenty times in the longest run.
      checkpoint_every: in steps; what a kill loses at most.
      run_dir: where to write; by default a new folder in runs/compare.
      resume: a run's folder, to continue it as it was configured; --steps and --seeds may be raised.

    Raises:
      ValueError: a number out of range, or a cell, a task or an option that is not known.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    task: str = "adding"
    options: tuple[str, ...] = ()
    cells: str = "gru,lstm,mingru"
    hidden_dim: int = 64
    steps: int = 2000
    seconds: float | None = None
    seeds: int = 3
    learning_rate: float = 3e-3
    clip_norm: float | None = 1.0
    evaluate_every: int | None = None
    checkpoint_every: int = 200
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

    def __post_init__(self):
        check_numbers(
            self,
            counts=("hidden_dim", "steps", "seeds", "evaluate_every", "checkpoint_every"),
            positive=("seconds", "learning_rate", "clip_norm"),
        )
        cells(self.cells, self.hidden_dim)
        tasks.load(self.task, self.options)


COMMAND = Command(
    "compare",
    {
        "smoke": Config(preset="smoke", cells="gru,mingru", hidden_dim=8, steps=40, seeds=2),
        "default": Config(),
        "paper": Config(preset="paper", hidden_dim=128, steps=10_000, seeds=10),
    },
    extendable=("steps", "seeds"),
)
