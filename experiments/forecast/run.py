# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains one model or all of them, or forecasts with one."""

import dataclasses
import datetime
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
import rich.console

from experiments.forecast import config as configuration
from experiments.forecast import data, plots, report
from experiments.forecast.config import Config
from experiments.forecast.models import MODELS
from experiments.forecast.predict import predict
from experiments.forecast.report import Row
from experiments.forecast.train import RESULT, VALID, baseline_rows, finished, train

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    run_dir = None
    try:
        config = configuration.parse(args)
        if config.predict is not None:
            CONSOLE.print(f"Forecasts are in {predict(config, config.predict)}.", soft_wrap=True)
            return 0
        config = _with_source(config)
        task = data.load_task(config.source, config.column, config.station, config.steps_seen)
        if config.limit is not None:
            task = task.limited(config.limit)
        run_dir = open_run(config, task)
        train_models(config, task, run_dir)
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if run_dir is not None:
            print(f"\nInterrupted. Continue with: {configuration.PROGRAM} --resume {run_dir}", file=sys.stderr)
        return 130


def _with_source(config: Config) -> Config:
    """The configuration with the default data named and a CSV file's path made absolute."""
    known = config.source in ("weather", "synthetic")
    return dataclasses.replace(config, data=config.source if known else str(pathlib.Path(config.source).resolve()))


def open_run(config: Config, task: data.Task) -> pathlib.Path:
    """Makes the run's folder and writes its configuration and what its data is; or checks those of a resumed run.

    Raises:
      ValueError: the folder is not empty and not to be resumed; the data of a resumed run has changed.
      OSError: the folder cannot be written.
    """
    if config.resume is not None:
        known = json.loads((config.resume / "data.json").read_text())
        if known != task.describe():
            raise ValueError(
                f"The data of {config.resume} has changed since it was started; start a new run, without --resume."
            )
        run_dir = config.resume
    else:
        run_dir = config.run_dir or _new_folder(config)
        if run_dir.exists() and any(run_dir.iterdir()):
            raise ValueError(f"{run_dir} is not empty; continue it with --resume {run_dir}, or choose another.")
        run_dir.mkdir(parents=True, exist_ok=True)
    _write_json(run_dir / "data.json", task.describe())
    _write_json(run_dir / "config.json", config.to_json())
    return run_dir


def _new_folder(config: Config) -> pathlib.Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return pathlib.Path("runs/forecast") / f"{pathlib.Path(config.source).stem}-{config.model}-{now}"


def _write_json(path: pathlib.Path, fields: dict) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")


def train_models(config: Config, task: data.Task, run_dir: pathlib.Path) -> list[Row]:
    """Trains what is not trained yet, prints the table, writes the summary and the plots; returns the rows."""
    names = list(MODELS) if config.model == "all" else [config.model]
    counts = ", ".join(f"{count:,} {part}" for part, count in task.describe()["windows"].items())
    CONSOLE.print(
        f"[bold]{task.name}[/bold]: windows of {task.window} steps, {counts}; writing to {run_dir}", soft_wrap=True
    )
    rows = []
    try:
        for name in names:
            row = finished(run_dir / name, config.epochs)
            if row is None:
                started = any((run_dir / name).glob("*"))
                (run_dir / name / RESULT).unlink(missing_ok=True)
                CONSOLE.print(f"{name}: {MODELS[name].build(config.hidden_dim)}", highlight=False, soft_wrap=True)
                began = time.monotonic()
                row = train(config, task, name, run_dir / name, resume=started)
                score, seconds = row.valid.mse_last, time.monotonic() - began
                CONSOLE.print(f"{name}: validation MSE at the last step {score:.4f}, {seconds:.0f} s", highlight=False)
            rows.append(row)
    finally:
        if rows:
            rows = summarize(config, task, run_dir, rows)
    return rows


def summarize(config: Config, task: data.Task, run_dir: pathlib.Path, trained: list[Row]) -> list[Row]:
    """Prints the table and writes the summary and the plots of the models trained so far."""
    strided = tuple(dict.fromkeys(row.strided for row in sorted(trained, key=lambda row: row.strided)))
    base, linear = baseline_rows(task, strided=strided)
    rows = [*base, *trained]
    CONSOLE.print(report.table(task, rows))
    report.write_summary(run_dir / "summary.json", task, config.to_json(), rows)
    histories = {
        row.name: [json.loads(line) for line in (run_dir / row.name / "metrics.jsonl").read_text().splitlines()]
        for row in trained
    }
    made = {row.name: np.load(run_dir / row.name / VALID) for row in trained}
    best = sorted(trained, key=lambda row: row.valid.mse_last)[:2]
    base_made = {
        "persistence": np.repeat(task.valid[:, task.window - 1 : task.window], data.HORIZON, axis=1),
        "least squares": linear(task.valid)[:, -1],
    }
    plots.forecasts(
        run_dir / "forecasts.png", task, {row.name: made[row.name] for row in best}, base_made["least squares"]
    )
    plots.horizon(run_dir / "horizon.png", task, made, base_made)
    plots.learning(run_dir / "learning.png", task, histories, {row.name: row.valid for row in base[:2]})
    plots.gradients(run_dir / "gradients.png", histories, config.clip_norm)
    CONSOLE.print(f"Metrics, checkpoints and plots are in {run_dir}.", soft_wrap=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
