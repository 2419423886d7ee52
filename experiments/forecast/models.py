# SPDX-License-Identifier: Apache-2.0
"""The models: two recurrent layers and a dense one, at every step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import seqjax
from experiments.forecast.data import HORIZON
from seqjax import engines
from seqjax.base import Cell, Engine


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the experiment.

    Args:
      cell: makes the cell of both recurrent layers from the number of units.
      engine: of both; `None` is the layer's own choice.
      between: whether a batch normalization follows each recurrent layer.
      convolution: whether `Conv1D(units, width=4, stride=2, padding="valid")` comes first, so
        that the model forecasts at every second step from the fourth.
      clip: whether its gradients are clipped, see `--clip-norm`.
      learning_rate: of Adam, as published but for `simple-layer`, which learns too slowly at the published 0.001.
      published: validation MSE at the last step, as text, "" where there is none.
    """

    cell: Callable[[int], Cell]
    engine: Engine | None = None
    between: bool = False
    convolution: bool = False
    clip: bool = True
    learning_rate: float = 1e-3
    published: str = ""

    @property
    def at(self) -> str:
        """The steps of the window at which it forecasts, a key of `data.POSITIONS`."""
        return "[3::2]" if self.convolution else ""

    def build(self, hidden_dim: int = 20) -> seqjax.Serial:
        """The model, with `hidden_dim` units in each recurrent layer."""
        options = {} if self.engine is None else {"engine": self.engine}
        layer = seqjax.RNN(self.cell(hidden_dim), **options)
        recurrent = (layer, seqjax.BatchNorm()) if self.between else (layer,)
        front = (seqjax.Conv1D(hidden_dim, width=4, stride=2, padding="valid"),) if self.convolution else ()
        return seqjax.Serial(*front, *recurrent, *recurrent, seqjax.Dense(HORIZON))


def _simple(**options: Any) -> Callable[[int], Cell]:
    return lambda units: seqjax.Simple(units, **options)


PAPER: Mapping[str, Entry] = {
    "simple": Entry(seqjax.Simple, learning_rate=1e-2, published="0.0096"),
    "simple-between": Entry(seqjax.Simple, between=True, published="0.0164"),
    "simple-batch": Entry(_simple(normalize="batch")),
    "simple-layer": Entry(_simple(normalize="layer"), learning_rate=1e-2, published="0.0121"),
    "lstm": Entry(seqjax.LSTM, published="0.0086"),
    "lstm-generic": Entry(seqjax.LSTM, engine=engines.Scan(adjoint=False), published="0.0086"),
    "peephole": Entry(seqjax.PeepholeLSTM),
    "gru": Entry(seqjax.GRU, published="0.0103"),
    "conv-gru": Entry(seqjax.GRU, convolution=True, published="0.0080"),
}
"""Published figures: Géron, notebook 15 of Hands-On Machine Learning, 2nd edition. His batch
normalization stands between the layers, as in `simple-between`; in `simple-batch` it is inside the recurrence."""

UNCLIPPED = "-unclipped"


def _clipped_or_not(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {
        name + suffix: dataclasses.replace(entry, clip=not suffix)
        for name, entry in entries.items()
        for suffix in ("", UNCLIPPED)
    }


ABLATION = _clipped_or_not(
    {
        "simple": PAPER["simple"],
        "simple-batch": PAPER["simple-batch"],
        "simple-layer": PAPER["simple-layer"],
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

MODELS: Mapping[str, Entry] = {**PAPER, **ABLATION, **HE}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(PAPER),
    "ablation": tuple(ABLATION),
    "explosion": ("simple-he-unclipped", "simple-he", "simple-layer-he-unclipped", "simple-relu-unclipped"),
}
"""Names that `--model` takes for several models."""
