# SPDX-License-Identifier: Apache-2.0
"""The rows of the study: a cell, how far gradients go back, and how often the weights are changed."""

import dataclasses
from collections.abc import Callable, Mapping

import seqjax
from seqjax.base import Cell, Engine
from seqjax.engines import Auto, Checkpointed, Truncated
from seqjax.initializers import Chrono, Ring

MEMORY = Chrono(300)
"""Memories of 1 to 300 bins, 15 ms, to begin with: gates that begin half open forget within three bins."""
RING = Ring(r_min=0.97, r_max=0.998, max_phase=0.3)
"""Memories of 33 to 500 bins and oscillations of up to 950 Hz (the loudness has up to 800), chosen by validation."""
CELLS: Mapping[str, Callable[[int], Cell]] = {
    "gru": lambda units: seqjax.GRU(units, reset="after", bias_init=MEMORY),
    "lstm": lambda units: seqjax.LSTM(units, bias_init=MEMORY),
    "mingru": lambda units: seqjax.MinGRU(units, bias_init=MEMORY),
    "rglru": seqjax.RGLRU,
    "lru": lambda units: seqjax.LRU(units, eigenvalue_init=RING),
}
"""Each makes the cell of so many units."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way of training.

    Args:
      engine: that the cell is run by.
      window: bins between two updates, the carry going on from each to the next; None is all of them.
      passes: over what is learnt from.
      learning_rate: of Adam at the first step.
      note: for the table.
    """

    engine: Engine
    window: int | None
    passes: int
    learning_rate: float
    note: str


RECIPES: Mapping[str, Recipe] = {
    "full": Recipe(Checkpointed(), None, 80, 3e-2, "one gradient through all bins"),
    "cut-1000": Recipe(Truncated(1000), None, 80, 3e-2, "the same, cut every 50 ms"),
    "cut-100": Recipe(Truncated(100), None, 80, 3e-2, "the same, cut every 5 ms"),
    "windows-1000": Recipe(Auto(), 1000, 20, 1e-2, "an update every 50 ms, the carry goes on"),
    "windows-100": Recipe(Auto(), 100, 20, 3e-3, "an update every 5 ms, the carry goes on"),
}
"""Whether a gradient is cut is seen between the first three, and what frequent updates are worth in the last two."""
