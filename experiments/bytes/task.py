# SPDX-License-Identifier: Apache-2.0
"""The text as a task: the next byte, learnt in windows of long lanes, judged as one stream."""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from experiments.bytes import data
from experiments.study.task import Evaluator, Task
from seqjax import training
from seqjax.base import Array, Carry, Cell, Layer, Params

METRIC = "bits"
"""A byte of the last part, given all bytes before it."""
BYTES, FEATURES = 256, 64
WARM_UP, PIECE = 8192, 512
"""Bytes of the first part that a model reads before it is judged, and bytes that are judged in one call."""


def task(
    replicate: int = 0,
    *,
    path: str | None = None,
    limit: int | None = None,
    window: int = 64,
    batch_size: int = 32,
) -> Task:
    """Prediction of the next byte by truncated backpropagation through time, the carry passed from window to window.

    Args:
      replicate: all learn from the same text.
      path: a file or folder; None is Python's standard library.
      limit: its first so many bytes alone.
      window: bytes in a window, that gradients go back.
      batch_size: lanes that the first part is cut into.

    Raises:
      ValueError: no text, or too little for one window a lane.
    """
    corpus = data.load(path, limit)
    learnt = corpus.ids[: corpus.cut]
    return Task(
        name=f"{corpus.name}, {len(corpus.text) - corpus.cut:,} bytes after {corpus.cut:,}",
        make_batch=training.windows(learnt[:-1], learnt[1:], window=window, batch=batch_size),
        loss=training.cross_entropy,
        model=model,
        evaluator=functools.partial(_evaluator, corpus),
        metric=METRIC,
        baselines=data.compressed(corpus),
        stateful=True,
    )


def model(*cells: Cell) -> seqjax.Serial:
    """A vector for each byte, recurrent layers of these cells, and logits of the next byte."""
    return seqjax.Serial(seqjax.Embed(BYTES, FEATURES), *(seqjax.RNN(cell) for cell in cells), seqjax.Dense(BYTES))


def _evaluator(corpus: data.Corpus, model: Layer) -> Evaluator:
    ids = corpus.ids
    read = reader(model)

    def evaluate(params: Params) -> dict[str, float]:
        return {METRIC: stream(model, read, params, ids, corpus.cut)}

    return evaluate


Reader = Callable[[Params, Carry, Array, Array], tuple[Carry, Array]]


def reader(model: Layer) -> Reader:
    """A jitted `read(params, carry, xs, ys) -> (carry, nats)`: the sum of -log p of the bytes `ys` that follow `xs`."""

    @jax.jit
    def read(params: Params, carry: Carry, xs: Array, ys: Array) -> tuple[Carry, Array]:
        carry, logits = model.apply(params, carry, xs)
        return carry, training.cross_entropy(logits, ys) * len(ys)

    return read


def stream(model: Layer, read: Reader, params: Params, ids: np.ndarray, cut: int, piece: int = PIECE) -> float:
    """Bits a byte of `ids[cut:]`, read as one stream whose carry is passed on, each byte judged once.

    The carry at the cut comes from the `WARM_UP` bytes before it.
    """
    carry = model.initial_carry(params, ())
    nats: list[Array] = []
    start = max(cut - 1 - WARM_UP, 0)
    # the first call ends where the judged part begins: the last byte before the cut predicts the first after it
    edges = [start, *range(cut - 1, len(ids) - 1, piece), len(ids) - 1]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            xs, ys = (jnp.asarray(ids[begin + shift : end + shift]) for shift in (0, 1))
            carry, found = read(params, carry, xs, ys)
            if begin >= cut - 1:
                nats.append(found)
    return float(np.sum(np.asarray(jax.device_get(nats), np.float64))) / (len(ids) - cut) / math.log(2)
