# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: `metrics.jsonl` and `checkpoints/`, begun once and continued without gaps or repeats."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from seqjax.base import Layer
from seqjax.training import checkpoint, storage
from seqjax.training.alone import alone
from seqjax.training.description import Types, describe
from seqjax.training.records import FILE, Line, MetricsFile
from seqjax.training.state import TrainState


class Journal:
    """The history of a run, which is written to its directory, if it has one."""

    def __init__(self, run: "RunDir | None" = None, metrics: MetricsFile | None = None):
        self.history: list[Line] = [] if metrics is None else list(metrics.kept)
        self._run, self._metrics = run, metrics

    def write(self, line: Line) -> None:
        """Adds a line."""
        self.history.append(line)
        if self._metrics is not None:
            self._metrics.write(line)

    def replace_last(self, line: Line) -> None:
        """Replaces the last line, which must come from an earlier part of the run."""
        self.history[-1] = line
        if self._metrics is not None:
            self._metrics.replace_last(line)

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint that covers all lines so far, also where these cannot be written."""
        if self._run is not None and self._metrics is not None:
            try:
                self._metrics.sync()
            finally:
                self._run.save(state, len(self.history))


class RunDir:
    """What `fit` keeps of a run, and where it continues.

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
        self.metrics_path = self.path / FILE
        self._model, self._inputs, self._keep, self._types = model, inputs, keep, types
        describe(model, types)
        try:
            json.dumps(config, allow_nan=False)
            self._metadata = {"seed": seed, "config": storage.as_read(dict(config or {}))}
        except (TypeError, ValueError) as error:
            raise ValueError(f"config must hold only what JSON can: {error}; dataclasses.asdict may help.") from error

    @contextlib.contextmanager
    def begin(self, state: TrainState, resume: bool | int, steps: int) -> Iterator[tuple[TrainState, Journal]]:
        """The state and the journal to continue from: `state` itself, or what was saved.

        If it raises, metrics and checkpoints are left as they were.

        Raises:
          ValueError: there is a run although `resume` is False, or the run cannot be resumed, is past `steps`
            or is being trained.
          OSError: the directory cannot be written or has no room.
        """
        with alone(self.path):
            found = checkpoint.all_steps(self.path)
            if resume is False and (found or self.metrics_path.exists()):
                raise ValueError(
                    f"{self.path} already holds a run (checkpoints at steps {found}); resume=True goes on with it, "
                    "another run_dir begins a new one."
                )
            if resume is True and not found and self.metrics_path.exists():
                raise ValueError(
                    f"{self.metrics_path} is there but no checkpoint is; begin a new run in another run_dir."
                )
            checkpoint.require_room(self.path, state, self._keep)
            lines = 0
            if resume is not False and (found or resume is not True):
                state, lines = self._restore(state, None if resume is True else resume, steps)
            else:
                # From here on there is always something to resume from, and saving is known to work.
                self.save(state, lines)
            metrics = self._metrics(int(state.step), lines)
            checkpoint.set_aside(self.path, after=int(state.step))
            with metrics:
                yield state, Journal(self, metrics)

    def save(self, state: TrainState, lines: int) -> None:
        """Writes the state's checkpoint, unless it exists; `lines` of metrics were written before it."""
        if int(state.step) in checkpoint.all_steps(self.path):
            return
        checkpoint.save(
            self.path,
            state,
            model=self._model,
            inputs=self._inputs,
            metadata={**self._metadata, "lines": lines},
            keep=self._keep,
            types=self._types,
        )

    def _restore(self, like: TrainState, step: int | None, steps: int) -> tuple[TrainState, int]:
        """The saved state, and how many lines of metrics were written before it."""
        manifest = checkpoint.read_manifest(self.path, step)
        if manifest["step"] > steps:
            raise ValueError(f"the run in {self.path} is at step {manifest['step']}, past steps={steps}; ask for more.")
        seed = manifest["metadata"].get("seed")
        if seed != self._metadata["seed"]:
            raise ValueError(
                f"the run in {self.path} was begun with seed={seed}, not {self._metadata['seed']}: its batches would "
                "change; resume with the same seed, or begin a new run in another run_dir."
            )
        state = checkpoint.restore(self.path, like, model=self._model, step=step, types=self._types)
        return state, manifest["metadata"].get("lines", 0)

    def _metrics(self, step: int, lines: int) -> MetricsFile:
        try:
            metrics = MetricsFile(self.metrics_path, step)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write metrics: {error.strerror}; nothing was trained", str(self.metrics_path)
            ) from error
        if len(metrics.kept) < lines:
            warnings.warn(
                f"{self.metrics_path} has {len(metrics.kept)} of the {lines} lines written up to step {step}; "
                "the history goes on without the others.",
                stacklevel=6,  # the caller of fit
            )
        return metrics
