# SPDX-License-Identifier: Apache-2.0
"""Cells: one recurrence a file."""

from seqjax.cells.function import LambdaCell
from seqjax.cells.gru import GRU, GRUCarry, GRUParams, gru_step
from seqjax.cells.lstm import LSTM, LSTMCarry, LSTMParams, lstm_step
from seqjax.cells.noise import RecurrentDropout, Zoneout
from seqjax.cells.peephole import PeepholeLSTM
from seqjax.cells.simple import Simple, SimpleCarry, SimpleParams, simple_step

__all__ = [
    "GRU",
    "LSTM",
    "GRUCarry",
    "GRUParams",
    "LSTMCarry",
    "LSTMParams",
    "LambdaCell",
    "PeepholeLSTM",
    "RecurrentDropout",
    "Simple",
    "SimpleCarry",
    "SimpleParams",
    "Zoneout",
    "gru_step",
    "lstm_step",
    "simple_step",
]
