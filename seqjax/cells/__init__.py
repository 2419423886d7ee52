# SPDX-License-Identifier: Apache-2.0
"""Cells: one recurrence per file."""

from seqjax.cells.diagonal import DiagonalGRU, DiagonalLSTM
from seqjax.cells.function import LambdaCell
from seqjax.cells.gru import GRU, GRUCarry, GRUParams, gru_step
from seqjax.cells.heads import MultiHead
from seqjax.cells.indrnn import IndRNN, indrnn_step
from seqjax.cells.lru import LRU
from seqjax.cells.lstm import LSTM
from seqjax.cells.lstm_equations import LSTMCarry, LSTMParams, lstm_step
from seqjax.cells.minimal import MinGRU, MinLSTM
from seqjax.cells.noise import RecurrentDropout, Zoneout
from seqjax.cells.peephole import PeepholeLSTM
from seqjax.cells.rg_lru import RGLRU
from seqjax.cells.simple import Simple, SimpleCarry, SimpleParams, simple_step

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "DiagonalGRU",
    "DiagonalLSTM",
    "GRUCarry",
    "GRUParams",
    "IndRNN",
    "LSTMCarry",
    "LSTMParams",
    "LambdaCell",
    "MinGRU",
    "MinLSTM",
    "MultiHead",
    "PeepholeLSTM",
    "RecurrentDropout",
    "Simple",
    "SimpleCarry",
    "SimpleParams",
    "Zoneout",
    "gru_step",
    "indrnn_step",
    "lstm_step",
    "simple_step",
]
