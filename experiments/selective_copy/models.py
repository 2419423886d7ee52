# SPDX-License-Identifier: Apache-2.0
"""The models of selective copying: residual blocks around one cell."""

from collections.abc import Callable, Mapping

import seqjax
from experiments.selective_copy.task import model
from experiments.study.generated import Entry
from seqjax.base import Cell
from seqjax.initializers import Chrono

CELLS: Mapping[str, Callable[[int, int], Cell]] = {
    "gru": lambda units, length: seqjax.GRU(units),
    "lstm": lambda units, length: seqjax.LSTM(units),
    "mingru": lambda units, length: seqjax.MinGRU(units),
    "minlstm": lambda units, length: seqjax.MinLSTM(units),
    "minlstm-chrono": lambda units, length: seqjax.MinLSTM(units, bias_init=Chrono(max(length, 3))),
    "rglru": lambda units, length: seqjax.RGLRU(units),
    "lru": lambda units, length: seqjax.LRU(units),
}
NOTES = {"minlstm-chrono": "b_f = -b_i = log U(1, L - 1)", "lru": "its gates do not see the input"}
PUBLISHED = {"mingru": "0.995", "minlstm": "0.960"}
"""Accuracy of three layers at L = 4,096: L. Feng et al. (2024), table 1."""


def entries(layers: int, width: int) -> dict[str, Entry]:
    """The models with so many blocks of so many features, by the names of their cells."""

    def entry(name: str, cell: Callable[[int, int], Cell]) -> Entry:
        return Entry(
            build=lambda units, length: model(cell(units, length), layers, width),
            learning_rate=3e-3,
            published=PUBLISHED.get(name, ""),
            note=NOTES.get(name, ""),
        )

    return {name: entry(name, cell) for name, cell in CELLS.items()}
