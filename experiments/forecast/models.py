# SPDX-License-Identifier: Apache-2.0
"""The models: two recurrent layers and a dense one, at every step."""

import dataclasses
from collections.abc import Callable

import seqjax
from experiments.forecast.data import HORIZON, STRIDED
from seqjax import engines
from seqjax.base import Cell, Engine


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the experiment.

    Args:
      cell: makes the cell of both recurrent layers from the number of units.
      engine: of both; `None` is the layer's own choice.
      convolution: whether `Conv1D(units, width=4, stride=2, padding="valid")` comes first, so
        that the model forecasts at every second step from the fourth.
      calibrated: whether it has population statistics, for batch normalization.
      learning_rate: of Adam, as published.
      published: validation MSE over all steps and at the last step, where there is one.
    """

    cell: Callable[[int], Cell]
    engine: Engine | None = None
    convolution: bool = False
    calibrated: bool = False
    learning_rate: float = 1e-3
    published: tuple[float, float] | None = None

    @property
    def positions(self) -> slice:
        """The steps of the window at which it forecasts."""
        return STRIDED if self.convolution else slice(None)

    def build(self, hidden_dim: int = 20) -> seqjax.Serial:
        """The model, with `hidden_dim` units in each recurrent layer."""
        options = {} if self.engine is None else {"engine": self.engine}
        recurrent = seqjax.RNN(self.cell(hidden_dim), **options)
        front = (seqjax.Conv1D(hidden_dim, width=4, stride=2, padding="valid"),) if self.convolution else ()
        return seqjax.Serial(*front, recurrent, recurrent, seqjax.Dense(HORIZON))


MODELS = {
    "simple": Entry(seqjax.Simple, learning_rate=1e-2, published=(0.0205, 0.0096)),
    "simple-batch": Entry(
        lambda units: seqjax.Simple(units, normalize="batch"), calibrated=True, published=(0.0288, 0.0164)
    ),
    "simple-layer": Entry(lambda units: seqjax.Simple(units, normalize="layer"), published=(0.0250, 0.0121)),
    "lstm": Entry(seqjax.LSTM, published=(0.0238, 0.0086)),
    "lstm-generic": Entry(seqjax.LSTM, engine=engines.Scan(adjoint=False), published=(0.0238, 0.0086)),
    "peephole": Entry(seqjax.PeepholeLSTM),
    "gru": Entry(seqjax.GRU, published=(0.0238, 0.0103)),
    "conv-gru": Entry(seqjax.GRU, convolution=True, published=(0.0184, 0.0080)),
}
"""Published figures: Géron, notebook 15 of Hands-On Machine Learning, 2nd edition. His batch
normalization stands between the layers, ours is inside the recurrence."""
