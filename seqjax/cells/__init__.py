# SPDX-License-Identifier: Apache-2.0
"""Cells: one recurrence per file.

A cell of your own needs `init`, `initial_carry` and `step`. One that is affine in its carry, such as
h_t = u ⊗ h_{t-1} + x_t, may say so, for engines that run all of its steps at once:

>>> from dataclasses import dataclass
>>> import jax.numpy as jnp, seqjax
>>> from seqjax.testing import check_cell
>>> @dataclass(frozen=True)
... class Sum(seqjax.Cell):
...     @property
...     def capabilities(self):
...         return frozenset({"affine"})
...     def init(self, key, in_dim):
...         return jnp.full(in_dim, 0.9, "float32")
...     def initial_carry(self, u, batch_shape):
...         return jnp.zeros((*batch_shape, *u.shape), u.dtype)
...     def step(self, u, h, x, key=None):
...         h = u * h + x
...         return h, h
...     def coefficients(self, u, x):
...         return u, x
...     def readout(self, u, h, x):
...         return h
>>> check_cell(Sum(), engine=seqjax.engines.Associative())

A cell may also bring its own reverse pass, here for h_t = tanh(u ⊗ h_{t-1} + x_t), which leaves the gradient of u
to one product over all steps:

>>> @dataclass(frozen=True)
... class Tanh(seqjax.Cell):
...     @property
...     def capabilities(self):
...         return frozenset({"adjoint"})
...     def init(self, key, in_dim):
...         return jnp.full(in_dim, 0.9, "float32")
...     def initial_carry(self, u, batch_shape):
...         return jnp.zeros((*batch_shape, *u.shape), u.dtype)
...     def step(self, u, h, x, key=None):
...         h = jnp.tanh(u * h + x)
...         return h, h
...     def step_residuals(self, u, h, x):
...         after, y = self.step(u, h, x)
...         return after, y, (h, y)
...     def step_transpose(self, u, residuals, d_h, d_y):
...         d_x = (d_h + d_y) * (1 - residuals[1] ** 2)
...         return u * d_x, d_x, ()
...     def accumulate(self, u, residuals, d_xs, extras):
...         return jnp.einsum("...n,...n->n", residuals[0], d_xs)
>>> check_cell(Tanh(), engine=seqjax.engines.Scan())
"""

from seqjax.cells.diagonal import DiagonalGRU, DiagonalLSTM, DiagonalLSTMCarry, DiagonalParams
from seqjax.cells.function import LambdaCell
from seqjax.cells.gru import GRU, GRUCarry, GRUParams, gru_step
from seqjax.cells.heads import MultiHead
from seqjax.cells.indrnn import IndRNN, IndRNNCarry, IndRNNParams, indrnn_step
from seqjax.cells.lru import LRU, LRUCarry, LRUInput, LRUParams, lru_coefficients, lru_readout
from seqjax.cells.lstm import LSTM
from seqjax.cells.lstm_equations import LSTMCarry, LSTMParams, lstm_step
from seqjax.cells.minimal import (
    MinCarry,
    MinGRU,
    MinGRUParams,
    MinLSTM,
    MinLSTMParams,
    min_gru_coefficients,
    min_lstm_coefficients,
)
from seqjax.cells.noise import RecurrentDropout, Zoneout
from seqjax.cells.peephole import PeepholeLSTM
from seqjax.cells.rg_lru import RGLRU, RGLRUCarry, RGLRUInput, RGLRUParams, rg_lru_coefficients
from seqjax.cells.simple import Simple, SimpleCarry, SimpleParams, simple_step

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "DiagonalGRU",
    "DiagonalLSTM",
    "DiagonalLSTMCarry",
    "DiagonalParams",
    "GRUCarry",
    "GRUParams",
    "IndRNN",
    "IndRNNCarry",
    "IndRNNParams",
    "LRUCarry",
    "LRUInput",
    "LRUParams",
    "LSTMCarry",
    "LSTMParams",
    "LambdaCell",
    "MinCarry",
    "MinGRU",
    "MinGRUParams",
    "MinLSTM",
    "MinLSTMParams",
    "MultiHead",
    "PeepholeLSTM",
    "RGLRUCarry",
    "RGLRUInput",
    "RGLRUParams",
    "RecurrentDropout",
    "Simple",
    "SimpleCarry",
    "SimpleParams",
    "Zoneout",
    "gru_step",
    "indrnn_step",
    "lru_coefficients",
    "lru_readout",
    "lstm_step",
    "min_gru_coefficients",
    "min_lstm_coefficients",
    "rg_lru_coefficients",
    "simple_step",
]
