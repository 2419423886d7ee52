# SPDX-License-Identifier: Apache-2.0
"""Windows as a task of a study: batches, the standard model, and how models are judged."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp

import seqjax
from experiments.forecast import baselines, data, evaluation
from experiments.study.task import Evaluator, Task, require
from seqjax import training
from seqjax.base import Cell, Layer

METRIC = "valid_mse_last"


def task(
    replicate: int = 0,
    *,
    source: str = "synthetic",
    column: str | None = None,
    station: str = "greensboro",
    window: int = 50,
    batch_size: int = 32,
) -> Task:
    """Ten-steps-ahead forecasts for `scripts/run compare`: the published model around any cell.

    Args:
      replicate: a seed; the series are the same for all.
      source, column, station, window: as the experiment's flags `--data`, `--column`, `--station` and `--window`.
      batch_size: windows in a batch.

    Raises:
      ValueError: there are no such data, or fewer training windows than a batch.
    """
    require("forecast", window=window, batch_size=batch_size)
    known = data.load_task(source, column, station, window)
    return learn(known, {"": baselines.reach(known, "")}, batch_size=batch_size)


def learn(
    known: data.Task,
    reached: Mapping[str, Mapping[str, Mapping[str, float]]],
    at: str = "",
    *,
    batch_size: int = 32,
) -> Task:
    """To forecast at some steps of the window, judged by the mean squared error at its last one.

    Args:
      known: the windows.
      reached: what the baselines reach, by the steps at which they are judged; the last step is in all.
      at: the steps, a key of `data.POSITIONS`.
      batch_size: windows in a batch.

    Raises:
      ValueError: fewer training windows than a batch.
    """
    if not 0 < batch_size <= len(known.train):
        raise ValueError(f"--batch-size must be 1 to {len(known.train)}, the training windows, got {batch_size}.")

    def make_batch(seed: int, step: int) -> training.Batch:
        xs, ys = data.batch(known.train, known.window, data.POSITIONS[at], size=batch_size, seed=seed, step=step)
        return training.Batch(jnp.asarray(xs), jnp.asarray(ys))

    def evaluator(model: Layer) -> Evaluator:
        forecast = functools.partial(evaluation.forecast, model, window=known.window)
        return lambda params: baselines.judge(known, at, functools.partial(forecast, params))

    last = next(iter(reached.values())).items()
    every = {f"{name} {steps}".rstrip(): found for steps in reached for name, found in reached[steps].items()}
    return Task(
        name=f"{known.name}, ten steps ahead" + (f" (MSE: scaled; MAE: {known.unit})" if known.unit else ""),
        make_batch=make_batch,
        loss=training.mean_squared_error,
        model=around,
        evaluator=evaluator,
        metric=METRIC,
        data=known.describe(),
        baselines={name: found[METRIC] for name, found in last},
        also={
            "test_mse_last": {name: found["test_mse_last"] for name, found in last},
            "valid_mae_last": {name: found["valid_mae_last"] for name, found in last},
            "valid_mse": {name: found["valid_mse"] for name, found in every.items()},
        },
        finish=lambda model: functools.partial(evaluation.calibrate, model, train=known.train, window=known.window),
    )


def around(cell: Cell) -> Layer:
    """Two recurrent layers of `cell` and a dense one at every step."""
    layer = seqjax.RNN(cell)
    return seqjax.Serial(layer, layer, seqjax.Dense(data.HORIZON))
