# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, Self

import tyro

PROGRAM = "scripts/run forecast"


@dataclasses.dataclass(frozen=True)
class Config:
    """Ten-steps-ahead, sequence-to-sequence forecasting: trains recurrent models, or forecasts with one.

    Args:
      preset: smoke (seconds, to see that it runs), default (about 3 minutes for all models on
        2 cores), paper (20 epochs, as published).
      data: weather (the default), synthetic, or the path of a CSV file with a header. With
        --predict the default is what the model was trained on.
      column: of the CSV file, or of the weather data.
      station: whose weather.
      model: one, or all of them.
      window: steps that a model sees; by default 72 for weather and 50 otherwise.
      epochs: passes over the training windows.
      batch_size: windows in a batch.
      hidden_dim: units of each of the two recurrent layers.
      learning_rate: of Adam; by default as published, 0.01 for the plain simple RNN and 0.001 otherwise.
      clip_norm: the global norm that gradients are clipped to, or None.
      limit: use so many windows of each part at most; None uses all.
      seed: of the initial weights and of the order of the windows.
      run_dir: where to write; by default a new folder in runs/forecast.
      resume: a run's folder, to continue it as it was configured; only --epochs may be changed.
      predict: a run's folder, to write the forecasts of its model for --data as CSV and a plot.

    Raises:
      ValueError: a number out of range, or options that exclude each other.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    data: str | None = None
    column: str | None = None
    station: Literal["greensboro", "miami"] = "greensboro"
    model: Literal[
        "all", "simple", "simple-batch", "simple-layer", "lstm", "lstm-generic", "peephole", "gru", "conv-gru"
    ] = "all"
    window: int | None = None
    epochs: int = 8
    batch_size: int = 32
    hidden_dim: int = 20
    learning_rate: float | None = None
    clip_norm: float | None = 1.0
    limit: int | None = None
    seed: int = 0
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    predict: pathlib.Path | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "hidden_dim", "limit", "window"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {given}.")
        for name in ("learning_rate", "clip_norm"):
            given = getattr(self, name)
            if given is not None and not 0 < given < float("inf"):
                raise ValueError(f"{_flag(name)} must be a number above 0, or None, got {given}.")
        if self.window is not None and (self.window < 4 or self.window % 2):
            raise ValueError(
                f"--window must be even and at least 4, got {self.window}: the convolution of width 4 and "
                "stride 2 then ends at the window's last step, where all models are compared."
            )
        if self.predict is not None and (self.resume is not None):
            raise ValueError("--predict and --resume exclude each other: a model is trained first, then it forecasts.")

    @property
    def source(self) -> str:
        """Where the series come from, the default being named."""
        return self.data or "weather"

    @property
    def steps_seen(self) -> int:
        """Steps of a window: as asked for, or three days of weather, or the published 50."""
        if self.window is not None:
            return self.window
        return 72 if self.source == "weather" else 50

    def to_json(self) -> dict[str, Any]:
        """What decides the numbers, as a run keeps it; where it is written is not a part of it."""
        fields = dataclasses.asdict(self)
        for place in ("run_dir", "resume", "predict"):
            del fields[place]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
          ValueError: fields of another version of this experiment.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"The run's configuration has unknown fields: {', '.join(sorted(unknown))}.")
        return cls(**fields)


PRESETS = {
    "smoke": Config(preset="smoke", epochs=1, limit=256),
    "default": Config(),
    "paper": Config(preset="paper", epochs=20),
}


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration that a command line asks for: a preset, or a run to resume, and what the flags change.

    Raises:
      ValueError: a flag's value out of range; a run that is not there; a resumed run with other options.
      SystemExit: `--help`, or a flag that does not exist.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    first.add_argument("--resume", type=pathlib.Path)
    chosen, _ = first.parse_known_args(args)
    if chosen.resume is None:
        return _parse(args, PRESETS.get(chosen.preset, Config()))
    saved = load(chosen.resume)
    config = _parse(args, saved)
    changed = {name for name, value in config.to_json().items() if value != getattr(saved, name)} - {"epochs"}
    if changed or config.run_dir is not None:
        flags = ", ".join(_flag(name) for name in sorted(changed | ({"run_dir"} if config.run_dir else set())))
        raise ValueError(f"A resumed run keeps its own configuration but for --epochs; leave out {flags}.")
    if config.epochs < saved.epochs:
        raise ValueError(f"A resumed run can only become longer: --epochs {config.epochs}, but it has {saved.epochs}.")
    return config


def _parse(args: Sequence[str] | None, default: Config) -> Config:
    return tyro.cli(Config, prog=PROGRAM, args=args, default=default, config=(tyro.conf.FlagConversionOff,))


def load(run_dir: pathlib.Path) -> Config:
    """The configuration of the run in `run_dir`.

    Raises:
      ValueError: there is none, or it is not one of this experiment.
    """
    path = run_dir / "config.json"
    try:
        return Config.from_json(json.loads(path.read_text()))
    except OSError:
        raise ValueError(f"{run_dir} is not a run of this experiment: it has no readable config.json.") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a run: {error}.") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
