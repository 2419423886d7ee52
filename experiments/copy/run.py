# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains models on copy memory, and says which beats chance."""

import functools
import pathlib
import sys
from collections.abc import Sequence

import rich.console

from experiments.copy import data
from experiments.copy.config import COMMAND, Config
from experiments.copy.models import MODELS
from experiments.copy.task import METRIC, task
from experiments.study import generated
from experiments.study.task import Variant

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train)


def variants(config: Config) -> list[Variant]:
    """The rows of the study."""
    made = functools.partial(task, length=config.length, batch_size=config.batch_size, fresh=config.fresh)
    return generated.variants(config, MODELS, made, published_at=1000)


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plot, and who beats chance."""
    rows = generated.train(CONSOLE, COMMAND, config, variants(config), run_dir)
    level = data.chance(config.length)
    for row in rows:
        ratios = ", ".join(f"{value / level:.3g}" for value in row.values(METRIC))
        CONSOLE.print(f"{row.variant.name}: {ratios or 'diverged'} of chance in its runs", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
