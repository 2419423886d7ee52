# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.study.command import Command, check_names, check_numbers
from experiments.watch.data import FOLDS
from experiments.watch.models import HEADLINES, STUDIES


@dataclasses.dataclass(frozen=True)
class Config:
    """Smartwatch recordings of unseen people: which of seven exercises is it?

    Args:
      preset: smoke (seconds, to see that it runs), default (crops, one model, five folds, 3 minutes), whole
        (full-length training, all models, 13 minutes), paper (crops, all models, five folds, three seeds).
      study: learn from crops of ten seconds, or from whole recordings.
      models: which, separated by commas, or all; by default the study's headline, conv-gru-mirrored for crops
        and cure-mirrored for whole recordings.
      judge: by the people of the fold's test pair, or by a pair of the others, who are then not learnt from
        (validation: what is chosen in this way has not seen the test pair).
      folds: which, of 0 to 4, separated by commas.
      seeds: runs of each fold, with other weights and other crops.
      steps: of training; by default 2,000 for crops and 150 for whole recordings.
      hidden_dim: units of the recurrent layer.
      learning_rate: of Adam at the first step; it falls to zero along a cosine.
      clip_norm: the global norm that gradients are clipped to, in the rows that clip.
      evaluate_every: in steps; only for the plot, as nothing is chosen by it.
      run_dir: where to write; by default a new folder in runs/watch.
      resume: a run's folder, to continue it; --seeds may be raised.

    Raises:
      ValueError: a number out of range, or a model or a fold that is not known.
    """

    preset: Literal["smoke", "default", "whole", "paper"] = "default"
    study: Literal["crops", "whole"] = "crops"
    models: str | None = None
    judge: Literal["test", "validation"] = "test"
    folds: str = "0,1,2,3,4"
    seeds: int = 1
    steps: int | None = None
    hidden_dim: int = 64
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    evaluate_every: int = 100
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

    def __post_init__(self):
        check_numbers(
            self,
            counts=("seeds", "steps", "hidden_dim", "evaluate_every"),
            positive=("learning_rate", "clip_norm"),
        )
        check_names("--models", self.names, STUDIES[self.study])
        choices = [str(fold) for fold in range(FOLDS)]
        chosen = self.folds.split(",")
        if any(fold not in choices for fold in chosen) or len(set(chosen)) < len(chosen):
            raise ValueError(f"--folds are some of {','.join(choices)}, each once; got {self.folds!r}.")

    @property
    def names(self) -> list[str]:
        """Of the models."""
        if self.models == "all":
            return list(STUDIES[self.study])
        asked = HEADLINES[self.study] if self.models is None else self.models
        return [name.strip() for name in asked.split(",")]

    @property
    def replicates(self) -> list[int]:
        """Seed s of fold r is replicate r + 5 s."""
        return [int(fold) + FOLDS * seed for seed in range(self.seeds) for fold in self.folds.split(",")]

    @property
    def updates(self) -> int:
        """Steps of training."""
        return self.steps or {"crops": 2000, "whole": 150}[self.study]


COMMAND = Command(
    "watch",
    {
        "smoke": Config(preset="smoke", folds="0", steps=5, hidden_dim=8, evaluate_every=5),
        "default": Config(),
        "whole": Config(preset="whole", study="whole", models="all", evaluate_every=50),
        "paper": Config(preset="paper", models="all", seeds=3),
    },
    extendable=("seeds",),
)
