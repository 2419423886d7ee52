# SPDX-License-Identifier: Apache-2.0
"""Cells by the names that command lines use."""

from collections.abc import Callable, Mapping, Sequence

import seqjax
from experiments.study.command import check_names
from seqjax.base import Cell
from seqjax.initializers import Chrono

CELLS: Mapping[str, Callable[[int], Cell]] = {
    "simple": seqjax.Simple,
    "simple-layer": lambda units: seqjax.Simple(units, normalize="layer"),
    "lstm": seqjax.LSTM,
    "lstm-chrono": lambda units: seqjax.LSTM(units, bias_init=Chrono(1000)),
    "lstm-layer": lambda units: seqjax.LSTM(units, normalize="layer"),
    "peephole": seqjax.PeepholeLSTM,
    "gru": seqjax.GRU,
    "gru-chrono": lambda units: seqjax.GRU(units, bias_init=Chrono(1000)),
    "gru-layer": lambda units: seqjax.GRU(units, normalize="layer"),
    "gru-after": lambda units: seqjax.GRU(units, reset="after"),
    "mingru": seqjax.MinGRU,
    "minlstm": seqjax.MinLSTM,
    "indrnn": seqjax.IndRNN,
    "lru": seqjax.LRU,
    "rglru": seqjax.RGLRU,
    "diagonal-gru": seqjax.DiagonalGRU,
    "diagonal-lstm": seqjax.DiagonalLSTM,
}
"""Each makes the cell of so many units, with the library's own initialization."""


def cells(names: str | Sequence[str], hidden_dim: int) -> dict[str, Cell]:
    """The cells of `names`, with `hidden_dim` units.

    Args:
      names: a list, or one string with commas.
      hidden_dim: units of each.

    Raises:
      ValueError: a name that is not known, or given twice.

    >>> cells("gru,lru", 8)
    {'gru': GRU(8), 'lru': LRU(8)}
    """
    asked = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    check_names("--cells", asked, CELLS)
    return {name: CELLS[name](hidden_dim) for name in asked}
