# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains models on selective copying."""

import functools
import pathlib
import sys
from collections.abc import Sequence

import rich.console

from experiments.selective_copy.config import COMMAND, Config
from experiments.selective_copy.models import entries
from experiments.selective_copy.task import task
from experiments.study import generated
from experiments.study.task import Variant

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


def variants(config: Config) -> list[Variant]:
    """The rows of the study."""
    made = functools.partial(
        task,
        length=config.length,
        recalled=config.recalled,
        batch_size=config.batch_size,
        fresh=config.fresh,
        layers=config.layers,
        width=config.width,
    )
    return generated.variants(config, entries(config.layers, config.width), made, published_at=4096)


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plot."""
    generated.train(CONSOLE, COMMAND, config, variants(config), run_dir)


if __name__ == "__main__":
    sys.exit(main())
