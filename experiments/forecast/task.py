# SPDX-License-Identifier: Apache-2.0
"""The experiment as a task of `scripts/run compare`: the published model around any cell."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp

import seqjax
from experiments.forecast import baselines, data, evaluation
from experiments.study.task import Evaluator, Task
from seqjax import training
from seqjax.base import Cell, Layer, Params


def task(
    replicate: int = 0,
    *,
    source: str = "synthetic",
    column: str | None = None,
    station: str = "greensboro",
    window: int = 50,
    batch_size: int = 32,
) -> Task:
    """Ten-steps-ahead forecasts, judged by the mean squared error at the last step of the validation windows.

    Args:
      replicate: a seed; the series are the same for all.
      source, column, station, window: as the experiment's flags `--data`, `--column`, `--station` and `--window`.
      batch_size: windows in a batch.

    Raises:
      ValueError: there are no such data, or fewer training windows than a batch.
    """
    known = data.load_task(source, column, station, window)
    if not 0 < batch_size <= len(known.train):
        raise ValueError(f"a batch must have 1 to {len(known.train)} windows, got {batch_size}.")

    def make_batch(seed: int, step: int) -> training.Batch:
        xs, ys = data.batch(known.train, window, slice(None), size=batch_size, seed=seed, step=step)
        return training.Batch(jnp.asarray(xs), jnp.asarray(ys))

    truth = data.targets(known.valid, window)
    linear = baselines.LeastSquares.fit(known.train)
    made = {"persistence": baselines.persistence(known.valid, window), "least squares": linear(known.valid)}
    return Task(
        name=f"{known.name}, ten steps ahead",
        make_batch=make_batch,
        loss=training.mean_squared_error,
        model=around,
        evaluator=functools.partial(_evaluator, known),
        metric="valid_mse_last",
        baselines={name: baselines.score(ys, truth, known.scaler).mse_last for name, ys in made.items()},
    )


def around(cell: Cell) -> Layer:
    """Two recurrent layers of `cell` and a dense one at every step."""
    layer = seqjax.RNN(cell)
    return seqjax.Serial(layer, layer, seqjax.Dense(data.HORIZON))


def _evaluator(known: data.Task, model: Layer) -> Evaluator:
    """Mean squared error over all steps and at the last one, with batch normalization calibrated."""
    forecasts = evaluation.forecaster(model, known.window)
    calibrate = evaluation.calibrator(model, known.train, known.window)
    truth = data.targets(known.valid, known.window)

    def evaluate(params: Params) -> Mapping[str, float]:
        found = baselines.score(forecasts(calibrate(params), known.valid), truth, known.scaler)
        return {"valid_mse": found.mse, "valid_mse_last": found.mse_last}

    return evaluate
