# SPDX-License-Identifier: Apache-2.0
"""What any forecaster must beat: persistence, and linear least squares in closed form. And how all are judged."""

import dataclasses

import numpy as np

from experiments.forecast.data import HORIZON, Scaler, targets


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

    @property
    def parameter_count(self) -> int:
        """Weights and biases of all steps together."""
        window = len(self.weights)
        return HORIZON * sum(t + 2 for t in range(window))

    def __call__(self, series: np.ndarray) -> np.ndarray:
        """Forecasts `[count, window, HORIZON]` at every step of `series [count, at least window]`."""
        return np.einsum("nd,tdh->nth", _with_one(series, len(self.weights)), self.weights, optimize=True)


def _with_one(series: np.ndarray, window: int) -> np.ndarray:
    """A column of ones, then the values of the window, float64: `[count, 1 + window]`."""
    return np.concatenate([np.ones((len(series), 1)), series[:, :window].astype(np.float64)], axis=1)


@dataclasses.dataclass(frozen=True)
class Score:
    """How good forecasts are.

    Args:
      mse: mean squared error over all steps at which forecasts are made, in scaled units.
      mse_last: the same at the last of them, the mean of ten values.
      mae_last: mean absolute error there, in the data's own unit.
    """

    mse: float
    mse_last: float
    mae_last: float


def score(forecasts: np.ndarray, truth: np.ndarray, scaler: Scaler) -> Score:
    """Judges `forecasts` by `truth`, both `[count, steps, HORIZON]` in scaled units."""
    errors = np.asarray(forecasts, np.float64) - np.asarray(truth, np.float64)
    last = errors[:, -1]
    return Score(float(np.mean(errors**2)), float(np.mean(last**2)), float(np.mean(np.abs(last)) * scaler.std))
