# SPDX-License-Identifier: Apache-2.0
"""Forecasts of a trained model for any series, as CSV and a plot."""

import csv
import pathlib

import numpy as np

from experiments.forecast import data, evaluation, plots
from experiments.forecast.config import Config
from experiments.forecast.models import MODELS
from experiments.forecast.train import FINAL
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
    trained = Config.from_json(loaded.metadata["config"])
    window = loaded.metadata["data"]["window"]
    scaler = data.Scaler(**loaded.metadata["data"]["scaler"])
    asked = trained if config.data is None else config
    if asked.source == "synthetic":
        windows = data.load_task(asked.source, asked.column, asked.station, window).test
        label, known, unit = "series", windows[:, window:], ""
        times = tuple(str(row) for row in range(len(windows)))
        seen = windows[:, :window]
    else:
        series = data.load_series(asked.source, asked.column, asked.station)
        if len(series.values) < window:
            raise ValueError(
                f"{series.name} has {len(series.values)} rows; the model forecasts from a window of {window}."
            )
        label, unit, times = "time", series.unit, series.times[window - 1 :]
        seen = np.lib.stride_tricks.sliding_window_view(series.values, window)
        beyond = np.concatenate([series.values[window:], np.full(data.HORIZON, np.nan)])
        known = np.lib.stride_tricks.sliding_window_view(beyond, data.HORIZON)
    forecasts = evaluation.forecaster(loaded.model, window)
    made = scaler.unscale(forecasts(loaded.params, scaler.scale(seen))[:, -1])
    out = config.run_dir or folder
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"forecasts-{pathlib.Path(asked.source).stem}.csv"
    write_csv(path, label, times, made, known)
    if label == "time":
        _plot(path.with_suffix(".png"), f"{series.name} ({unit})", series.values, made, window)
    else:
        whole = np.concatenate([seen[0], known[0]])
        plots.future(path.with_suffix(".png"), "synthetic series 0", whole, {window - 1: made[0]})
    return path


def write_csv(path: pathlib.Path, label: str, times: tuple[str, ...], made: np.ndarray, known: np.ndarray) -> None:
    """`label`, forecast_1 to forecast_10, truth_1 to truth_10; truth that is not known (NaN) is left empty."""
    steps = range(1, data.HORIZON + 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([label, *(f"forecast_{h}" for h in steps), *(f"truth_{h}" for h in steps)])
        for time, ahead, truth in zip(times, made, known, strict=True):
            writer.writerow([time, *(f"{v:.6g}" for v in ahead), *("" if np.isnan(v) else f"{v:.6g}" for v in truth)])


def _plot(path: pathlib.Path, label: str, values: np.ndarray, made: np.ndarray, window: int) -> None:
    """Four forecasts whose truth is known, ten steps and a half apart, and the one beyond the end."""
    last = len(values) - 1
    places = [place for place in range(last - 8 * data.HORIZON, last + 1, 2 * data.HORIZON) if place >= window - 1]
    plots.future(path, label, values, {place: made[place - window + 1] for place in places or [last]})


def model_folder(run_dir: pathlib.Path, model: str) -> pathlib.Path:
    """The folder of the one finished model that `--predict` and `--model` name.

    Raises:
      ValueError: there is none, or there are several.
    """
    if not run_dir.is_dir():
        raise ValueError(f"There is no run folder {run_dir}.")
    if (run_dir / FINAL).is_dir():
        return run_dir
    finished = [name for name in MODELS if (run_dir / name / FINAL).is_dir()]
    if not finished:
        raise ValueError(f"{run_dir} has no finished model; train one, or continue with --resume {run_dir}.")
    if model == "all" and len(finished) > 1:
        raise ValueError(f"{run_dir} has several models; choose one with --model: {', '.join(finished)}.")
    chosen = finished[0] if model == "all" else model
    if chosen not in finished:
        raise ValueError(f"{run_dir} has no finished model {model}; it has {', '.join(finished)}.")
    return run_dir / chosen
