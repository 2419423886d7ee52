# SPDX-License-Identifier: Apache-2.0
"""A plot of where each cell ended: every run a dot, their mean a line."""

import pathlib
from collections.abc import Sequence

import matplotlib.style
from matplotlib.figure import Figure

from experiments.study import style
from experiments.study.runner import Row
from experiments.study.task import Task


def final(path: pathlib.Path, task: Task, rows: Sequence[Row]) -> None:
    """Draws the task's measure after the last step, for each cell and seed, and the baselines.

    Args:
      path: of the PNG.
      task: what was learnt.
      rows: of the cells.
    """
    with matplotlib.style.context(style.STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.38 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(rows):
            values = row.values(task.metric)
            colour = style.PALETTE[place % len(style.PALETTE)]
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
