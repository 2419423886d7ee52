# SPDX-License-Identifier: Apache-2.0
"""The classic of the field: a linear filter of the stimulus, and of past spikes, then a logistic function."""

import itertools
from collections.abc import Sequence

import numpy as np

from experiments.spikes.data import RESOLUTION

STIMULUS = (0, 10, 20, 30, 40, 50, 60, 80, 100, 120, 140, 160, 180, 200, 240, 280, 320, 360, 400, 500, 600, 800)
"""Edges of the windows, in bins before now, over which the level is averaged: half a millisecond, and wider."""
SPIKES = (0, 20, 40, 60, 70, 80, 90, 100, 120, 140, 160, 200, 250, 300, 400, 600, 800, 1200, 2000)
"""Edges of the windows in which past spikes are counted: a tenth of a millisecond to a tenth of a second."""
RIDGES = (1.0, 10.0, 100.0, 1000.0)
NEWTON_STEPS = 12


def lagged(series: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """Sums of `series [T]` over the windows [t - edge_{k+1} + 1, t - edge_k], `[T, K]`; before its start it is 0.

    >>> lagged(np.array([1.0, 2.0, 4.0]), (0, 1, 3)).tolist()
    [[1.0, 0.0], [2.0, 1.0], [4.0, 3.0]]
    """
    total = np.concatenate([np.zeros(edges[-1]), np.cumsum(series, dtype=np.float64)])
    before = [total[edges[-1] - edge : len(total) - edge] for edge in edges]  # the sum of all up to t - edge
    return np.stack([new - old for new, old in itertools.pairwise(before)], axis=1)


def design(inputs: np.ndarray) -> np.ndarray:
    """What each pair of bins is predicted from, `[N / 2, B, K]`, of `inputs [N, B, 1 or 2]`: levels, past spikes."""
    edges = (STIMULUS, SPIKES)[: inputs.shape[-1]]
    lanes = [
        np.concatenate([lagged(inputs[:, b, k], edges[k]) for k in range(len(edges))], axis=1)
        for b in range(inputs.shape[1])
    ]
    return np.stack(lanes, axis=1)[RESOLUTION - 1 :: RESOLUTION]


def fit(xs: np.ndarray, ys: np.ndarray, ridge: float) -> np.ndarray:
    """Weights `[K + 1]`, the last one the bias, of the logistic regression of `ys [T]` on `xs [T, K]`.

    By Newton's method on the log likelihood less ridge / 2 · |w|²; the bias is free.
    """
    rate = ys.mean()
    w = np.append(np.zeros(xs.shape[1]), np.log(rate / (1 - rate)))
    penalty = np.append(np.full(xs.shape[1], ridge), 0.0)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(xs @ w[:-1] + w[-1])))
        slope = np.append(xs.T @ (ys - p), (ys - p).sum()) - penalty * w
        weighed = xs * (p * (1 - p))[:, None]
        edge = weighed.sum(0)
        curvature = np.block([[xs.T @ weighed, edge[:, None]], [edge[None], (p * (1 - p)).sum()]])
        step = np.linalg.solve(curvature + np.diag(penalty), slope)
        w = w + step
        if np.abs(step).max() < 1e-8:
            break
    return w


def nats(w: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> float:
    """The mean cross-entropy of `ys` given `xs`."""
    logits = xs @ w[:-1] + w[-1]
    return float(np.mean(np.logaddexp(0, logits) - ys * logits))


def learn(xs: np.ndarray, ys: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Fits with the ridge that is best on what is held back, then once more on all.

    Args:
      xs, ys: `[T, B, K]` and `[T, B]`, what is learnt from, whose columns are scaled here and the weights back again.
      inner: `[T, B]` bool, False where a step is held back.
    """
    xs, ys, inner = xs.reshape(-1, xs.shape[-1]), ys.ravel(), inner.ravel()
    mean, std = xs.mean(0), xs.std(0) + 1e-9
    scaled = (xs - mean) / std
    costs = [nats(fit(scaled[inner], ys[inner], ridge), scaled[~inner], ys[~inner]) for ridge in RIDGES]
    w = fit(scaled, ys, RIDGES[int(np.argmin(costs))])
    slope = w[:-1] / std
    return np.append(slope, w[-1] - slope @ mean)
