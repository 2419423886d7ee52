# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains models, lets them play, or lets a trained one play once more."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.chorales import data, sample
from experiments.chorales.config import COMMAND, Config
from experiments.chorales.task import METRIC, task
from experiments.study.cells import cells
from experiments.study.conduct import conduct
from experiments.study.task import Task, Variant
from seqjax import training

CONSOLE = rich.console.Console()
PUBLISHED = {
    "JSB": {"gru": "8.43 to 8.54", "lstm": "8.45 to 8.67"},
    "Nottingham": {"gru": "3.46", "lstm": "3.29"},
}
"""Nats a step on the test part, by set and cell; where they are from, README.md says."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train, play)


def task_of(config: Config) -> Task:
    """The task as configured."""
    return task(
        path=config.data,
        steps_per_quarter=config.steps_per_quarter,
        batch_size=config.batch_size,
        crop=config.crop,
        dropout=config.dropout,
        transpose=config.transpose,
    )


def variants(config: Config, learnt: Task) -> list[Variant]:
    """A row for each cell."""
    corpus = data.load(config.data, config.steps_per_quarter)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return [
        Variant(
            name=name,
            task=lambda replicate: learnt,
            model=learnt.model(cell),
            optimizer=training.clipped(optax.adam(schedule), norm=config.clip_norm),
            steps=config.steps,
            published=published(corpus, name),
        )
        for name, cell in cells(config.cells, config.hidden_dim).items()
    ]


def published(corpus: data.Corpus, cell: str) -> dict[str, str]:
    """The figure of the same set; beside music21's Bach in quarters that of JSB, marked as another set's."""
    alike = corpus.name.startswith("Bach") and corpus.steps_per_quarter == 1
    figure = PUBLISHED.get(corpus.published or ("JSB" if alike else ""), {}).get(cell)
    if figure is None:
        return {}
    return {METRIC: figure if corpus.published else f"{figure} (JSB)"}


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, and lets the first run of each cell play."""
    corpus, learnt = data.load(config.data, config.steps_per_quarter), task_of(config)
    CONSOLE.print(corpus.describe(), highlight=False, soft_wrap=True)
    if corpus.published is None:
        CONSOLE.print(
            "This is not a set that figures were published on: JSB Chorales and Nottingham are read from .mat files "
            "with --data. JSB's figures are for orientation; it moves in quarters, where each step has more news.",
            highlight=False,
            soft_wrap=True,
        )
    rows = conduct(
        CONSOLE,
        variants(config, learnt),
        range(config.seeds),
        run_dir,
        config=COMMAND.to_json(config),
        evaluate_every=max(config.steps // 10, 100),
        log_every=10,
    )
    for row in rows:
        try:
            perform(run_dir / row.variant.name / "0", run_dir / f"sample-{row.variant.name}", config)
        except ValueError as error:
            CONSOLE.print(str(error), highlight=False, soft_wrap=True)


def perform(folder: pathlib.Path, stem: pathlib.Path, config: Config) -> None:
    """Lets the model of `folder` play, and says where that is."""
    loaded = training.load(folder)
    corpus = data.load(config.data, config.steps_per_quarter)
    title = f"{folder.parent.name} plays, from the opening of a test piece (grey)"
    sample.write(stem, corpus, title, loaded.model, loaded.params, steps=config.sample_steps, seed=config.sample_seed)
    CONSOLE.print(f"A piece played by {folder.parent.name} is in {stem}.mid.", highlight=False, soft_wrap=True)


def play(config: Config) -> bool:
    """What `--sample` asks for: `sample-SEED.mid` and `.png` in the model's folder."""
    if config.sample is None:
        return False
    trained = COMMAND.of_model(config.sample)
    asked = dataclasses.replace(trained, sample_seed=config.sample_seed, sample_steps=config.sample_steps)
    perform(config.sample, config.sample / f"sample-{config.sample_seed}", asked)
    return True


if __name__ == "__main__":
    sys.exit(main())
