# SPDX-License-Identifier: Apache-2.0
"""What the experiments on generated sequences share: entries of models, a configuration, rows, how they are trained."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import optax
import rich.console

from experiments.study.command import Command, check_names, check_numbers
from experiments.study.conduct import conduct
from experiments.study.runner import Row
from experiments.study.task import Task, Variant
from seqjax import training
from seqjax.base import Layer


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model.

    Args:
      build: makes it from the number of units and the length of the sequences.
      learning_rate: of Adam, see `schedule`.
      published: what others measured at the published length, where there is a figure.
      note: how its memory is initialized.
    """

    build: Callable[[int, int], Layer]
    learning_rate: float
    published: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the configurations of these experiments have in common.

    Args:
      preset: a name for the differences from the defaults.
      models: which, separated by commas.
      length: steps of a sequence.
      steps: of training.
      hidden_dim: units of a recurrent layer.
      fresh: how many sequences that training never sees models are judged by.
      batch_size: sequences in a batch, new ones for every step.
      learning_rate: of Adam, held for 70% of the steps and then falling to zero; by default each model's own.
      clip_norm: the global norm that gradients are clipped to.
      evaluate_every: in steps.
      seeds: runs of each model, with seeds 0, 1, ...
      run_dir: where to write; by default a new folder in runs.
      resume: a run's folder, to continue it; --seeds may be raised.
    """

    preset: str
    models: str
    length: int
    steps: int
    hidden_dim: int
    fresh: int = 500
    batch_size: int = 32
    learning_rate: float | None = None
    clip_norm: float = 1.0
    evaluate_every: int = 100
    seeds: int = 3
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None


COUNTS = ("length", "steps", "batch_size", "hidden_dim", "fresh", "evaluate_every", "seeds")


def check(config: Settings, entries: Mapping[str, Entry]) -> None:
    """Refuses numbers out of range and models that are not known.

    Raises:
      ValueError: what was given, and what was expected.
    """
    check_numbers(config, counts=COUNTS, positive=("learning_rate", "clip_norm"))
    check_names("--models", models(config), entries)


def models(config: Settings) -> list[str]:
    """The names of the models, in order."""
    return [name.strip() for name in config.models.split(",")]


def schedule(rate: float, steps: int) -> optax.Schedule:
    """A learning rate that is held for the first 70% of the steps, and then falls to zero in a line.

    It is held because these losses stay at chance for long: a rate that falls from the start is gone when
    they break away.

    >>> [round(float(schedule(1.0, 10)(step)), 3) for step in (0, 7, 8, 10)]
    [1.0, 1.0, 0.667, 0.0]
    """
    held = 7 * steps // 10
    return optax.linear_schedule(rate, 0.0, transition_steps=steps - held, transition_begin=held)


def variants(
    config: Settings, entries: Mapping[str, Entry], task: Callable[[int], Task], *, published_at: int
) -> list[Variant]:
    """The rows of a study: Adam, on clipped gradients.

    Args:
      config: the command's.
      entries: the models by name.
      task: that of a seed.
      published_at: the length that the published figures are for.
    """
    rows = []
    for name in models(config):
        entry = entries[name]
        rate = schedule(config.learning_rate or entry.learning_rate, config.steps)
        known = entry.published if config.length == published_at else ""
        rows.append(
            Variant(
                name=name,
                task=task,
                model=entry.build(config.hidden_dim, config.length),
                optimizer=training.clipped(optax.adam(rate), norm=config.clip_norm),
                steps=config.steps,
                published={task(0).metric: known} if known else {},
                note=entry.note,
            )
        )
    return rows


def train(
    console: rich.console.Console, command: Command, config: Settings, rows: Sequence[Variant], run_dir: pathlib.Path
) -> list[Row]:
    """Trains what is not trained yet, prints the table, writes the summary and the plot."""
    return conduct(
        console,
        rows,
        range(config.seeds),
        run_dir,
        config=command.to_json(config),
        evaluate_every=config.evaluate_every,
        checkpoint_every=500,
        log_every=20,
    )
