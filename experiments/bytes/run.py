# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: trains a model of the text, or lets a trained one write."""

import pathlib
import statistics
import sys
from collections.abc import Sequence

import optax
import rich.console

from experiments.bytes import data, judge
from experiments.bytes.config import COMMAND, Config
from experiments.bytes.sample import check_alphabet, write
from experiments.bytes.task import METRIC, task
from experiments.study.cells import cells
from experiments.study.conduct import conduct
from experiments.study.files import read_json, write_json
from experiments.study.task import Task, Variant
from seqjax import training

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    return COMMAND.main(args, train, let_write)


def steps_of(config: Config, learnt: int) -> int:
    """Windows in so many passes over `learnt` bytes."""
    lane = (learnt - 1) // config.batch_size
    return max(1, round(config.epochs * (lane // config.window)))


def variants(config: Config, read: Task, learnt: int) -> list[Variant]:
    """A row for each cell."""
    steps = steps_of(config, learnt)
    rate = config.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(rate / 100, rate, max(1, steps // 100), max(2, steps))
    return [
        Variant(
            name=name,
            task=lambda replicate: read,
            model=read.model(*(cell,) * config.layers),
            optimizer=training.clipped(optax.adam(schedule), norm=config.clip_norm),
            steps=steps,
        )
        for name, cell in cells(config.cells, config.hidden_dim).items()
    ]


def train(config: Config, run_dir: pathlib.Path) -> None:
    """Trains what is not trained yet, prints the table, and judges each model again while it goes on learning."""
    corpus = data.load(config.data, config.limit)
    CONSOLE.print(
        f"{corpus.name}: {len(corpus.manifest)} files, {len(corpus.text):,} bytes, manifest {corpus.sha256[:12]}",
        highlight=False,
        soft_wrap=True,
    )
    read = task(path=config.data, limit=config.limit, window=config.window, batch_size=config.batch_size)
    planned = variants(config, read, corpus.cut)
    rows = conduct(
        CONSOLE,
        planned,
        range(config.seeds),
        run_dir,
        config=COMMAND.to_json(config),
        evaluate_every=-(-planned[0].steps // config.evaluations),
        checkpoint_every=200,
        log_every=10,
    )
    adapted = {
        row.variant.name: [
            learning_on(corpus, run_dir / row.variant.name / str(outcome.replicate), config.dynamic_rate)
            for outcome in row.outcomes
            if not outcome.diverged
        ]
        for row in rows
    }
    write_json(run_dir / "dynamic.json", adapted)
    best = read.baselines["lzma"]
    for name, bits in adapted.items():
        if bits:
            spread = f" ±{statistics.stdev(bits):.2g}" if len(bits) > 1 else ""
            verdict = f"{sum(found < best for found in bits)} of {len(bits)} below lzma's {best:.3f}"
            CONSOLE.print(
                f"{name}, when it goes on learning: {statistics.fmean(bits):.3f}{spread} bits a byte, {verdict}",
                highlight=False,
                soft_wrap=True,
            )


def learning_on(corpus: data.Corpus, folder: pathlib.Path, rate: float) -> float:
    """Bits a byte of a trained model that goes on learning; kept in its folder, so that it is found once."""
    kept = folder / "dynamic.json"
    known = read_json(kept, dict) if kept.exists() else {}
    if known.get("rate") != rate:
        trained = training.load(folder)
        bits = judge.dynamic(trained.model, trained.params, corpus.ids, corpus.cut, rate=rate)
        known = {"rate": rate, METRIC: bits}
        write_json(kept, known)
    return known[METRIC]


def let_write(config: Config) -> bool:
    """What `--sample` asks for."""
    if config.sample is None:
        return False
    loaded = training.load(config.sample)
    check_alphabet(loaded.model, loaded.params)
    written = write(
        loaded.model,
        loaded.params,
        config.prompt.encode(),
        length=config.length,
        temperature=config.temperature,
        seed=config.sample_seed,
    )
    sys.stdout.write(config.prompt + written.decode(errors="replace") + "\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
