# SPDX-License-Identifier: Apache-2.0
"""A whole study: runs it, and reports what there is even when it was stopped."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.console

from experiments.study import report, runner
from experiments.study.files import keep_same
from experiments.study.runner import Row
from experiments.study.task import Task, Variant


def conduct(
    console: rich.console.Console,
    variants: Sequence[Variant],
    replicates: Sequence[int],
    run_dir: pathlib.Path,
    *,
    config: Mapping[str, Any],
    then: Callable[[Sequence[Row]], None] = lambda rows: None,
    **every: Any,
) -> list[Row]:
    """`runner.run`, then `report.summarize`, which also comes after Ctrl-C, of the runs that are finished.

    Args:
      console: where progress and the table are printed.
      variants: of one metric; the first one's task gives the table its title and, on average over its finished
        replicates, its baselines.
      replicates, run_dir, config, every: see `runner.run`.
      then: what else is made of the rows, pictures say.

    Returns:
      A row for each variant that has a finished run.

    Raises:
      ValueError: the data have changed since the run was started, and what `runner.run` refuses.
    """
    described = variants[0].task(replicates[0]).data
    if described is not None:
        keep_same(run_dir / "data.json", described)

    def told(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        runner.run(variants, replicates, run_dir, config=config, told=told, **every)
    finally:
        rows = runner.partial(variants, replicates, run_dir)
        if rows:
            seen = {outcome.replicate for row in rows for outcome in row.outcomes}
            task = _averaged([variants[0].task(replicate) for replicate in replicates if replicate in seen])
            report.summarize(console, task, rows, run_dir, config=config)
            then(rows)
    return rows


def _averaged(tasks: Sequence[Task]) -> Task:
    """The first of some replicates' tasks, with the means of what baselines reach: folds differ in it."""

    def mean(reached: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: statistics.fmean(found[name] for found in reached) for name in reached[0]}

    return dataclasses.replace(
        tasks[0],
        baselines=mean([task.baselines for task in tasks]),
        also={measure: mean([task.also[measure] for task in tasks]) for measure in tasks[0].also},
    )
