# SPDX-License-Identifier: Apache-2.0
"""The comparison's command: cells x seeds under one budget."""

import functools
import pathlib
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.compare import budget, tasks
from experiments.compare.config import COMMAND, Config
from experiments.study import plots
from experiments.study.cells import cells
from experiments.study.conduct import conduct
from experiments.study.runner import Row
from experiments.study.task import Variant
from seqjax import training

CONSOLE = rich.console.Console()
EVALUATIONS = 20


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


@functools.cache
def adam(learning_rate: float, clip_norm: float | None) -> optax.GradientTransformation:
    """Adam on clipped gradients; always the same object, for which a training step is compiled once."""
    return training.clipped(optax.adam(learning_rate), norm=clip_norm)


def variants(config: Config, run_dir: pathlib.Path) -> list[Variant]:
    """A row for each cell; they share the task, the optimizer and the budget."""
    task = tasks.load(config.task, config.options)
    first = task(0)
    models = {name: first.model(cell) for name, cell in cells(config.cells, config.hidden_dim).items()}
    optimizer = adam(config.learning_rate, config.clip_norm)
    steps = dict.fromkeys(models, config.steps)
    if config.seconds is not None:
        steps = budget.steps_of(config.seconds, first, models, optimizer, run_dir / "seconds_per_step.json")
        told = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        CONSOLE.print(f"Steps in {config.seconds:g} seconds: {told}.", highlight=False)
    return [
        Variant(name=name, task=task, model=model, optimizer=optimizer, steps=steps[name])
        for name, model in models.items()
    ]


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plots."""
    rows = variants(config, run_dir)
    longest = max(row.steps for row in rows)

    def draw(finished: Sequence[Row]) -> None:
        if config.seconds is not None:
            steps_in = {row.name: row.steps / config.seconds for row in rows}
            path = run_dir / "learning-seconds.png"
            plots.learning(path, rows[0].task(0), finished, run_dir, unit="seconds of training", steps_in=steps_in)

    conduct(
        CONSOLE,
        rows,
        range(config.seeds),
        run_dir,
        config=COMMAND.to_json(config),
        then=draw,
        evaluate_every=config.evaluate_every or max(1, longest // EVALUATIONS),
        checkpoint_every=config.checkpoint_every,
        log_every=20,
    )


if __name__ == "__main__":
    sys.exit(main())
