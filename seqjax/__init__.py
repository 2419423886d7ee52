# SPDX-License-Identifier: Apache-2.0
"""Recurrent sequence models in JAX, from fifty steps to a million.

Write a cell once as a pure step function, run it under any engine, get the same numbers.
"""

import importlib

from seqjax import cells, engines, initializers, layers
from seqjax.base import Cell, Engine, Layer
from seqjax.cells import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    DiagonalGRU,
    DiagonalLSTM,
    IndRNN,
    MinGRU,
    MinLSTM,
    PeepholeLSTM,
    Simple,
)
from seqjax.dtypes import DTypes
from seqjax.layers import (
    RNN,
    Activation,
    BatchMajor,
    BatchNorm,
    Bidirectional,
    Conv1D,
    Dense,
    Dropout,
    Embed,
    Last,
    LayerNorm,
    Residual,
    Serial,
    explain,
    fold,
)
from seqjax.sequences import mask_from_lengths

__version__ = "0.1.0"

_LAZY = ("diagnostics", "interop", "testing", "training")  # not needed to build and run a model: loaded on first use

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "RNN",
    "Activation",
    "BatchMajor",
    "BatchNorm",
    "Bidirectional",
    "Cell",
    "Conv1D",
    "DTypes",
    "Dense",
    "DiagonalGRU",
    "DiagonalLSTM",
    "Dropout",
    "Embed",
    "Engine",
    "IndRNN",
    "Last",
    "Layer",
    "LayerNorm",
    "MinGRU",
    "MinLSTM",
    "PeepholeLSTM",
    "Residual",
    "Serial",
    "Simple",
    "cells",
    "diagnostics",
    "engines",
    "explain",
    "fold",
    "initializers",
    "interop",
    "layers",
    "mask_from_lengths",
    "testing",
    "training",
]


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"seqjax.{name}")
    raise AttributeError(f"module 'seqjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
