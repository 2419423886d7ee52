# SPDX-License-Identifier: Apache-2.0
"""The text as a task: the next byte, learnt in windows of long lanes, judged as one stream."""

import functools

import seqjax
from experiments.bytes import data, judge
from experiments.study.task import Evaluator, Task, require
from seqjax import training
from seqjax.base import Cell, Layer, Params

METRIC = "bits_per_byte"
"""Of the last part, each byte given all bytes before it."""
BYTES, FEATURES = 256, 64


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
    require("bytes", limit=limit, window=window, batch_size=batch_size)
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
        data=corpus.describe(),
    )


def model(*cells: Cell) -> seqjax.Serial:
    """A vector for each byte, recurrent layers of these cells, and logits of the next byte."""
    return seqjax.Serial(seqjax.Embed(BYTES, FEATURES), *(seqjax.RNN(cell) for cell in cells), seqjax.Dense(BYTES))


def _evaluator(corpus: data.Corpus, model: Layer) -> Evaluator:
    read = judge.reader(model)

    def evaluate(params: Params) -> dict[str, float]:
        return {METRIC: judge.fixed(model, read, params, corpus.ids, corpus.cut)}

    return evaluate
