# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for."""

import dataclasses
import pathlib
from typing import Literal

PROGRAM = "scripts/run diagnose"


@dataclasses.dataclass(frozen=True)
class Config:
    """Looks into a saved model and writes one HTML file of plots and findings.

    Args:
      checkpoint: a run's folder: of a model of an experiment, or of anything that `training.fit` wrote.
      data: for a model of `forecast`, weather, synthetic or a CSV file; for others the path of an .npy file
        `[T, B, ...]`. By default the last batch of the training, or random numbers where that is not kept.
      column: of the CSV file, or of the weather data.
      station: whose weather; greensboro by default.
      sequences: look at so many at most.
      out: the HTML file; by default diagnosis.html in the checkpoint's folder.
      seed: of random inputs.

    Raises:
      ValueError: a number out of range.
    """

    checkpoint: pathlib.Path
    data: str | None = None
    column: str | None = None
    station: Literal["greensboro", "miami"] | None = None
    sequences: int = 32
    out: pathlib.Path | None = None
    seed: int = 0

    def __post_init__(self):
        if self.sequences < 1:
            raise ValueError(f"--sequences must be at least 1, got {self.sequences}.")
