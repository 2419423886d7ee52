# SPDX-License-Identifier: Apache-2.0
"""Forecasts of a model for any number of windows, and population statistics for batch normalization."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Layer, Params

CHUNK = 256
"""Windows that are forecast at once; the last chunk is padded, so that one compilation serves all."""


def forecaster(model: Layer, window: int) -> Callable[[Params, np.ndarray], np.ndarray]:
    """A function `(params, series [count, at least window]) -> forecasts [count, steps, HORIZON]`."""

    @jax.jit
    def chunk(params: Params, xs: jax.Array) -> jax.Array:
        return model.apply(params, model.initial_carry(params, (CHUNK,)), xs)[1]

    def forecasts(params: Params, series: np.ndarray) -> np.ndarray:
        pieces = []
        for start in range(0, len(series), CHUNK):
            rows = series[start : start + CHUNK, :window]
            padded = np.zeros((CHUNK, window), np.float32)
            padded[: len(rows)] = rows
            ys = chunk(params, jnp.asarray(padded.T[..., None]))
            pieces.append(np.asarray(ys).swapaxes(0, 1)[: len(rows)])
        return np.concatenate(pieces)

    return forecasts


def calibrator(model: Layer, train: np.ndarray, window: int) -> Callable[[Params], Params]:
    """A function that sets the population statistics of batch normalization from windows of all of `train`."""
    rows = train[:: -(-len(train) // (4 * CHUNK)), :window]
    xs = jnp.asarray(rows.T[..., None])
    return jax.jit(lambda params: model.calibrate(params, model.initial_carry(params, (len(rows),)), xs))


def parameter_count(params: Params) -> int:
    """How many numbers there are in `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
