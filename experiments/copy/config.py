# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.copy.models import MODELS
from experiments.study import generated
from experiments.study.command import Command


@dataclasses.dataclass(frozen=True)
class Config:
    """Copy memory: ten symbols are to be repeated after a pause of T steps.

    Args:
      preset: smoke (seconds, to see that it runs), default (T = 100, three seeds, about 5 minutes on
        one core), paper (T = 1,000, all models, 20,000 steps: for a GPU).
      models: which, separated by commas.
      length: T, the pause; sequences have T + 20 steps.
      steps: of training.
      batch_size: sequences in a batch, new ones for every step.
      hidden_dim: units of the recurrent layer.
      learning_rate: of Adam, held for 70% of the steps and then falling to zero; by default each model's own.
      clip_norm: the global norm that gradients are clipped to.
      fresh: how many sequences that training never sees models are judged by.
      evaluate_every: in steps.
      seeds: runs of each model, with seeds 0, 1, ...
      run_dir: where to write; by default a new folder in runs/copy.
      resume: a run's folder, to continue it.

    Raises:
      ValueError: a number out of range, or a model that is not known.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    models: str = "gru,gru-chrono,lstm-chrono,lru,lru-ring"
    length: int = 100
    steps: int = 1000
    batch_size: int = 32
    hidden_dim: int = 64
    learning_rate: float | None = None
    clip_norm: float = 1.0
    fresh: int = 500
    evaluate_every: int = 100
    seeds: int = 3
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

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
)
