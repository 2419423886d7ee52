# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: `metrics.jsonl` and `checkpoints/`, begun once and continued without gap or repeat."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from seqjax.base import Layer
from seqjax.training import checkpoint
from seqjax.training.description import Types, describe
from seqjax.training.records import MetricsFile
from seqjax.training.step import TrainState


class RunDir:
    """What `fit` keeps of a run, and where it goes on.

    Raises:
      ValueError: the model or the config cannot be written down.
    """

    def __init__(
        self,
        path: str | Path,
        model: Layer,
        inputs: jax.ShapeDtypeStruct,
        *,
        seed: int,
        config: Mapping[str, Any] | None,
        keep: int,
        types: Types,
    ):
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self._model, self._inputs, self._keep, self._types = model, inputs, keep, types
        self._metadata = {"seed": seed, "config": dict(config or {})}
        describe(model, types)
        try:
            json.dumps(self._metadata, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config must hold only what JSON can: {error}; dataclasses.asdict may help.") from error

    def begin(self, state: TrainState, resume: bool | int) -> tuple[TrainState, MetricsFile]:
        """The state and the metrics to go on from: `state` itself, or what was saved.

        Raises:
          ValueError: there is a run and `resume` is False, or what is there cannot be resumed.
          OSError: the directory cannot be written or has no room.
        """
        found = checkpoint.steps(self.path)
        if resume is False and (found or self.metrics_path.exists()):
            raise ValueError(
                f"{self.path} already holds a run (checkpoints at steps {found}); resume=True goes on with it, "
                "another run_dir begins a new one."
            )
        if resume is True and not found and self.metrics_path.exists():
            raise ValueError(f"{self.metrics_path} is there but no checkpoint is; begin a new run in another run_dir.")
        checkpoint.require_room(self.path, state, self._keep)
        if resume is not False and (found or resume is not True):
            state = self._restore(state, None if resume is True else resume)
        else:
            # From here on there is always something to resume from, and it has been seen to work.
            self.save(state)
        try:
            return state, MetricsFile(self.metrics_path, int(state.step))
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write metrics: {error.strerror}; nothing was trained", str(self.metrics_path)
            ) from error

    def save(self, state: TrainState) -> None:
        """Writes the state's checkpoint."""
        checkpoint.save(
            self.path,
            state,
            model=self._model,
            inputs=self._inputs,
            metadata=self._metadata,
            keep=self._keep,
            types=self._types,
        )

    def _restore(self, like: TrainState, step: int | None) -> TrainState:
        manifest = checkpoint.read_manifest(self.path, step)
        seed = manifest["metadata"].get("seed")
        if seed != self._metadata["seed"]:
            raise ValueError(
                f"the run in {self.path} was begun with seed={seed}, not {self._metadata['seed']}: its batches would "
                "change; resume with the same seed, or begin a new run in another run_dir."
            )
        state = checkpoint.restore(self.path, like, model=self._model, step=step, types=self._types)
        checkpoint.set_aside(self.path, after=int(state.step))
        return state
