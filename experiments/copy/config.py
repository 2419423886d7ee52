# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
from typing import Literal

from experiments.copy.models import MODELS
from experiments.study import generated
from experiments.study.command import Command


@dataclasses.dataclass(frozen=True)
class Config(generated.Settings):
    """Copy memory: ten symbols are to be repeated after a pause of T steps.

    Args:
      preset: smoke (seconds, to see that it runs), default (T = 100, three seeds, about 5 minutes on
        one core), paper (T = 1,000, all models, 20,000 steps: for a GPU).
      length: T, the pause; sequences have T + 20 steps.

    Raises:
      ValueError: a number out of range, or a model that is not known.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    models: str = "gru,gru-chrono,lstm-chrono,lru,lru-ring"
    length: int = 100
    steps: int = 1000
    hidden_dim: int = 64

    def __post_init__(self):
        generated.check(self, MODELS)


COMMAND = Command(
    "copy",
    {
        "smoke": Config(
            preset="smoke", models="gru,lru-ring", length=20, steps=40, fresh=100, evaluate_every=20, seeds=1
        ),
        "default": Config(),
        "paper": Config(
            preset="paper",
            models=",".join(MODELS),
            length=1000,
            steps=20_000,
            hidden_dim=128,
            evaluate_every=500,
        ),
    },
    extendable=("seeds",),
)
