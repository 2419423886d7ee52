# SPDX-License-Identifier: Apache-2.0
"""What any forecaster must beat: persistence, and linear least squares in closed form. And how all are judged."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from experiments.forecast.data import HORIZON, POSITIONS, Task, targets

Forecaster = Callable[[np.ndarray], np.ndarray]
"""Of series `[count, at least window]`: forecasts `[count, steps, HORIZON]`."""


def persistence(series: np.ndarray, window: int) -> np.ndarray:
    """The last value seen, ten times: ŷ_t = (x_t, ..., x_t).

    Args:
      series: `[count, at least window]`.
      window: steps that may be seen.

    Returns:
      `[count, window, HORIZON]`.
    """
    return np.repeat(series[:, :window, None], HORIZON, axis=-1)


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """At every step t its own linear map of all values seen so far, ŷ_t = W_t (1, x_0, ..., x_t).

    Nothing is tuned and no lag is chosen: early steps see few values, as a recurrent model does,
    and the last one sees the whole window. `weights [window, 1 + window, HORIZON]` float64 are zero
    where a value is yet to come.
    """

    weights: np.ndarray

    @classmethod
    def fit(cls, series: np.ndarray) -> "LeastSquares":
        """The closed-form solution for `series [count, window + HORIZON]`, at every step.

        The inputs of step t are the first columns of those of step t + 1, so one QR
        decomposition serves all steps: its leading blocks are theirs.
        """
        window = series.shape[1] - HORIZON
        q, r = np.linalg.qr(_with_one(series, window))
        aims = np.einsum("nd,nth->tdh", q, targets(series, window).astype(np.float64), optimize=True)
        weights = np.zeros((window, 1 + window, HORIZON))
        for t in range(window):
            seen = t + 2
            weights[t, :seen] = np.linalg.lstsq(r[:seen, :seen], aims[t, :seen], rcond=None)[0]
        return cls(weights)

    def __call__(self, series: np.ndarray) -> np.ndarray:
        """Forecasts `[count, window, HORIZON]` at every step of `series [count, at least window]`."""
        return np.einsum("nd,tdh->nth", _with_one(series, len(self.weights)), self.weights, optimize=True)


def _with_one(series: np.ndarray, window: int) -> np.ndarray:
    """A column of ones, then the values of the window, float64: `[count, 1 + window]`."""
    return np.concatenate([np.ones((len(series), 1)), series[:, :window].astype(np.float64)], axis=1)


def fit(task: Task) -> dict[str, Forecaster]:
    """The baselines by name; they forecast at every step of the window."""
    return {
        "persistence": functools.partial(persistence, window=task.window),
        "least squares": LeastSquares.fit(task.train),
    }


def score(forecasts: np.ndarray, truth: np.ndarray, std: float) -> dict[str, float]:
    """How good forecasts are, all `[count, steps, HORIZON]` in scaled units.

    Args:
      forecasts: judged.
      truth: what came.
      std: of the data, in their own unit.

    Returns:
      mse: mean squared error over all steps at which forecasts are made, in scaled units.
      mse_last: the same at the last of them, the mean of ten values.
      mae_last: mean absolute error there, in the data's own unit.
    """
    errors = np.asarray(forecasts, np.float64) - np.asarray(truth, np.float64)
    last = errors[:, -1]
    measures = {"mse": np.mean(errors**2), "mse_last": np.mean(last**2), "mae_last": np.mean(np.abs(last)) * std}
    return {name: float(value) for name, value in measures.items()}


def judge(task: Task, at: str, forecaster: Forecaster) -> dict[str, float]:
    """The scores over validation and test windows, `valid_mse` to `test_mae_last`.

    Args:
      task: the windows.
      at: the steps at which there are forecasts, a key of `data.POSITIONS`.
      forecaster: judged.
    """
    measures: dict[str, float] = {}
    for part, series in (("valid", task.valid), ("test", task.test)):
        truth = targets(series, task.window)[:, POSITIONS[at]]
        found = score(forecaster(series), truth, task.scaler.std)
        measures |= {f"{part}_{name}": value for name, value in found.items()}
    return measures


def reach(task: Task, at: str) -> Mapping[str, Mapping[str, float]]:
    """What each baseline reaches at some steps."""

    def only(forecaster: Forecaster) -> Forecaster:
        return lambda series: forecaster(series)[:, POSITIONS[at]]

    return {name: judge(task, at, only(forecaster)) for name, forecaster in fit(task).items()}
