# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.mnist1d.models import MODELS
from experiments.study.command import Command, check_names, check_numbers


@dataclasses.dataclass(frozen=True)
class Config:
    """One-dimensional digits: trains recurrent models to classify sequences of 40 steps.

    Args:
      preset: smoke (seconds, to see that it runs), default (all models once, about 5 minutes on
        2 cores), paper (three seeds).
      models: names with commas between them, or all.
      shuffled: one permutation of the 40 steps for all sequences.
      seeds: runs of each model, with seeds 0, 1, ...
      steps: of training.
      batch_size: sequences in a batch.
      hidden_dim: units of each direction.
      learning_rate: of Adam.
      evaluate_every: in steps.
      run_dir: where to write; by default a new folder in runs/mnist1d.
      resume: a run's folder, to continue it as it was configured; --seeds may be raised.

    Raises:
      ValueError: a number out of range, or a model that there is not, or that is named twice.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    models: str = "all"
    shuffled: bool = False
    seeds: int = 1
    steps: int = 6000
    batch_size: int = 100
    hidden_dim: int = 6
    learning_rate: float = 0.01
    evaluate_every: int = 500
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

    def __post_init__(self):
        counts = ("seeds", "steps", "batch_size", "hidden_dim", "evaluate_every")
        check_numbers(self, counts=counts, positive=("learning_rate",))
        check_names("--models", self.names, MODELS)

    @property
    def names(self) -> list[str]:
        """The models asked for."""
        return list(MODELS) if self.models == "all" else [name.strip() for name in self.models.split(",")]


PRESETS = {
    "smoke": Config(preset="smoke", models="gru", steps=40, evaluate_every=20),
    "default": Config(),
    "paper": Config(preset="paper", seeds=3),
}
COMMAND = Command("mnist1d", PRESETS, extendable=("seeds",))
