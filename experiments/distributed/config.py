# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for."""

import dataclasses
import json
from typing import Literal, Self

from experiments.study.command import check_numbers

PROGRAM = "scripts/run distributed"
Model = Literal["gru", "lstm", "min-gru", "lru", "wavefront"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Splits sequences over several `jax.distributed` processes of this machine, and compares with one process.

    Args:
      processes: how many, joined by gloo over the loopback interface.
      devices: CPU devices of each process.
      models: a cell with its time split, or a stack of GRU layers, one for each device, as a wavefront.
      steps: T; any number, also one that the devices do not divide.
      batch_size: sequences.
      hidden_dim: units of each cell.
      tolerance: what float64 numbers may differ by, absolutely and relative to the largest.
      timeout: seconds after which the processes are stopped.
      seed: of params and inputs.

    Raises:
      ValueError: a number out of range.
    """

    processes: int = 2
    devices: int = 2
    models: tuple[Model, ...] = ("gru", "lstm", "min-gru", "lru", "wavefront")
    steps: int = 2000
    batch_size: int = 4
    hidden_dim: int = 16
    tolerance: float = 1e-10
    timeout: float = 600.0
    seed: int = 0

    def __post_init__(self):
        counts = ("processes", "devices", "steps", "batch_size", "hidden_dim")
        check_numbers(self, counts=counts, positive=("tolerance", "timeout"))
        if not self.models:
            raise ValueError("--models must name at least one.")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(**fields | {"models": tuple(fields["models"])})
