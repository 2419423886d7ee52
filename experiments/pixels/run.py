# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains a model around each cell, and reports."""

import pathlib
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.pixels.config import COMMAND, Config
from experiments.pixels.task import METRIC, task
from experiments.study.cells import cells
from experiments.study.conduct import conduct
from experiments.study.task import Task, Variant
from seqjax import training

CONSOLE = rich.console.Console()
STEPS = 784
"""Of the sequences that figures were published on."""
PUBLISHED = {
    False: {"lstm": "87.2", "gru": "96.2", "simple": "21.5"},
    True: {"lstm": "85.7", "gru": "87.3", "simple": "25.3"},
}
"""Percent of MNIST's test digits told right, by whether pixels are permuted; README.md says where they are from."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


def variants(config: Config, learnt: Task, steps: int) -> list[Variant]:
    """A row for each cell; what was published stands beside sequences of the same length, marked as MNIST's."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    known = PUBLISHED[config.permutation is not None] if steps == STEPS else {}
    return [
        Variant(
            name=name,
            task=lambda replicate: learnt,
            model=learnt.model(cell),
            optimizer=training.clipped(optax.adam(schedule), norm=config.clip_norm),
            steps=config.steps,
            published={METRIC: f"{known[name]} (MNIST)"} if name in known else {},
        )
        for name, cell in cells(config.cells, config.hidden_dim).items()
    ]


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, and prints the table."""
    learnt = task(
        path=config.data,
        permutation=config.permutation,
        pool=config.pool,
        limit=config.limit,
        batch_size=config.batch_size,
        stand_in=config.preset == "smoke",
        blocks=config.blocks,
        width=config.hidden_dim,
    )
    steps = learnt.make_batch(0, 0).xs.shape[0]
    CONSOLE.print(f"{learnt.name}; writing to {run_dir}", highlight=False, soft_wrap=True)
    if learnt.name.startswith("made-up"):
        CONSOLE.print(
            "[bold]The images are made up[/bold], as package dataset-fashion-mnist is not installed and no --data was "
            "given: this shows that the program runs, and its numbers mean nothing.",
            highlight=False,
            soft_wrap=True,
        )
    conduct(
        CONSOLE,
        variants(config, learnt, steps),
        range(config.seeds),
        run_dir,
        config=COMMAND.to_json(config),
        evaluate_every=max(config.steps // 20, 50),
        log_every=10,
    )


if __name__ == "__main__":
    sys.exit(main())
