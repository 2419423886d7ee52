# SPDX-License-Identifier: Apache-2.0
"""NumPy equations that the diagnostics are held to."""

import jax
import numpy as np

import seqjax
from seqjax.cells.indrnn import IndRNNParams
from tests.common import F64, sigmoid

LEAKY = seqjax.IndRNN(1, activation="identity", dtypes=F64)


def leaky(a):
    """Params of h_t = a h_{t-1} + x_t."""
    return IndRNNParams(np.ones((1, 1)), np.array([a]), np.zeros(1))


def lstm_gates(params, h, c, x):
    i, f, g, o = np.split(x @ params.w_in + h @ params.w_rec + params.bias, 4, axis=-1)
    return sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)


def lstm_step(params, h, c, x, delta=0.0):
    """One step of an LSTM, with `delta` added to c_t before h_t is made of it."""
    i, f, g, o = lstm_gates(params, h, c, x)
    c = f * c + i * g + delta
    return o * np.tanh(c), c


def random_params(cell, in_dim, seed=0, scale=0.6):
    """Params like the cell's, of NumPy numbers."""
    like = jax.eval_shape(lambda key: cell.init(key, in_dim), jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(0, scale, leaf.shape), like)


def differences(function, point, step=1e-6):
    """The Jacobian `[outputs, inputs]` of a function of one vector, by central differences."""
    columns = []
    for k in range(point.size):
        shift = np.zeros(point.size)
        shift[k] = step
        columns.append((function(point + shift) - function(point - shift)) / (2 * step))
    return np.stack(columns, axis=-1)
