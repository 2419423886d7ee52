# SPDX-License-Identifier: Apache-2.0
"""Residual blocks around a cell, in which the gated and diagonal recurrences are published."""

import seqjax
from seqjax.activations import Activation
from seqjax.base import Cell


def blocks(cell: Cell, count: int, width: int, activation: Activation | None = None) -> list[seqjax.Residual]:
    """So many blocks, one after the other: normalization, the recurrence, and a dense layer back to `width`.

    Args:
      cell: of each block.
      count: how many.
      width: features between blocks, as many as the input of the first has.
      activation: between the recurrence and the dense layer.

    >>> blocks(seqjax.MinGRU(64), 2, width=32)[0]
    Residual(Serial(LayerNorm(), RNN(MinGRU(64)), Dense(32)))
    """
    between = [] if activation is None else [seqjax.Activation(activation)]
    return [seqjax.Residual(seqjax.Serial(seqjax.LayerNorm(), seqjax.RNN(cell), *between, seqjax.Dense(width)))] * count
