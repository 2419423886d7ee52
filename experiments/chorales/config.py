# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.study.cells import cells
from experiments.study.command import Command, check_numbers, find_anywhere


@dataclasses.dataclass(frozen=True)
class Config:
    """Next-step prediction of four-part music: trains recurrent models and lets each play a piece.

    Args:
      preset: smoke (seconds, to see that it runs), default (about 6 minutes on a core), paper (more cells,
        seeds and steps).
      data: a .mat file of the literature, JSB Chorales or Nottingham say; by default Bach from music21.
      steps_per_quarter: 4, 2 or 1: the grid on which Bach is read, by default sixteenths; of a file: how
        long its steps sound, by default a quarter.
      cells: names with commas between them.
      hidden_dim: units of the recurrent layer.
      dropout: rate at which its outputs are dropped in training.
      transpose: semitones that training pieces are shifted by at most; by default 5 for Bach, 0 for files.
      steps: of training.
      batch_size: stretches of music in a batch.
      crop: their steps.
      learning_rate: of Adam at the beginning; it falls to 0 along half a cosine.
      clip_norm: the global norm that gradients are clipped to, or None.
      seeds: how many runs of each cell.
      run_dir: where to write; by default a new folder in runs/chorales.
      resume: a run's folder, to continue it as it was configured; --seeds may be raised.
      sample: a model's folder, runs/chorales/.../gru/0 say, to let it play once more.
      sample_seed: of what is played.
      sample_steps: how long it plays.

    Raises:
      ValueError: a number out of range, or a cell that does not exist.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    data: str | None = None
    steps_per_quarter: Literal[1, 2, 4] | None = None
    cells: str = "gru,lstm"
    hidden_dim: int = 128
    dropout: float = 0.2
    transpose: int | None = None
    steps: int = 2000
    batch_size: int = 16
    crop: int = 128
    learning_rate: float = 0.01
    clip_norm: float | None = 1.0
    seeds: int = 3
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    sample: pathlib.Path | None = None
    sample_seed: int = 0
    sample_steps: int = 256

    def __post_init__(self):
        check_numbers(
            self,
            counts=("hidden_dim", "steps", "batch_size", "crop", "seeds", "sample_steps"),
            positive=("learning_rate", "clip_norm"),
        )
        find_anywhere(self, "data")
        if self.transpose is not None and self.transpose < 0:
            raise ValueError(f"--transpose must be 0 or more semitones, got {self.transpose}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be from 0 to below 1, got {self.dropout}.")
        cells(self.cells, self.hidden_dim)


COMMAND = Command(
    "chorales",
    presets={
        "smoke": Config(
            preset="smoke", cells="gru", hidden_dim=8, steps=20, batch_size=4, crop=32, seeds=1, sample_steps=64
        ),
        "default": Config(),
        "paper": Config(
            preset="paper",
            cells="gru,lstm,peephole,simple,simple-layer,mingru,minlstm,lru,rglru,diagonal-gru",
            hidden_dim=256,
            dropout=0.3,
            steps=6000,
            seeds=5,
        ),
    },
    extendable=("seeds",),
    actions=("sample", "sample_seed", "sample_steps"),
)
