# SPDX-License-Identifier: Apache-2.0
"""The rows of both studies: a model, its loss, and how its training differs from the plain one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import seqjax
from experiments.watch.crops import AS_RECORDED, Variation
from experiments.watch.task import dropped, plain, strided
from seqjax.base import Cell, Layer
from seqjax.initializers import Chrono

MEMORY = 500
"""Steps, at most, that chrono initialization is told to remember: ten seconds, as long as a crop."""
VARIED = Variation(tempo=0.5, tilt=0.25, gain=0.1)
"""Fixed beforehand: speeds from 0.6 to 1.6, angles of 14 degrees, strengths from 0.9 to 1.1."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row.

    Args:
      cell: of so many units.
      model: around the cell.
      loss: of every step, or of the last.
      mirrored: whether recordings of the left arm are mirrored.
      variation: of crops.
      clip: whether gradients are clipped, see `--clip-norm`.
      note: for the table.
    """

    cell: Callable[[int], Cell]
    model: Callable[[Cell], Layer] = plain
    loss: Literal["every", "last"] = "every"
    mirrored: bool = False
    variation: Variation = AS_RECORDED
    clip: bool = True
    note: str = ""


def _layer(units: int) -> Cell:
    return seqjax.GRU(units, normalize="layer")


def _chrono(units: int) -> Cell:
    return seqjax.GRU(units, bias_init=Chrono(MEMORY))


CROPS: Mapping[str, Recipe] = {
    "gru": Recipe(seqjax.GRU),
    "conv-gru": Recipe(seqjax.GRU, strided),
    "conv-gru-varied": Recipe(seqjax.GRU, strided, variation=VARIED, note="crops varied in tempo, tilt and gain"),
    "conv-gru-mirrored": Recipe(seqjax.GRU, strided, mirrored=True, variation=VARIED, note="varied, left mirrored"),
    "conv-gru-dropout": Recipe(seqjax.GRU, dropped, variation=VARIED, note="varied, and dropout of 0.3"),
    "conv-layer-dropout": Recipe(_layer, dropped, variation=VARIED, note="the same, layer normalization in the cell"),
}
"""Learnt from crops of ten seconds."""

WHOLE: Mapping[str, Recipe] = {
    "plain": Recipe(seqjax.GRU, loss="last", clip=False, note="GRU, loss at the end"),
    "clip": Recipe(seqjax.GRU, loss="last", note="gradients clipped"),
    "layer": Recipe(_layer, loss="last", clip=False, note="layer normalization in the cell"),
    "chrono": Recipe(_chrono, loss="last", clip=False, note=f"memories of 1 to {MEMORY} steps"),
    "mingru": Recipe(seqjax.MinGRU, loss="last", clip=False, note="gated, linear in its state"),
    "rglru": Recipe(seqjax.RGLRU, loss="last", clip=False, note="gated, linear in its state"),
    "lru": Recipe(seqjax.LRU, loss="last", clip=False, note="linear"),
    "strided": Recipe(seqjax.GRU, strided, loss="last", clip=False, note="Conv1D, every 4th step"),
    "every": Recipe(seqjax.GRU, clip=False, note="loss at every step"),
    "cure": Recipe(seqjax.GRU, strided, note="strided, clipped, loss at every step"),
    "cure-mirrored": Recipe(seqjax.GRU, strided, mirrored=True, note="the same, left arms mirrored"),
}
"""Learnt from whole recordings: each of the rows between the first and the cures differs from `plain` in one thing."""

STUDIES = {"crops": CROPS, "whole": WHOLE}
HEADLINES = {"crops": "conv-gru-mirrored", "whole": "cure-mirrored"}
"""The row of each study that is run when none is asked for."""
