# SPDX-License-Identifier: Apache-2.0
"""Layers: maps from sequence to sequence that compose."""

from seqjax.layers.batch_major import BatchMajor
from seqjax.layers.bidirectional import Bidirectional
from seqjax.layers.compose import Residual, Serial
from seqjax.layers.conv import Conv1D
from seqjax.layers.explain import explain
from seqjax.layers.fold import fold
from seqjax.layers.last import Last
from seqjax.layers.pointwise import Activation, Dense, Embed, LayerNorm
from seqjax.layers.regularize import BatchNorm, Dropout, calibrate
from seqjax.layers.rnn import RNN
from seqjax.layers.wavefront import Wavefront

__all__ = [
    "RNN",
    "Activation",
    "BatchMajor",
    "BatchNorm",
    "Bidirectional",
    "Conv1D",
    "Dense",
    "Dropout",
    "Embed",
    "Last",
    "LayerNorm",
    "Residual",
    "Serial",
    "Wavefront",
    "calibrate",
    "explain",
    "fold",
]
