# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains models on eight people, streams them over the recordings of two others."""

import pathlib
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.study.conduct import conduct
from experiments.study.task import Task, Variant
from experiments.watch import data
from experiments.watch.config import COMMAND, Config
from experiments.watch.models import STUDIES, Recipe
from experiments.watch.task import task
from seqjax import training

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plot."""
    data.load()
    conduct(
        CONSOLE,
        [variant(config, name, STUDIES[config.study][name]) for name in config.names],
        config.replicates,
        run_dir,
        config=COMMAND.to_json(config),
        evaluate_every=config.evaluate_every,
        checkpoint_every=200,
        log_every=10,
    )


def variant(config: Config, name: str, recipe: Recipe) -> Variant:
    """A row of the study."""

    def fold(replicate: int) -> Task:
        return task(
            replicate,
            validation=config.judge == "validation",
            whole=config.study == "whole",
            mirrored=recipe.mirrored,
            variation=recipe.variation,
            loss=recipe.loss,
            model=recipe.model,
        )

    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates))
    return Variant(
        name,
        fold,
        recipe.model(recipe.cell(config.hidden_dim)),
        training.clipped(adam, norm=config.clip_norm) if recipe.clip else adam,
        config.updates,
        note=recipe.note,
    )


if __name__ == "__main__":
    sys.exit(main())
