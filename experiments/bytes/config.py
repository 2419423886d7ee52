# SPDX-License-Identifier: Apache-2.0
"""What the command can be asked for. A preset is a small difference from the defaults."""

import dataclasses
import pathlib
from typing import Literal

from experiments.study.cells import cells
from experiments.study.command import Command, check_numbers, find_anywhere


@dataclasses.dataclass(frozen=True)
class Config:
    """A byte-level model of source text against zlib, bz2 and lzma: trains it, or lets it write.

    Args:
      preset: smoke (seconds, to see that it runs), default (about 7 minutes on one core), large (over an hour),
        paper (hours).
      data: a file or a folder of your own; by default the sources of Python's standard library.
      limit: use the first so many bytes alone.
      cells: names with commas between them, each a model.
      hidden_dim: units of a recurrent layer.
      layers: recurrent layers, one on the other.
      window: bytes that gradients go back; the carry goes on.
      batch_size: lanes that the text is cut into, read side by side.
      epochs: passes over the text.
      learning_rate: of Adam at its height, after a hundredth of all steps; it falls to 0 along half a cosine.
      clip_norm: the global norm that gradients are clipped to.
      evaluations: how often a run is judged at most, the last time at its end.
      dynamic_rate: of the gradient descent by which a trained model goes on learning while it is judged.
      seeds: how many runs of each model.
      run_dir: where to write; by default a new folder in runs/bytes.
      resume: a run's folder, to continue it as it was configured; --seeds may be raised.
      sample: a model's folder, runs/bytes/.../gru/0 say, to let it write.
      length: bytes that it writes.
      prompt: text that it goes on from.
      temperature: below 1 it writes what is likely, above 1 what is not.
      sample_seed: of what it writes.

    Raises:
      ValueError: a number out of range, or a cell that does not exist.
    """

    preset: Literal["smoke", "default", "large", "paper"] = "default"
    data: str | None = None
    limit: int | None = None
    cells: str = "gru"
    hidden_dim: int = 256
    layers: int = 1
    window: int = 64
    batch_size: int = 32
    epochs: float = 3.0
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    evaluations: int = 6
    dynamic_rate: float = 0.2
    seeds: int = 1
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    sample: pathlib.Path | None = None
    length: int = 500
    prompt: str = "def "
    temperature: float = 0.7
    sample_seed: int = 0

    def __post_init__(self):
        check_numbers(
            self,
            counts=("hidden_dim", "layers", "window", "batch_size", "evaluations", "seeds", "length", "limit"),
            positive=("epochs", "learning_rate", "clip_norm", "dynamic_rate", "temperature"),
        )
        find_anywhere(self, "data")
        if not self.prompt:
            raise ValueError("--prompt must have at least one byte for the model to go on from.")
        cells(self.cells, self.hidden_dim)


COMMAND = Command(
    "bytes",
    presets={
        "smoke": Config(preset="smoke", limit=40_000, hidden_dim=32, epochs=1, batch_size=8),
        "default": Config(),
        "large": Config(preset="large", cells="lstm", hidden_dim=512, epochs=4, learning_rate=2e-3, evaluations=2),
        "paper": Config(
            preset="paper", cells="lstm", hidden_dim=512, layers=2, window=128, batch_size=64, epochs=20, seeds=3
        ),
    },
    extendable=("seeds",),
    actions=("sample", "length", "prompt", "temperature", "sample_seed"),
)
