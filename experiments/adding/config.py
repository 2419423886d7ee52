# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.adding.models import MODELS
from experiments.study import generated
from experiments.study.command import Command


@dataclasses.dataclass(frozen=True)
class Config:
    """The adding problem: two marked numbers of a long sequence are to be remembered and added.

    Args:
      preset: smoke (seconds, to see that it runs), default (T = 600, three seeds, about 11 minutes on
        one core), paper (T = 600, all models, 128 units, 20,000 steps), long (T = 10,000 with a
        curriculum: for a GPU).
      models: which, separated by commas.
      length: T, steps of a sequence.
      curriculum: let sequences grow to T during the first half of the steps.
      steps: of training.
      batch_size: sequences in a batch, new ones for every step.
      hidden_dim: units of a recurrent layer.
      learning_rate: of Adam, held for 70% of the steps and then falling to zero; by default each model's own.
      clip_norm: the global norm that gradients are clipped to.
      fresh: how many sequences that training never sees models are judged by.
      evaluate_every: in steps.
      seeds: runs of each model, with seeds 0, 1, ...
      run_dir: where to write; by default a new folder in runs/adding.
      resume: a run's folder, to continue it.

    Raises:
      ValueError: a number out of range, or a model that is not known.
    """

    preset: Literal["smoke", "default", "paper", "long"] = "default"
    models: str = "gru,gru-chrono,lstm-chrono,mingru,mingru-closed"
    length: int = 600
    curriculum: bool = False
    steps: int = 2000
    batch_size: int = 32
    hidden_dim: int = 32
    learning_rate: float | None = None
    clip_norm: float = 1.0
    fresh: int = 1000
    evaluate_every: int = 100
    seeds: int = 3
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

    def __post_init__(self):
        generated.check(self, MODELS)
        if self.length < 8:
            raise ValueError(f"--length must be at least 8, got {self.length}.")

    @property
    def growing(self) -> int:
        """Steps of training over which sequences grow to T."""
        return self.steps // 2 if self.curriculum else 0


COMMAND = Command(
    "adding",
    {
        "smoke": Config(
            preset="smoke",
            models="gru-chrono,mingru-closed",
            length=50,
            steps=40,
            fresh=100,
            evaluate_every=20,
            seeds=1,
        ),
        "default": Config(),
        "paper": Config(
            preset="paper",
            models=",".join(MODELS),
            steps=20_000,
            hidden_dim=128,
            evaluate_every=500,
        ),
        "long": Config(
            preset="long",
            models="gru-chrono,lstm-chrono,mingru-closed,minlstm-chrono,rglru-slow",
            length=10_000,
            curriculum=True,
            steps=20_000,
            hidden_dim=128,
            evaluate_every=500,
        ),
    },
)
