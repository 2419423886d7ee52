# SPDX-License-Identifier: Apache-2.0
"""The models: two recurrent layers and a dense one, at every step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import seqjax
from experiments.forecast.data import HORIZON
from seqjax import engines
from seqjax.activations import Activation
from seqjax.base import Cell, Engine


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the experiment.

    Args:
      cell: makes the cell of both recurrent layers from the number of units.
      engine: of both; `None` is the layer's own choice.
      between: whether a batch normalization follows each recurrent layer.
      causal: whether `Conv1D(units, width=8, padding="causal")` comes before each recurrent layer.
      activation: after each recurrent layer.
      strided: whether `Conv1D(units, width=4, stride=2, padding="valid")` comes first, so
        that the model forecasts at every second step from the fourth.
      clip: whether its gradients are clipped, see `--clip-norm`.
      learning_rate: of Adam. As published: 0.01 for `simple`, 0.001 for the rest of `STANDARD`, but for
        `simple-layer`, which learns too slowly at it. `CELLS`, `simple-relu` and `simple-he` have 0.01, too.
      published: validation MSE at the last step, as text, "" where there is none.
    """

    cell: Callable[[int], Cell]
    engine: Engine | None = None
    between: bool = False
    causal: bool = False
    activation: Activation | None = None
    strided: bool = False
    clip: bool = True
    learning_rate: float = 1e-3
    published: str = ""

    @property
    def at(self) -> str:
        """The steps of the window at which it forecasts, a key of `data.POSITIONS`."""
        return "[3::2]" if self.strided else ""

    def build(self, hidden_dim: int = 20) -> seqjax.Serial:
        """The model, with `hidden_dim` units in each recurrent layer."""
        options = {} if self.engine is None else {"engine": self.engine}
        layer = seqjax.RNN(self.cell(hidden_dim), **options)
        before = (seqjax.Conv1D(hidden_dim, width=8, padding="causal"),) if self.causal else ()
        normalized = (seqjax.BatchNorm(),) if self.between else ()
        activated = () if self.activation is None else (seqjax.Activation(self.activation),)
        recurrent = (*before, layer, *normalized, *activated)
        front = (seqjax.Conv1D(hidden_dim, width=4, stride=2, padding="valid"),) if self.strided else ()
        return seqjax.Serial(*front, *recurrent, *recurrent, seqjax.Dense(HORIZON))


def _simple(**options: Any) -> Callable[[int], Cell]:
    return lambda units: seqjax.Simple(units, **options)


STANDARD: Mapping[str, Entry] = {
    "simple": Entry(seqjax.Simple, learning_rate=1e-2, published="0.0096"),
    "simple-between": Entry(seqjax.Simple, between=True, published="0.0164"),
    "simple-batch": Entry(_simple(normalize="batch")),
    "simple-layer": Entry(_simple(normalize="layer"), learning_rate=1e-2, published="0.0121"),
    "lstm": Entry(seqjax.LSTM, published="0.0086"),
    "lstm-generic": Entry(seqjax.LSTM, engine=engines.Scan(adjoint=False), published="0.0086"),
    "peephole": Entry(seqjax.PeepholeLSTM),
    "gru": Entry(seqjax.GRU, published="0.0103"),
    "conv-gru": Entry(seqjax.GRU, strided=True, published="0.0080"),
}
"""Published figures: Géron, notebook 15 of Hands-On Machine Learning, 2nd edition. His batch
normalization stands between the layers, as in `simple-between`; in `simple-batch` it is inside the recurrence."""

UNCLIPPED, CONVOLVED = "-unclipped", "-conv"


def _clipped_or_not(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {
        name + suffix: dataclasses.replace(entry, clip=not suffix)
        for name, entry in entries.items()
        for suffix in ("", UNCLIPPED)
    }


ABLATION = _clipped_or_not(
    {
        "simple": STANDARD["simple"],
        "simple-batch": STANDARD["simple-batch"],
        "simple-layer": STANDARD["simple-layer"],
        "simple-relu": Entry(_simple(activation="relu"), learning_rate=1e-2),
        "simple-batch-relu": Entry(_simple(activation="relu", normalize="batch")),
        "simple-layer-relu": Entry(_simple(activation="relu", normalize="layer")),
    }
)
"""Normalization, activation and clipping of the simple network, each with each."""
HE = _clipped_or_not(
    {
        "simple-he": Entry(_simple(activation="relu", w_rec_init="he_normal"), learning_rate=1e-2),
        "simple-layer-he": Entry(_simple(activation="relu", w_rec_init="he_normal", normalize="layer")),
    }
)
"""Recurrent weights as one draws them for relu in a feedforward network: they are too large for a recurrent one."""

_AFFINE = {"mingru": seqjax.MinGRU, "minlstm": seqjax.MinLSTM, "rglru": seqjax.RGLRU, "lru": seqjax.LRU}
_DIAGONAL = {"indrnn": seqjax.IndRNN, "diagonal-gru": seqjax.DiagonalGRU, "diagonal-lstm": seqjax.DiagonalLSTM}
_DENSE = {"lstm": seqjax.LSTM, "gru": seqjax.GRU}
CELLS: Mapping[str, Entry] = {
    **{name: Entry(cell, learning_rate=1e-2) for name, cell in (_AFFINE | _DIAGONAL).items()},
    "lru-gelu": Entry(seqjax.LRU, activation="gelu", learning_rate=1e-2),
    **{
        name + CONVOLVED: Entry(cell, causal=True, activation="gelu", learning_rate=1e-2)
        for name, cell in _AFFINE.items()
    },
    **{name + CONVOLVED: Entry(cell, causal=True, learning_rate=1e-2) for name, cell in (_DIAGONAL | _DENSE).items()},
}
"""The library's other cells, alone and behind a short convolution, as gated linear recurrences are published (S. De et
al. 2024, arXiv 2402.19427, section 2.4). Cells that are linear in their state get a nonlinearity with it. LSTM and GRU
stand behind the same convolution at the same rate, so that cells can be compared."""

MODELS: Mapping[str, Entry] = {**STANDARD, **CELLS, **ABLATION, **HE}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "standard": tuple(STANDARD),
    "cells": tuple(CELLS),
    "all": (*STANDARD, *CELLS),
    "ablation": tuple(ABLATION),
    "explosion": ("simple-he-unclipped", "simple-he", "simple-layer-he-unclipped", "simple-relu-unclipped"),
}
"""Names that `--model` takes for several models."""
