# SPDX-License-Identifier: Apache-2.0
"""A study's plots: how each row learnt, and where each of its runs ended."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.style
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from experiments.study.runner import Row
from experiments.study.style import PALETTE, STYLE, line, logarithmic
from experiments.study.task import Task
from seqjax import training


def learning(
    path: pathlib.Path,
    task: Task,
    rows: Sequence[Row],
    run_dir: pathlib.Path,
    *,
    unit: str = "training step",
    steps_in: Mapping[str, float] | None = None,
) -> None:
    """The measure against the training step: the mean over replicates, and the band that they fill.

    A run that diverged is a thin line of its own, up to a cross where it was last judged.

    Args:
      path: of the PNG.
      task: what was learnt.
      rows: of its variants.
      run_dir: of the study, where the metrics are.
      unit: what the horizontal axis counts, if not steps.
      steps_in: of each row, by its name, in one unit.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axis = figure.subplots()
        low, high = math.inf, -math.inf
        for index, row in enumerate(rows):
            steps, values, given_up = curves(task.metric, row, run_dir)
            drawn, scale = line(index), 1.0 if steps_in is None else 1 / steps_in[row.variant.name]
            at = scale * np.array(steps)
            if values.size:
                marker = "o" if len(steps) < 30 else None
                axis.plot(at, values.mean(0), **drawn, lw=1.5, marker=marker, ms=2.5, label=row.variant.name)
            if len(values) > 1:
                axis.fill_between(at, values.min(0), values.max(0), color=drawn["color"], alpha=0.15, lw=0)
            for curve in given_up:
                axis.plot(scale * np.array([*curve]), [*curve.values()], **drawn, lw=0.7, marker="x", markevery=[-1])
            seen = [*values.ravel(), *(value for curve in given_up for value in curve.values())]
            low, high = min([low, *seen]), max([high, *seen])
        for index, (name, value) in enumerate(task.baselines.items()):
            low, high = min(low, value), max(high, value)
            axis.axhline(value, color="0.35", ls=("--", ":", "-.")[index % 3], lw=1.2, label=name)
        if task.better == "lower" and 0 < 5 * low < high:
            logarithmic(axis)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=steps_in is None, min_n_ticks=1))
        most = max(len(row.outcomes) for row in rows)
        bands = f" (lines: means of up to {most} runs; bands: their range)" if most > 1 else ""
        axis.set(xlabel=f"{unit}{bands}", ylabel=task.metric)
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


def final(path: pathlib.Path, task: Task, rows: Sequence[Row]) -> None:
    """The measure after the last step: every run a dot, their mean a line; and the baselines.

    Args:
      path: of the PNG.
      task: what was learnt.
      rows: of its variants.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.38 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(rows):
            values = row.values(task.metric)
            colour = PALETTE[place % len(PALETTE)]
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, ms=5)
            if values:
                axis.plot([row.mean(task.metric)] * 2, [place - 0.28, place + 0.28], color=colour, lw=2.5)
            if diverged := row.diverged(task.metric):
                axis.annotate(
                    f"{diverged} diverged", (1, place), xycoords=("axes fraction", "data"), ha="right", va="center"
                )
        for index, (name, value) in enumerate(task.baselines.items()):
            axis.axvline(value, color="0.35", ls=("--", ":", "-.")[index % 3], lw=1.2, label=name)
        axis.set_yticks(range(len(rows)), [row.variant.name for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        positive = all(value > 0 for row in rows for value in row.values(task.metric))
        if positive and task.better == "lower" and all(value > 0 for value in task.baselines.values()):
            axis.set_xscale("log")
        axis.set_xlabel(f"{task.metric}, {task.better} is better; dots are seeds, lines their means")
        axis.set_title(task.name, loc="left")
        if task.baselines:
            figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path)
