# SPDX-License-Identifier: Apache-2.0
"""What the experiments on generated sequences share: entries of models, their optimizer, checks of a configuration."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import optax

from experiments.study.command import check_names, check_numbers
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


class Config(Protocol):
    """The fields that the configurations of these experiments have in common."""

    @property
    def models(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def hidden_dim(self) -> int: ...
    @property
    def learning_rate(self) -> float | None: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def fresh(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def seeds(self) -> int: ...


COUNTS = ("length", "steps", "batch_size", "hidden_dim", "fresh", "evaluate_every", "seeds")


def check(config: Config, entries: Mapping[str, Entry]) -> None:
    """Refuses numbers out of range and models that are not known.

    Raises:
      ValueError: what was given, and what was expected.
    """
    check_numbers(config, counts=COUNTS, positive=("learning_rate", "clip_norm"))
    check_names("--models", models(config), entries)


def models(config: Config) -> list[str]:
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
    config: Config, entries: Mapping[str, Entry], task: Callable[[int], Task], *, published_at: int
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
