# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.study.cells import cells
from experiments.study.command import Command, check_numbers, find_anywhere


@dataclasses.dataclass(frozen=True)
class Config:
    """Images one pixel a step: trains recurrent models to say what is on them.

    Args:
      preset: smoke (seconds; on made-up images if there are no others), default (images shrunk to 7 x 7
        pixels, 49 steps: what a CPU can do), paper (all 784 steps: needs a GPU).
      data: a folder with the four idx files of MNIST or its like; by default Fashion-MNIST from the Debian
        package dataset-fashion-mnist.
      permutation: seed of one order of the pixels for all images; None takes them row by row.
      pool: squares of so many pixels a side become one; 1 keeps all.
      limit: use so many images of each part at most.
      cells: names with commas between them.
      blocks: so many residual blocks around each cell in place of one bare layer: pixels projected, then in each
        block normalization, the recurrence, gelu and a dense layer. 0 is the bare layer.
      hidden_dim: units of the recurrent layer.
      steps: of training.
      batch_size: images in a batch.
      learning_rate: of Adam at the beginning; it falls to 0 along half a cosine.
      clip_norm: the global norm that gradients are clipped to, or None.
      seeds: how many runs of each cell.
      run_dir: where to write; by default a new folder in runs/pixels.
      resume: a run's folder, to continue it as it was configured; --seeds may be raised.

    Raises:
      ValueError: a number out of range, or a cell that does not exist.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    data: str | None = None
    permutation: int | None = None
    pool: int = 4
    limit: int | None = None
    cells: str = "gru,lstm,simple"
    blocks: int = 0
    hidden_dim: int = 64
    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 5e-3
    clip_norm: float | None = 1.0
    seeds: int = 1
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

    def __post_init__(self):
        check_numbers(
            self,
            counts=("pool", "limit", "hidden_dim", "steps", "batch_size", "seeds"),
            positive=("learning_rate", "clip_norm"),
        )
        find_anywhere(self, "data")
        if self.blocks < 0:
            raise ValueError(f"--blocks must be 0 or more, got {self.blocks}.")
        if self.permutation is not None and self.permutation < 0:
            raise ValueError(f"--permutation must be a seed of 0 or more, got {self.permutation}.")
        cells(self.cells, self.hidden_dim)


COMMAND = Command(
    "pixels",
    presets={
        "smoke": Config(preset="smoke", cells="gru", hidden_dim=16, steps=60, batch_size=32, limit=500),
        "default": Config(),
        "paper": Config(
            preset="paper",
            pool=1,
            cells="gru,lstm,lstm-chrono,simple,indrnn,mingru,lru",
            hidden_dim=128,
            steps=50_000,
            learning_rate=1e-3,
            seeds=3,
        ),
    },
    extendable=("seeds",),
)
