# SPDX-License-Identifier: Apache-2.0
"""Cells: one recurrence per file."""

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
