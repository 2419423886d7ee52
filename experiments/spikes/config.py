# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.spikes.recipes import CELLS, RECIPES
from experiments.spikes.task import BINS, Judge
from experiments.study.command import Command, check_numbers


@dataclasses.dataclass(frozen=True)
class Config:
    """An auditory neuron's firing, predicted from the sound: by gradients of full length and by truncated ones.

    Args:
      preset: smoke (seconds, to see that it runs), default (about 10 minutes), paper (all rows, three seeds, hours).
      ways: to train, separated by commas: full, cut-1000, cut-100, windows-1000, windows-100.
      cells: gru, lstm, mingru, rglru, lru, separated by commas; each is trained in each way.
      judge: by the last fifth of both recordings; by the last fifth of the part that is learnt from (validation:
        what is chosen in this way has not seen the judged part); or by the other recording whole, where all of
        the first one is learnt from.
      history: whether past spikes are an input too.
      bins: the first so many of each recording, of 50 microseconds.
      passes: over the part that is learnt from; by default 80 where a pass is one update, 20 where it is many.
      hidden_dim: units of the recurrent layer.
      learning_rate: of Adam at the first step, falling to zero along a cosine; by default that of the way.
      clip_norm: the global norm that gradients are clipped to.
      seeds: runs of each row.
      run_dir: where to write; by default a new folder in runs/spikes.
      resume: a run's folder, to continue it as it was configured; --seeds may be raised.
      cost: nothing is trained; memory and time of a gradient over so many bins are measured, 200000 say.

    Raises:
      ValueError: a number out of range, or a way or a cell that is not known.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    ways: str = "full,cut-1000,windows-1000"
    cells: str = "gru"
    judge: Judge = "later"
    history: bool = False
    bins: int = BINS
    passes: int | None = None
    hidden_dim: int = 16
    learning_rate: float | None = None
    clip_norm: float = 1.0
    seeds: int = 1
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    cost: int | None = None

    def __post_init__(self):
        check_numbers(
            self,
            counts=("passes", "hidden_dim", "seeds", "cost"),
            positive=("learning_rate", "clip_norm"),
        )
        if self.cost is not None and self.cost % 2:
            raise ValueError(f"--cost must be an even number, got {self.cost}.")
        if not 2000 <= self.bins <= BINS or self.bins % 2:
            raise ValueError(f"--bins must be an even number from 2,000 to {BINS:,}, got {self.bins}.")
        for flag, given, known in (("ways", self.ways, RECIPES), ("cells", self.cells, CELLS)):
            names = listed(given)
            if set(names) - set(known) or len(set(names)) < len(names):
                raise ValueError(f"--{flag} are some of {', '.join(known)}, each once; got {given!r}.")


def listed(names: str) -> list[str]:
    """What commas separate."""
    return [name.strip() for name in names.split(",")]


COMMAND = Command(
    "spikes",
    {
        "smoke": Config(preset="smoke", ways="full,windows-1000", bins=5000, passes=2, hidden_dim=4),
        "default": Config(),
        "paper": Config(preset="paper", ways=",".join(RECIPES), cells="gru,lstm", seeds=3),
    },
    extendable=("seeds",),
    actions=("cost",),
)
