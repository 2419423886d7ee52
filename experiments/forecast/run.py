# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains models, or forecasts with one."""

import functools
import pathlib
import sys
from collections.abc import Callable, Sequence

import optax
import rich.console

from experiments.forecast import baselines, data
from experiments.forecast.config import COMMAND, Config
from experiments.forecast.models import MODELS, Entry
from experiments.forecast.predict import predict
from experiments.forecast.report import pictures
from experiments.forecast.task import METRIC, learn
from experiments.study.conduct import conduct
from experiments.study.task import Task, Variant
from seqjax import training

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train, forecast)


def forecast(config: Config) -> bool:
    """What `--predict` asks for."""
    if config.predict is None:
        return False
    CONSOLE.print(f"Forecasts are in {predict(config, config.predict)}.", soft_wrap=True)
    return True


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, writes the summary and the plots."""
    known = data.load_task(config.source, config.column, config.station, config.steps_seen).limited(config.limit)
    rows = variants(config, known)
    counts = ", ".join(f"{count:,} {part}" for part, count in known.describe()["windows"].items())
    what = f"[bold]{known.name}[/bold]: windows of {known.window} steps, {counts}; writing to {run_dir}"
    CONSOLE.print(what, soft_wrap=True)
    epoch = len(known.train) // config.batch_size
    conduct(
        CONSOLE,
        rows,
        range(config.seeds),
        run_dir,
        config={**COMMAND.to_json(config), "windows": known.describe()},
        then=functools.partial(pictures, known, config.clip_norm, run_dir),
        evaluate_every=epoch,
        checkpoint_every=epoch,
    )


def variants(config: Config, known: data.Task) -> list[Variant]:
    """The rows of the table.

    Raises:
      ValueError: fewer training windows than a batch.
    """
    entries = {name: MODELS[name] for name in config.names}
    reached = {at: baselines.reach(known, at) for at in sorted({entry.at for entry in entries.values()})}
    tasks = {at: learn(known, reached, at, batch_size=config.batch_size) for at in reached}
    comparable = (config.source, known.window, config.learning_rate) == ("synthetic", 50, None)
    return [
        Variant(
            name,
            _for_all_seeds(tasks[entry.at]),
            entry.build(config.hidden_dim),
            training.clipped(optimizer(config, entry), norm=config.clip_norm if entry.clip else None),
            config.epochs * (len(known.train) // config.batch_size),
            published={METRIC: entry.published} if comparable and entry.published else {},
            note=entry.at,
        )
        for name, entry in entries.items()
    ]


def _for_all_seeds(task: Task) -> Callable[[int], Task]:
    return lambda seed: task


def optimizer(config: Config, entry: Entry) -> optax.GradientTransformation:
    """What the gradients go to."""
    rate = config.learning_rate or entry.learning_rate
    return optax.adam(rate) if config.optimizer == "adam" else optax.sgd(rate, momentum=0.9)


if __name__ == "__main__":
    sys.exit(main())
