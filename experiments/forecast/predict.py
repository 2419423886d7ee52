# SPDX-License-Identifier: Apache-2.0
"""Forecasts of a trained model for any series, as CSV and a plot."""

import csv
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.forecast import data, evaluation, plots, sources
from experiments.forecast.config import Config
from experiments.study.runner import FINAL
from seqjax import training


def predict(config: Config, run_dir: pathlib.Path) -> pathlib.Path:
    """Writes a row for every place of the series where the model has seen a whole window.

    Each row has the time of the last value seen, the ten forecasts after it in the data's own
    unit, and the true values as far as they are known: the last row is the future. Values are
    scaled as the training data was.

    Args:
      config: `data`, `column` and `station` name the series (by default what the model was
        trained on), `model` the model, `run_dir` where to write (by default the model's folder).
      run_dir: the run of the trained model.

    Returns:
      The path of the CSV; the plot lies beside it.

    Raises:
      ValueError: no finished model, no such data, or fewer values than a window.
    """
    if config.data is None and (config.column is not None or config.station != "greensboro"):
        raise ValueError("--column and --station go with --data, which is not given.")
    folder = model_folder(run_dir, config.model)
    loaded = training.load(folder / FINAL)
    trained = loaded.metadata["config"]
    window, scaler = trained["windows"]["window"], data.Scaler(**trained["windows"]["scaler"])
    asked = Config.of(trained) if config.data is None else config
    out = config.run_dir or folder
    path = out / f"forecasts-{pathlib.Path(asked.source).stem}.csv"
    if asked.source == "synthetic":
        series = None
        origins = of_test_series(data.load_task(asked.source, asked.column, asked.station, window))
    else:
        series = data.load_series(asked.source, asked.column, asked.station)
        origins = of_series(series, window)
    forecasts = evaluation.forecast(loaded.model, loaded.params, scaler.scale(origins.seen), window)
    made = scaler.unscale(forecasts[:, -1])
    out.mkdir(parents=True, exist_ok=True)
    write_csv(path, origins, made)
    _plot(path.with_suffix(".png"), series, origins, made)
    return path


class Origins(NamedTuple):
    """Where forecasts are made from, one row each, in the data's own unit."""

    heading: str
    """What `labels` are."""
    labels: Sequence[str]
    seen: np.ndarray
    """`[count, window]`: the values that the model sees."""
    known: np.ndarray
    """`[count, HORIZON]`: the values after them, NaN beyond the end."""


def of_series(series: sources.Series, window: int) -> Origins:
    """Every place of a series that ends a whole window, its last value included.

    Raises:
      ValueError: the series is shorter than a window.
    """
    if len(series.values) < window:
        raise ValueError(f"{series.name} has {len(series.values)} rows; the model forecasts from a window of {window}.")
    seen = np.lib.stride_tricks.sliding_window_view(series.values, window)
    after = np.concatenate([series.values[window:], np.full(data.HORIZON, np.nan)])
    known = np.lib.stride_tricks.sliding_window_view(after, data.HORIZON)
    return Origins("time", series.times[window - 1 :], seen, known)


def of_test_series(task: data.Task) -> Origins:
    """The end of the window of every test series of the synthetic task."""
    labels = [str(row) for row in range(len(task.test))]
    return Origins("series", labels, task.test[:, : task.window], task.test[:, task.window :])


def write_csv(path: pathlib.Path, origins: Origins, made: np.ndarray) -> None:
    """The label, forecast_1 to forecast_10, truth_1 to truth_10; truth that is not known is left empty."""
    steps = range(1, data.HORIZON + 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([origins.heading, *(f"forecast_{h}" for h in steps), *(f"truth_{h}" for h in steps)])
        for label, ahead, truth in zip(origins.labels, made, origins.known, strict=True):
            writer.writerow([label, *(f"{v:.6g}" for v in ahead), *("" if np.isnan(v) else f"{v:.6g}" for v in truth)])


def _plot(path: pathlib.Path, series: sources.Series | None, origins: Origins, made: np.ndarray) -> None:
    """The end of the series with four forecasts and the one beyond it; or one test series with its forecast."""
    window = origins.seen.shape[1]
    if series is None:
        whole = np.concatenate([origins.seen[0], origins.known[0]])
        plots.future(path, "synthetic test series 0", whole, {window - 1: made[0]})
        return
    last = len(series.values) - 1
    wanted = range(last - 8 * data.HORIZON, last + 1, 2 * data.HORIZON)
    shown = {place: made[place - window + 1] for place in wanted if place >= window - 1}
    plots.future(path, data.labelled(series.name, series.unit), series.values, shown)


def model_folder(run_dir: pathlib.Path, model: str) -> pathlib.Path:
    """The folder of the finished model that `--predict` and `--model` name: of its first seed.

    Raises:
      ValueError: there is none, or there are several.
    """
    if not run_dir.is_dir():
        raise ValueError(f"There is no run folder {run_dir}.")
    found = sorted(path.parent for path in run_dir.resolve().rglob(FINAL))  # RUN/MODEL/SEED
    models = {folder.parent.name: folder for folder in reversed(found)}
    if not models:
        raise ValueError(f"{run_dir} has no finished model; train one, or continue with --resume {run_dir}.")
    if model == Config.model and len(models) == 1:
        return found[0]
    if model == Config.model:
        raise ValueError(f"{run_dir} has several models; choose one with --model: {', '.join(sorted(models))}.")
    if model not in models:
        raise ValueError(f"{run_dir} has no finished model {model}; it has {', '.join(sorted(models))}.")
    return models[model]
