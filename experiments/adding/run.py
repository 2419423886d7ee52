# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains models on the adding problem, and says which solved it, and when."""

import functools
import json
import pathlib
import sys
from collections.abc import Sequence

import rich.console

from experiments.adding.config import COMMAND, Config
from experiments.adding.models import MODELS
from experiments.adding.task import METRIC, task
from experiments.study import generated
from experiments.study.runner import Row
from experiments.study.task import Variant
from seqjax import training

CONSOLE = rich.console.Console()
SOLVED = 1e-3
"""A mean squared error below it: the two numbers are known to about 2% of their range."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


def variants(config: Config) -> list[Variant]:
    """The rows of the study."""
    made = functools.partial(
        task,
        length=config.length,
        batch_size=config.batch_size,
        curriculum=config.growing,
        fresh=config.fresh,
    )
    return generated.variants(config, MODELS, made, published_at=600)


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plot, and who solved it."""
    rows = generated.train(CONSOLE, COMMAND, config, variants(config), run_dir)
    found = {row.variant.name: solved(row, run_dir) for row in rows}
    (run_dir / "solved.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, steps in found.items():
        times = [str(step) for step in steps if step is not None]
        first = f", first seen at step {', '.join(times)}" if times else ""
        CONSOLE.print(f"{name}: below {SOLVED:g} in {len(times)} of {len(steps)} runs{first}", highlight=False)


def solved(row: Row, run_dir: pathlib.Path) -> list[int | None]:
    """For each run the first evaluation below `SOLVED`; None where the last one is not below it."""
    steps: list[int | None] = []
    for found in row.outcomes:
        lines = training.read_metrics(run_dir / row.variant.name / str(found.replicate) / "metrics.jsonl")
        below = [line["step"] for line in lines if line.get(METRIC) is not None and line[METRIC] < SOLVED]
        steps.append(below[0] if not found.diverged and found.values[METRIC] < SOLVED else None)
    return steps


if __name__ == "__main__":
    sys.exit(main())
