# SPDX-License-Identifier: Apache-2.0
"""Trains one model and judges it."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.forecast import baselines, data, evaluation
from experiments.forecast.config import Config
from experiments.forecast.models import MODELS
from experiments.forecast.report import Row
from seqjax import training

FINAL = "final"
"""Folder of the finished model's checkpoint, whose batch normalization is calibrated."""
VALID = "valid_forecasts.npy"
"""`[count, HORIZON]` float32: its forecasts at the last step of every validation window, in scaled units."""
RESULT = "result.json"
"""Written last: a model's folder that has it is finished."""


def train(config: Config, task: data.Task, name: str, folder: pathlib.Path, *, resume: bool = False) -> Row:
    """Trains the model `name` for `config.epochs` and writes its metrics, checkpoints and result.

    Args:
      config: of the run.
      task: what to learn.
      name: a key of `MODELS`.
      folder: of this model, `run_dir / name`.
      resume: continue from the checkpoints in `folder`, if there are any.

    Returns:
      The model's row of the table.

    Raises:
      ValueError: fewer training windows than a batch.
    """
    entry = MODELS[name]
    model = entry.build(config.hidden_dim)
    steps_per_epoch = len(task.train) // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"There are {len(task.train)} training windows, fewer than --batch-size {config.batch_size}; "
            "choose a smaller one."
        )
    forecasts = evaluation.forecaster(model, task.window)
    calibrate = evaluation.calibrator(model, task.train, task.window) if entry.calibrated else lambda params: params

    def make_batch(seed: int, step: int) -> training.Batch:
        xs, ys = data.batch(task.train, task.window, entry.positions, size=config.batch_size, seed=seed, step=step)
        return training.Batch(jnp.asarray(xs), jnp.asarray(ys))

    def judge(params: Any, series: np.ndarray) -> baselines.Score:
        truth = data.targets(series, task.window)[:, entry.positions]
        return baselines.score(forecasts(params, series), truth, task.scaler)

    def evaluate(params: Any) -> dict[str, float]:
        found = judge(calibrate(params), task.valid)
        return {"valid_mse": found.mse, "valid_mse_last": found.mse_last}

    metadata = {"config": config.to_json(), "data": task.describe(), "model": name}
    run = training.fit(
        model,
        make_batch,
        steps=config.epochs * steps_per_epoch,
        loss=training.mean_squared_error,
        optimizer=training.clipped(optax.adam(config.learning_rate or entry.learning_rate), norm=config.clip_norm),
        seed=config.seed,
        run_dir=folder,
        resume=resume,
        evaluate=evaluate,
        evaluate_every=steps_per_epoch,
        checkpoint_every=steps_per_epoch,
        config=metadata,
    )
    params = calibrate(run.state.params)
    inputs = jax.ShapeDtypeStruct((task.window, config.batch_size, 1), jnp.float32)
    state = run.state._replace(params=params)
    if training.latest(folder / FINAL) != int(state.step):  # a run killed just after it is resumed has it already
        training.save(folder / FINAL, state, model=model, inputs=inputs, metadata=metadata, keep=1)
    np.save(folder / VALID, forecasts(params, task.valid)[:, -1])
    row = Row(
        name=name,
        parameters=evaluation.parameter_count(params),
        strided=entry.convolution,
        valid=judge(params, task.valid),
        test=judge(params, task.test),
        milliseconds=None if math.isnan(run.seconds_per_step) else 1e3 * run.seconds_per_step,
    )
    (folder / RESULT).write_text(json.dumps({"epochs": config.epochs, "row": dataclasses.asdict(row)}, indent=2) + "\n")
    return row


def finished(folder: pathlib.Path, epochs: int) -> Row | None:
    """The row of a model that was trained for `epochs`, or `None` where that is still to be done."""
    try:
        result: Mapping[str, Any] = json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        return None
    return Row.from_json(result["row"]) if result["epochs"] == epochs else None


def baseline_rows(task: data.Task, *, strided: tuple[bool, ...]) -> tuple[list[Row], baselines.LeastSquares]:
    """Persistence and least squares on the same targets as the models, and the latter as fitted."""
    linear = baselines.LeastSquares.fit(task.train)
    rows = []
    for every_second in strided:
        positions = data.STRIDED if every_second else slice(None)
        for name, forecasts, parameters in (
            ("persistence", lambda series: baselines.persistence(series, task.window), 0),
            ("least squares", linear, linear.parameter_count),
        ):
            scores = [
                baselines.score(
                    forecasts(series)[:, positions], data.targets(series, task.window)[:, positions], task.scaler
                )
                for series in (task.valid, task.test)
            ]
            rows.append(Row(name, parameters, every_second, valid=scores[0], test=scores[1]))
    return rows, linear
