# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run, from what it has written."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.forecast import baselines, evaluation, plots
from experiments.forecast.data import Task
from experiments.forecast.models import UNCLIPPED
from experiments.forecast.task import METRIC
from experiments.study.runner import FINAL, Row
from seqjax import training


def pictures(task: Task, clip_norm: float | None, run_dir: pathlib.Path, rows: Sequence[Row]) -> None:
    """Draws forecasts, errors by step ahead and gradients of the first seed of each model; what clipping did, of all.

    Args:
      task: the windows.
      clip_norm: of the models that are clipped.
      run_dir: of the study.
      rows: of the models trained so far.
    """
    histories = {
        row.variant.name: [
            training.read_metrics(_folder(run_dir, row, run) / "metrics.jsonl") for run in range(len(row.outcomes))
        ]
        for row in rows
    }
    drawn = plots.lines(histories)
    first = {name: runs[0] for name, runs in histories.items()}
    plots.gradients(run_dir / "gradients.png", first, clip_norm, drawn)
    if any(name.endswith(UNCLIPPED) for name in histories):
        plots.clipping(run_dir / "clipping.png", histories)
    base = {name: forecaster(task.valid)[:, -1] for name, forecaster in baselines.fit(task).items()}
    ended = [row for row in rows if not row.outcomes[0].diverged]
    made = {row.variant.name: _last(task, _folder(run_dir, row)) for row in ended}
    best = [row.variant.name for row in sorted(ended, key=lambda row: row.outcomes[0].values[METRIC])[:2]]
    shown = {name: made[name] for name in best}
    plots.forecasts(run_dir / "forecasts.png", task, shown, base["least squares"], drawn)
    plots.horizon(run_dir / "horizon.png", task, made, base, drawn)


def _folder(run_dir: pathlib.Path, row: Row, run: int = 0) -> pathlib.Path:
    return run_dir / row.variant.name / str(row.outcomes[run].replicate)


def _last(task: Task, folder: pathlib.Path) -> np.ndarray:
    """A finished model's forecasts at the last step of every validation window, `[count, HORIZON]`."""
    loaded = training.load(folder / FINAL)
    return evaluation.forecast(loaded.model, loaded.params, task.valid, task.window)[:, -1]
