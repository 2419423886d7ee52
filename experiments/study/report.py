# SPDX-License-Identifier: Apache-2.0
"""What a study says: a table of means and spreads beside what is published, a plot of the learning, all as JSON."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import matplotlib.ticker
import numpy as np
import rich.box
import rich.console
import rich.table
from matplotlib.figure import Figure
from rich.markup import escape

from experiments.study.runner import Row
from experiments.study.style import STYLE, line, logarithmic
from experiments.study.task import Task
from seqjax import training


def summarize(
    console: rich.console.Console, task: Task, rows: Sequence[Row], run_dir: pathlib.Path, *, config: Mapping[str, Any]
) -> None:
    """Prints the table, and writes `summary.json` and `learning.png` into the study's folder."""
    console.print(table(task, rows))
    write(run_dir / "summary.json", task, rows, config)
    learning(run_dir / "learning.png", task, rows, run_dir)
    console.print(f"Metrics, checkpoints, the summary and the plot are in {run_dir}.", soft_wrap=True, highlight=False)


def table(task: Task, rows: Sequence[Row]) -> rich.table.Table:
    """A row for each baseline and variant; the best mean is bold."""
    reached = {task.metric: task.baselines, **task.also}
    winner = best(task, rows)
    lines = []
    for name in dict.fromkeys(name for found in reached.values() for name in found):
        lines.append(([name, *(number(found[name]) if name in found else "" for found in reached.values())], "dim"))
    for row in rows:
        measured = [mean_and_spread(row, measure) for measure in reached]
        lines.append(([row.variant.name, *measured, *_costs(task, row)], "bold" if row is winner else ""))
    made = rich.table.Table(
        title=f"{task.name}: {task.metric}, {task.better} is better",
        caption="Mean ± sample standard deviation over the runs that did not diverge.",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    headings = ["model", *(measure.replace("_", "\n") for measure in reached)]
    headings += ["published", "runs", "parameters", "ms a\nstep", "s a\nrun", "note"]
    columns = itertools.zip_longest(headings, *(cells for cells, _ in lines), fillvalue="")
    filled = [(heading, column) for heading, *column in columns if any(column)]
    for heading, column in filled:
        # on a narrow terminal cells are folded between words, and no word or number is cut
        longest = max(len(word) for cell in (heading, *column) for word in cell.split())
        made.add_column(heading, justify="left" if heading in ("model", "note") else "right", min_width=longest)
    for index, (_, style) in enumerate(lines):
        made.add_row(*(escape(column[index]) for _, column in filled), style=style)
    return made


def _costs(task: Task, row: Row) -> list[str]:
    """What stands behind the measures: published, runs, parameters, milliseconds a step, seconds a run, the note."""
    diverged = row.diverged(task.metric)
    steps = [found.milliseconds for found in row.outcomes if found.milliseconds is not None]
    return [
        row.variant.published.get(task.metric, ""),
        f"{len(row.outcomes)}" + (f", {diverged} diverged" if diverged else ""),
        f"{row.outcomes[0].parameters:,}",
        f"{np.median(steps):.2f}" if steps else "",
        f"{np.mean([found.seconds for found in row.outcomes]):.0f}",
        row.variant.note,
    ]


def mean_and_spread(row: Row, measure: str) -> str:
    """The mean, and the spread where there is one."""
    mean, spread = row.mean(measure), row.spread(measure)
    if math.isnan(mean):
        return "-"
    return number(mean) if math.isnan(spread) else f"{number(mean)} ±{spread:.2g}"


def number(value: float) -> str:
    """Four significant digits.

    >>> number(0.000123456), number(98.76543)
    ('0.0001235', '98.77')
    """
    return f"{value:.4g}"


def best(task: Task, rows: Sequence[Row]) -> Row | None:
    """The row with the best mean, none of whose runs diverged; `None` where there are not two to choose from."""
    judged = [row for row in rows if not row.diverged(task.metric)]
    if len(rows) < 2 or not judged:
        return None
    return (min if task.better == "lower" else max)(judged, key=lambda row: row.mean(task.metric))


def write(path: pathlib.Path, task: Task, rows: Sequence[Row], config: Mapping[str, Any]) -> None:
    """Writes the configuration and every run's outcome as JSON; a number that is not finite is null."""
    summary = {
        "config": dict(config),
        "task": task.name,
        "metric": task.metric,
        "better": task.better,
        "baselines": dict(task.baselines),
        "also": {measure: dict(found) for measure, found in task.also.items()},
        "rows": [
            {
                "name": row.variant.name,
                "model": repr(row.variant.model),
                "published": dict(row.variant.published),
                "note": row.variant.note,
                "mean": row.mean(task.metric),
                "spread": row.spread(task.metric),
                "outcomes": [dataclasses.asdict(found) for found in row.outcomes],
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def learning(path: pathlib.Path, task: Task, rows: Sequence[Row], run_dir: pathlib.Path) -> None:
    """The measure against the training step: the mean over replicates, and the band that they fill.

    A run that diverged is a thin line of its own, up to a cross where it was last judged.

    Args:
      path: of the PNG.
      task: what was learnt.
      rows: of its variants.
      run_dir: of the study, where the metrics are.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axis = figure.subplots()
        low, high = math.inf, -math.inf
        for index, row in enumerate(rows):
            steps, values, given_up = curves(task.metric, row, run_dir)
            drawn = line(index)
            if values.size:
                marker = "o" if len(steps) < 30 else None
                axis.plot(steps, values.mean(0), **drawn, lw=1.5, marker=marker, ms=2.5, label=row.variant.name)
            if len(values) > 1:
                axis.fill_between(steps, values.min(0), values.max(0), color=drawn["color"], alpha=0.15, lw=0)
            for curve in given_up:
                axis.plot(*zip(*curve.items(), strict=True), **drawn, lw=0.7, marker="x", markevery=[-1])
            seen = [*values.ravel(), *(value for curve in given_up for value in curve.values())]
            low, high = min([low, *seen]), max([high, *seen])
        for index, (name, value) in enumerate(task.baselines.items()):
            low, high = min(low, value), max(high, value)
            axis.axhline(value, color="0.35", ls=("--", ":", "-.")[index % 3], lw=1.2, label=name)
        if task.better == "lower" and 0 < 5 * low < high:
            logarithmic(axis)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        most = max(len(row.outcomes) for row in rows)
        bands = f"; lines are means of up to {most} runs, bands from the least to the greatest" if most > 1 else ""
        axis.set(xlabel=f"training step{bands}", ylabel=task.metric)
        axis.set_title(task.name, loc="left")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path)


def curves(metric: str, row: Row, run_dir: pathlib.Path) -> tuple[list[int], np.ndarray, list[dict[int, float]]]:
    """The steps at which all runs of a variant were judged, the measure there `[run, step]`, and runs that diverged.

    The latter are the measure by the step, and in neither of the former; those that were never judged are left out.
    """
    whole: list[dict[int, float]] = []
    given_up: list[dict[int, float]] = []
    for found in row.outcomes:
        lines = training.read_metrics(run_dir / row.variant.name / str(found.replicate) / "metrics.jsonl")
        curve = {line["step"]: line[metric] for line in lines if line.get(metric) is not None}
        (given_up if found.diverged else whole).append(curve)
    steps = sorted(set.intersection(*map(set, whole))) if whole else []
    values = np.array([[curve[step] for step in steps] for curve in whole])
    return steps, values, [curve for curve in given_up if curve]
