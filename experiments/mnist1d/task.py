# SPDX-License-Identifier: Apache-2.0
"""The task of a study: which of the ten digits a sequence of 40 steps is."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mnist1d import data, models
from experiments.study.task import Evaluator, Task
from seqjax import training
from seqjax.base import Layer, Params

CHUNK = 1000
"""Sequences that are classified at once, a divisor of both parts."""


def task(replicate: int = 0, *, shuffled: bool = False, batch_size: int = 100) -> Task:
    """Classification of one-dimensional digits; the data are the same for all seeds, the order of batches is not.

    Args:
      replicate: a seed; the task is the same for all.
      shuffled: one permutation of the steps for all sequences.
      batch_size: sequences in a batch.

    Raises:
      ValueError: the package of the data is not there; a batch size that is out of range.
    """
    digits = data.load(shuffled)
    if not 0 < batch_size <= len(digits.train_ys):
        raise ValueError(f"a batch must have 1 to {len(digits.train_ys)} sequences, got {batch_size}.")

    def make_batch(seed: int, step: int) -> training.Batch:
        xs, ys = data.batch(digits, size=batch_size, seed=seed, step=step)
        return training.Batch(jnp.asarray(xs), jnp.asarray(ys))

    return Task(
        name="MNIST-1D" + (", steps shuffled" if shuffled else ""),
        make_batch=make_batch,
        loss=training.cross_entropy,
        model=models.classifier,
        evaluator=functools.partial(_evaluator, digits),
        metric="accuracy",
        better="higher",
        baselines={"chance": 1 / data.CLASSES, "linear map, least squares": data.least_squares_accuracy(digits)},
    )


def _evaluator(digits: data.Digits, model: Layer) -> Evaluator:
    """Accuracy and cross-entropy over the test part, and accuracy over the training part."""

    @jax.jit
    def chunk(params: Params, xs: jax.Array, ys: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, model.initial_carry(params, (CHUNK,)), xs)[1]
        return training.accuracy(logits, ys), training.cross_entropy(logits, ys)

    def over(params: Params, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        pieces = [
            chunk(params, *map(jnp.asarray, data.time_major(xs[start : start + CHUNK], ys[start : start + CHUNK])))
            for start in range(0, len(ys), CHUNK)
        ]
        return np.mean(np.asarray(pieces, np.float64), axis=0)

    def evaluate(params: Params) -> Mapping[str, float]:
        accuracy, entropy = map(float, over(params, digits.test_xs, digits.test_ys))
        known = float(over(params, digits.train_xs, digits.train_ys)[0])
        return {"accuracy": accuracy, "test_loss": entropy, "train_accuracy": known}

    return evaluate
