# SPDX-License-Identifier: Apache-2.0
"""Which notes sound next: 88 yes-or-no questions a step."""

from collections.abc import Mapping

import seqjax
from experiments.chorales import baselines, data
from experiments.study.task import Evaluator, Task, require
from seqjax import training
from seqjax.base import Array, Cell, Layer, Mask, Params

METRIC = "test_nats"


def nats_per_step(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The negative log-likelihood of a step: -Σ log p over the 88 notes, the mean over valid steps.

    >>> import jax.numpy as jnp
    >>> round(float(nats_per_step(jnp.zeros((2, 88)), jnp.ones((2, 88)))), 3)
    60.997
    """
    return data.KEYS * training.binary_cross_entropy(predictions, targets, mask)


def task(
    replicate: int = 0,
    *,
    path: str | None = None,
    steps_per_quarter: int | None = None,
    batch_size: int = 16,
    crop: int = 128,
    dropout: float = 0.2,
    transpose: int | None = None,
) -> Task:
    """Next-step prediction on a corpus; the same for all replicates.

    Args:
      replicate: ignored: the split is fixed.
      path, steps_per_quarter: the corpus, see `data.load`.
      batch_size: stretches of music in a batch.
      crop: their steps.
      dropout: the rate at which outputs of the recurrent layer are dropped.
      transpose: semitones up or down at most in training; None is the corpus' own.

    Raises:
      ValueError: a number out of range.
      ValueError, OSError: see `data.load`.
    """
    require("chorales", steps_per_quarter=steps_per_quarter, batch_size=batch_size, crop=crop)
    require("chorales", least=0, transpose=transpose)
    corpus = data.load(path, steps_per_quarter)
    semitones = corpus.transpose if transpose is None else transpose

    def make_batch(seed: int, step: int) -> training.Batch:
        return data.batch(corpus.train, size=batch_size, crop=crop, transpose=semitones, seed=seed, step=step)

    def model(cell: Cell) -> Layer:
        return seqjax.Serial(seqjax.RNN(cell), seqjax.Dropout(dropout), seqjax.Dense(data.KEYS))

    def evaluator(model: Layer) -> Evaluator:
        longest = max(len(keys) for keys in (*corpus.valid, *corpus.test)) - 1
        batches = {part: data.whole(corpus.parts[part], longest) for part in ("valid", "test")}
        step = training.make_eval_step(model, {"nats": nats_per_step})

        def evaluate(params: Params) -> Mapping[str, float]:
            return {f"{part}_nats": training.evaluate(step, params, held)["nats"] for part, held in batches.items()}

        return evaluate

    return Task(
        name=corpus.name,
        make_batch=make_batch,
        loss=nats_per_step,
        model=model,
        evaluator=evaluator,
        metric=METRIC,
        also={"valid_nats": {}},
        data={"name": corpus.name, "sha256": corpus.sha256()},
        baselines={
            "notes for themselves": baselines.independent(corpus.train, corpus.test),
            "last chord goes on": baselines.repeat_last(corpus.train, corpus.test),
            "each note a chain": baselines.note_chains(corpus.train, corpus.test),
        },
    )
