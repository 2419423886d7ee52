# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains the models, each with several seeds, and prints their table."""

import functools
import pathlib
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.mnist1d.config import COMMAND, PRESETS, Config
from experiments.mnist1d.models import MODELS
from experiments.mnist1d.task import task
from experiments.study.conduct import conduct
from experiments.study.task import Variant

CONSOLE = rich.console.Console()
PROTOCOL = ("steps", "batch_size", "hidden_dim", "learning_rate")
"""The published one is that of the default preset in these."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet and reports it all."""
    variants = [variant(name, config) for name in config.names]
    conduct(
        CONSOLE,
        variants,
        range(config.seeds),
        run_dir,
        config=COMMAND.to_json(config),
        evaluate_every=config.evaluate_every,
        log_every=10,
    )


def variant(name: str, config: Config) -> Variant:
    """The row of the model `name`."""
    entry = MODELS[name]
    comparable = all(getattr(config, name) == getattr(PRESETS["default"], name) for name in PROTOCOL)
    published = entry.published[config.shuffled] if comparable else None
    return Variant(
        name=name,
        task=functools.partial(task, shuffled=config.shuffled, batch_size=config.batch_size),
        model=entry.build(config.hidden_dim),
        optimizer=optax.adam(config.learning_rate),
        steps=config.steps,
        published={"accuracy": published} if published else {},
    )


if __name__ == "__main__":
    sys.exit(main())
