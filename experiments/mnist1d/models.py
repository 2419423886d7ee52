# SPDX-License-Identifier: Apache-2.0
"""The published model and its like: both directions of a recurrence, then one linear map of all steps."""

import dataclasses
from collections.abc import Callable

import seqjax
from experiments.mnist1d.data import CLASSES, STEPS
from seqjax.base import Cell


def classifier(cell: Cell, depth: int = 1, activation: str | None = None) -> seqjax.Serial:
    """`depth` bidirectional layers of `cell`, then the outputs of all 40 steps through one linear map to ten classes.

    With an `activation` each layer's outputs go through it, which a cell that is linear in its inputs needs.

    A convolution over the whole sequence is that map: it flattens `[40, B, F]` and multiplies by a
    `[40 * F, 10]` matrix.

    >>> from seqjax import GRU
    >>> classifier(GRU(6, reset="after")).layers[-1]
    Conv1D(10, 40, padding='valid')
    """
    layers = [seqjax.Bidirectional(seqjax.RNN(cell))] + ([] if activation is None else [seqjax.Activation(activation)])
    return seqjax.Serial(*layers * depth, seqjax.Conv1D(CLASSES, width=STEPS, padding="valid"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the study.

    Args:
      cell: makes the cell from the number of units.
      depth: bidirectional layers.
      activation: after each of them.
      published: test accuracy on sequences in order, and shuffled; as text, "" where there is none.
    """

    cell: Callable[[int], Cell]
    depth: int = 1
    activation: str | None = None
    published: tuple[str, str] = ("", "")

    def build(self, hidden_dim: int = 6) -> seqjax.Serial:
        """The model, with `hidden_dim` units in each direction of each layer."""
        return classifier(self.cell(hidden_dim), self.depth, self.activation)


MODELS = {
    "gru": Entry(
        lambda units: seqjax.GRU(units, reset="after"),
        published=("0.891", "0.533"),
    ),
    "mingru-2": Entry(seqjax.MinGRU, depth=2),
    "lru-2": Entry(seqjax.LRU, depth=2),
    "lru-gelu-2": Entry(seqjax.LRU, depth=2, activation="gelu"),
    "diagonal-gru-2": Entry(seqjax.DiagonalGRU, depth=2),
    "lstm": Entry(seqjax.LSTM),
    "mingru": Entry(seqjax.MinGRU),
    "lru": Entry(seqjax.LRU),
    "diagonal-gru": Entry(seqjax.DiagonalGRU),
}
"""The published GRU is PyTorch's, with two biases; figures of S. Greydanus' notebook. A cell whose gates do
not see the state, or see one unit of it, has few weights: two layers of it are the published size."""
