# SPDX-License-Identifier: Apache-2.0
"""From series to a forecasting task: split, scaling, windows, targets, batches."""

import dataclasses
import functools
import hashlib
from typing import Any, Self

import numpy as np

from experiments.forecast import sources

HORIZON = 10
"""How many steps ahead every forecast goes."""
POSITIONS = {"": slice(None), "[3::2]": slice(3, None, 2)}
"""The steps of a window at which forecasts are made: all, or those at which a convolution of width 4 and
stride 2 has an output."""
SYNTHETIC_SPLIT = (7_000, 2_000, 1_000)
"""Training, validation and test series of the synthetic task, as published."""
TIME_SPLIT = (0.7, 0.9)
"""Where validation begins and where it ends, as parts of a real series."""


@dataclasses.dataclass(frozen=True)
class Scaler:
    """`scaled = (value - mean) / std`, with both taken from the training part alone."""

    mean: float = 0.0
    std: float = 1.0

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Values in scaled units, float32."""
        return ((values - self.mean) / self.std).astype(np.float32)

    def unscale(self, scaled: np.ndarray) -> np.ndarray:
        """Values in the data's own unit, float64."""
        return np.asarray(scaled, np.float64) * self.std + self.mean


def labelled(name: str, unit: str) -> str:
    """The name with the unit, if there is one."""
    return f"{name} ({unit})" if unit else name


@dataclasses.dataclass(frozen=True)
class Task:
    """Windows to learn from and to be judged on.

    `train`, `valid` and `test` are `[count, window + HORIZON]` float32 in scaled units: what a
    model sees, and the ten values after it.
    """

    name: str
    unit: str
    window: int
    scaler: Scaler
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @property
    def label(self) -> str:
        """The name with the unit, if there is one."""
        return labelled(self.name, self.unit)

    def limited(self, count: int | None) -> Self:
        """The first `count` windows of each part, or all."""
        parts = {name: getattr(self, name)[:count] for name in ("train", "valid", "test")}
        return dataclasses.replace(self, **parts)

    def describe(self) -> dict[str, Any]:
        """What the data was, as JSON: enough to scale other data alike, and to know this again."""
        digest = hashlib.sha256()
        for part in (self.train, self.valid, self.test):
            digest.update(np.ascontiguousarray(part[:, 0]).tobytes() + np.ascontiguousarray(part[-1]).tobytes())
        return {
            "name": self.name,
            "unit": self.unit,
            "window": self.window,
            "horizon": HORIZON,
            "scaler": dataclasses.asdict(self.scaler),
            "windows": {"train": len(self.train), "valid": len(self.valid), "test": len(self.test)},
            "sha256": digest.hexdigest(),
        }


def synthetic_task(window: int = 50) -> Task:
    """The published task: 10,000 series under seed 42, split 7,000 / 2,000 / 1,000, not scaled."""
    series = sources.synthetic(sum(SYNTHETIC_SPLIT), window + HORIZON)
    train, valid, test = np.split(series, np.cumsum(SYNTHETIC_SPLIT)[:-1])
    return Task("synthetic series", "", window, Scaler(), train, valid, test)


def series_task(series: sources.Series, window: int) -> Task:
    """Every window of a real series, split by time: 70% training, 20% validation, 10% test.

    No window reaches over a split, and the scaling is that of the training part.

    Raises:
      ValueError: a part is shorter than one window and its ten values; the training part is constant, or its
        standard deviation is no number that one can divide by.
    """
    cuts = [round(len(series.values) * part) for part in TIME_SPLIT]
    parts = np.split(series.values, cuts)
    shortest = min(len(part) for part in parts)
    if shortest < window + HORIZON:
        raise ValueError(
            f"{series.name} has {len(series.values)} rows, too few for a window of {window} and {HORIZON} steps ahead: "
            f"the shortest part of the split 70/20/10 has {shortest} and needs {window + HORIZON}; "
            f"{10 * (window + HORIZON)} rows are enough, or choose a smaller --window."
        )
    if (parts[0] == parts[0][0]).all():  # rounding gives a constant 1.1 a standard deviation
        raise ValueError(
            f"{series.name} is constant ({parts[0][0]:g}) in its training part; there is nothing to learn."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        scaler = Scaler(float(parts[0].mean()), float(parts[0].std()))
    if not 0 < scaler.std < np.inf:
        raise ValueError(
            f"{series.name} cannot be scaled: the standard deviation of its training part is {scaler.std:g}, and must "
            "be finite and above 0; give the series in another unit."
        )
    windows = [np.lib.stride_tricks.sliding_window_view(scaler.scale(part), window + HORIZON) for part in parts]
    return Task(series.name, series.unit, window, scaler, *windows)


def load_series(data: str, column: str | None = None, station: str = "greensboro") -> sources.Series:
    """The real series that `--data`, `--column` and `--station` name."""
    if data == "weather":
        return sources.weather(station, column or "temperature")
    return sources.read_csv(data, column)


def load_task(data: str, column: str | None, station: str, window: int) -> Task:
    """The task that `--data`, `--column`, `--station` and `--window` name.

    Raises:
      ValueError: there is no such data, or it cannot be learnt from.
    """
    if data != "synthetic":
        return series_task(load_series(data, column, station), window)
    if column is not None:
        raise ValueError("--column is for weather and CSV files; the synthetic series have none.")
    return synthetic_task(window)


def targets(series: np.ndarray, window: int) -> np.ndarray:
    """At every step t of the window the next ten values, x[t + 1] to x[t + 10].

    Args:
      series: `[count, window + HORIZON]`.
      window: steps that a model sees.

    Returns:
      `[count, window, HORIZON]`, a view.

    >>> targets(np.arange(13)[None], 3)[0, :, 0].tolist()
    [1, 2, 3]
    """
    return np.lib.stride_tricks.sliding_window_view(series[:, 1 : window + HORIZON], HORIZON, axis=1)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch's windows."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def batch(
    series: np.ndarray, window: int, positions: slice, *, size: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The batch of one training step: a pure function of `(seed, step)`, so that a resumed run sees the same.

    Each epoch is a permutation of the windows in full batches; the few left over wait for a later epoch.

    Args:
      series: `[count, window + HORIZON]`.
      window: steps that a model sees.
      positions: the steps of the window at which it forecasts.
      size: windows in a batch, B.
      seed: of the order.
      step: counted over all epochs from 0.

    Returns:
      `xs [window, B, 1]` and `ys [steps at positions, B, HORIZON]`, both float32 and time-major.
    """
    epoch, index = divmod(step, len(series) // size)
    rows = series[_order(seed, epoch, len(series))[index * size : (index + 1) * size]]
    return time_major(rows, window, positions)


def time_major(rows: np.ndarray, window: int, positions: slice) -> tuple[np.ndarray, np.ndarray]:
    """`rows [B, window + HORIZON]` as `xs [window, B, 1]` and `ys [steps at positions, B, HORIZON]`."""
    ys = targets(rows, window)[:, positions]
    return np.ascontiguousarray(rows[:, :window].T[..., None]), np.ascontiguousarray(ys.swapaxes(0, 1))
