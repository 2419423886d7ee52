# SPDX-License-Identifier: Apache-2.0
"""A whole study: runs it, and reports what there is even when it was stopped."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.console

from experiments.study import report, runner
from experiments.study.files import keep_same
from experiments.study.runner import Row
from experiments.study.task import Variant


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
      variants: of one metric; the first one's task gives the table its title and baselines.
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
            report.summarize(console, variants[0].task(replicates[0]), rows, run_dir, config=config)
            then(rows)
    return rows
