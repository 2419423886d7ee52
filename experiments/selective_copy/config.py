# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
from typing import Literal

from experiments.selective_copy.models import entries
from experiments.study import generated
from experiments.study.command import Command, check_numbers


@dataclasses.dataclass(frozen=True)
class Config(generated.Settings):
    """Selective copying: symbols that stand at random steps among blanks are to be repeated in order.

    Args:
      preset: smoke (seconds, to see that it runs), default (8 symbols in 64 steps, three seeds, about 7 minutes
        on one core), paper (16 symbols in 4,096 steps, 400,000 steps of training: for a GPU).
      length: L, steps among which the symbols are.
      recalled: how many symbols.
      layers: blocks.
      width: features between the blocks.

    Raises:
      ValueError: a number out of range, or a model that is not known.
    """

    preset: Literal["smoke", "default", "paper"] = "default"
    models: str = "mingru,minlstm,gru"
    length: int = 64
    recalled: int = 8
    layers: int = 3
    width: int = 32
    steps: int = 2500
    hidden_dim: int = 64
    evaluate_every: int = 200

    def __post_init__(self):
        check_numbers(self, counts=("recalled", "layers", "width"), positive=())
        generated.check(self, entries(self.layers, self.width))
        if self.recalled > self.length:
            raise ValueError(f"--recalled {self.recalled} symbols do not fit in --length {self.length} steps.")


COMMAND = Command(
    "selective_copy",
    {
        "smoke": Config(
            preset="smoke",
            models="mingru,lru",
            length=16,
            recalled=2,
            layers=2,
            steps=40,
            fresh=100,
            evaluate_every=20,
            seeds=1,
        ),
        "default": Config(),
        "paper": Config(
            preset="paper",
            models="mingru,minlstm",
            length=4096,
            recalled=16,
            width=64,
            hidden_dim=384,
            batch_size=64,
            learning_rate=3e-4,
            steps=400_000,
            evaluate_every=10_000,
        ),
    },
    extendable=("seeds",),
)
