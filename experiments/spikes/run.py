# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains a model of a neuron in several ways, or measures what a gradient costs."""

import pathlib
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.spikes import pictures
from experiments.spikes.config import COMMAND, Config, listed
from experiments.spikes.cost import cost
from experiments.spikes.recipes import CELLS, RECIPES
from experiments.spikes.task import model, parts, task
from experiments.study import plots, report
from experiments.study.conduct import conduct
from experiments.study.runner import Row
from experiments.study.task import Task, Variant
from seqjax import training
from seqjax.base import Cell

CONSOLE = rich.console.Console()
EVALUATIONS = 20


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train, measure)


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plots."""

    def draw(rows: Sequence[Row]) -> None:
        updates = {row.variant.name: row.variant.every["log_every"] for row in rows}
        judged = rows[0].variant.task(0)
        path, unit = run_dir / "passes.png", "pass over the learnt part"
        plots.learning(path, judged, rows, run_dir, unit=unit, steps_in=updates)
        first, best = rows[0], report.best(judged, rows) or rows[0]
        shown = [first] if best is first else [first, best]  # more would hide each other
        pictures.stretch(run_dir / "stretch.png", shown, run_dir, config.bins, config.judge, config.history)

    conduct(CONSOLE, variants(config), range(config.seeds), run_dir, config=COMMAND.to_json(config), then=draw)


def updates_a_pass(config: Config, way: str) -> int:
    """How often the weights are changed while all that is learnt from is read once."""
    learnt, _ = parts(config.bins, config.judge)
    return max(1, learnt.stop // (RECIPES[way].window or learnt.stop))


def variants(config: Config) -> list[Variant]:
    """A row for each cell in each way."""
    return [
        variant(config, f"{name}-{way}", CELLS[name](config.hidden_dim), way)
        for name in listed(config.cells)
        for way in listed(config.ways)
    ]


def variant(config: Config, name: str, cell: Cell, way: str) -> Variant:
    """Adam, its rate falling to zero along a cosine, on clipped gradients."""
    recipe = RECIPES[way]
    updates = updates_a_pass(config, way)
    steps = (config.passes or recipe.passes) * updates
    rate = optax.cosine_decay_schedule(config.learning_rate or recipe.learning_rate, steps)

    def read(replicate: int) -> Task:
        return task(replicate, bins=config.bins, judge=config.judge, history=config.history, window=recipe.window)

    optimizer = training.clipped(optax.adam(rate), norm=config.clip_norm)
    part = steps // EVALUATIONS
    every = {"evaluate_every": max(1, part), "checkpoint_every": max(10, part), "log_every": updates}
    return Variant(name, read, model(cell, recipe.engine), optimizer, steps, note=recipe.note, every=every)


def measure(config: Config) -> bool:
    """What `--cost` asks for."""
    if config.cost is None:
        return False
    CONSOLE.print(cost(config.cost, config.hidden_dim))
    return True


if __name__ == "__main__":
    sys.exit(main())
