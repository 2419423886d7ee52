# SPDX-License-Identifier: Apache-2.0
"""What a study says: a table of means and spreads beside what is published, all as JSON, and plots."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
from rich.markup import escape

from experiments.study import plots
from experiments.study.runner import Row
from experiments.study.task import Task


def summarize(
    console: rich.console.Console, task: Task, rows: Sequence[Row], run_dir: pathlib.Path, *, config: Mapping[str, Any]
) -> None:
    """Prints the table, and writes `summary.json`, `learning.png` and `final.png` into the study's folder."""
    console.print(table(task, rows))
    write(run_dir / "summary.json", task, rows, config)
    plots.learning(run_dir / "learning.png", task, rows, run_dir)
    plots.final(run_dir / "final.png", task, rows)
    console.print(f"Metrics, checkpoints, the summary and the plots are in {run_dir}.", soft_wrap=True, highlight=False)


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
