# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Self

from experiments.forecast.models import GROUPS, MODELS
from experiments.study.command import Command, check_numbers, find_anywhere


@dataclasses.dataclass(frozen=True)
class Config:
    """Ten-steps-ahead, sequence-to-sequence forecasting: trains recurrent models, or forecasts with one.

    Args:
      preset: smoke (seconds, to see that it runs), default (about 3 minutes for nine models on
        2 cores), paper (the published task, 20 epochs, all models, 3 seeds), ablation
        (normalization, activation and clipping), explosion (a training that explodes, and the same one clipped).
      data: weather (the default), synthetic, or the path of a CSV file with a header. With
        --predict the default is what the model was trained on.
      column: of the CSV file, or of the weather data.
      station: whose weather.
      model: one, several with commas between them, or standard, cells, all, ablation, explosion.
      window: steps that a model sees; by default 72 for weather and 50 otherwise.
      epochs: passes over the training windows.
      seeds: runs of each model, with seeds 0, 1, ... of the weights and of the order of the windows.
      batch_size: windows in a batch.
      hidden_dim: units of each of the two recurrent layers.
      optimizer: Adam, or gradient descent with a momentum of 0.9.
      learning_rate: by default that of each model: 0.01 for `simple`, `simple-layer`, `simple-relu`, `simple-he`
        and all of `cells`, 0.001 for the others.
      clip_norm: the global norm that gradients are clipped to, or None.
      limit: use so many windows of each part at most; None uses all.
      run_dir: where to write; by default a new folder in runs/forecast.
      resume: a run's folder, to continue it as it was configured; --epochs and --seeds may be raised.
      predict: a run's folder, to write the forecasts of its model for --data as CSV and a plot.

    Raises:
      ValueError: a number out of range, a model that there is not, or options that exclude each other.
    """

    preset: Literal["smoke", "default", "paper", "ablation", "explosion"] = "default"
    data: str | None = None
    column: str | None = None
    station: Literal["greensboro", "miami"] = "greensboro"
    model: str = "standard"
    window: int | None = None
    epochs: int = 8
    seeds: int = 1
    batch_size: int = 32
    hidden_dim: int = 20
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float | None = None
    clip_norm: float | None = 1.0
    limit: int | None = None
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    predict: pathlib.Path | None = None

    def __post_init__(self):
        counts = ("epochs", "seeds", "batch_size", "hidden_dim", "limit", "window")
        check_numbers(self, counts=counts, positive=("learning_rate", "clip_norm"))
        if self.window is not None and (self.window < 4 or self.window % 2):
            raise ValueError(
                f"--window must be even and at least 4, got {self.window}: the convolution of width 4 and "
                "stride 2 then ends at the window's last step, where all models are compared."
            )
        if unknown := [name for name in self.names if name not in MODELS]:
            choices = ", ".join([*GROUPS, *MODELS])
            raise ValueError(f"--model has no {', '.join(unknown)!r}; choose from {choices}.")
        if self.predict is not None and (self.resume is not None):
            raise ValueError("--predict and --resume exclude each other: a model is trained first, then it forecasts.")
        if self.source not in ("weather", "synthetic"):
            find_anywhere(self, "data")

    @classmethod
    def of(cls, trained: Mapping[str, Any]) -> Self:
        """The data that a model was trained on, by the `config` in its checkpoint's metadata."""
        return cls(**{name: trained[name] for name in ("data", "column", "station")})

    @property
    def names(self) -> list[str]:
        """The models asked for, each once."""
        asked = [name.strip() for name in self.model.split(",")]
        return list(dict.fromkeys(name for group in asked for name in GROUPS.get(group, (group,))))

    @property
    def source(self) -> str:
        """Where the series come from, the default being named."""
        return "weather" if self.data is None else self.data

    @property
    def steps_seen(self) -> int:
        """Steps of a window: as asked for, or three days of weather, or the published 50."""
        if self.window is not None:
            return self.window
        return 72 if self.source == "weather" else 50


COMMAND = Command(
    "forecast",
    {
        "smoke": Config(preset="smoke", epochs=1, limit=256),
        "default": Config(),
        "paper": Config(preset="paper", data="synthetic", model="all", epochs=20, seeds=3),
        "ablation": Config(preset="ablation", data="synthetic", model="ablation", learning_rate=1e-2, seeds=3),
        "explosion": Config(
            preset="explosion",
            data="synthetic",
            model="explosion",
            window=200,
            epochs=2,
            seeds=3,
            optimizer="sgd",
            learning_rate=0.1,
        ),
    },
    extendable=("epochs", "seeds"),
    actions=("predict",),
)
