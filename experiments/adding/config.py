# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
from typing import Literal

from experiments.adding.models import MODELS
from experiments.study import generated
from experiments.study.command import Command


@dataclasses.dataclass(frozen=True)
class Config(generated.Settings):
    """The adding problem: two marked numbers of a long sequence are to be remembered and added.

    Args:
      preset: smoke (seconds, to see that it runs), default (T = 600, three seeds, about 11 minutes on
        one core), paper (T = 600, all models, 128 units, 20,000 steps), long (T = 10,000 with a
        curriculum: for a GPU).
      length: T, steps of a sequence.
      curriculum: let sequences grow to T during the first half of the steps.

    Raises:
      ValueError: a number out of range, or a model that is not known.
    """

    preset: Literal["smoke", "default", "paper", "long"] = "default"
    models: str = "gru,gru-chrono,lstm-chrono,mingru,mingru-closed"
    length: int = 600
    curriculum: bool = False
    steps: int = 2000
    hidden_dim: int = 32
    fresh: int = 1000

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
    extendable=("seeds",),
)
