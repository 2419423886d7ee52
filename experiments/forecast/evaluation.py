# SPDX-License-Identifier: Apache-2.0
"""Forecasts of a model for any number of windows, and population statistics for batch normalization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Array, Layer, Params

CHUNK = 256
"""Windows that are forecast at once; the last chunk is padded, so that one compilation serves all."""


def forecast(model: Layer, params: Params, series: np.ndarray, window: int) -> np.ndarray:
    """Forecasts `[count, steps, HORIZON]` from `series [count, at least window]`."""
    pieces = []
    for start in range(0, len(series), CHUNK):
        rows = series[start : start + CHUNK, :window]
        padded = np.zeros((CHUNK, window), np.float32)
        padded[: len(rows)] = rows
        ys = _apply(model, params, jnp.asarray(padded.T[..., None]))
        pieces.append(np.asarray(ys).swapaxes(0, 1)[: len(rows)])
    return np.concatenate(pieces)


def calibrate(model: Layer, params: Params, train: np.ndarray, window: int) -> Params:
    """Params with the population statistics of batch normalization, from windows of all of `train`."""
    rows = train[:: -(-len(train) // (4 * CHUNK)), :window]
    return _calibrate(model, params, jnp.asarray(rows.T[..., None]))


# equal models share what is compiled: all seeds of one, and the report after its training


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Layer, params: Params, xs: Array) -> Array:
    return model.apply(params, model.initial_carry(params, xs.shape[1:-1]), xs)[1]


@functools.partial(jax.jit, static_argnums=0)
def _calibrate(model: Layer, params: Params, xs: Array) -> Params:
    return model.calibrate(params, model.initial_carry(params, xs.shape[1:-1]), xs)
