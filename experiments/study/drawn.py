# SPDX-License-Identifier: Apache-2.0
"""Sequences that are drawn: new ones for every training step, and others that models are judged by."""

from collections.abc import Callable, Mapping

import numpy as np

from experiments.study.task import Evaluator
from seqjax import training
from seqjax.base import Layer
from seqjax.training import Batch
from seqjax.training.losses import Loss

Draw = Callable[[int, np.random.Generator], Batch]
"""Draws so many sequences."""

TRAINING, FRESH = 0, 1
"""Streams of random numbers: what is trained on, and what models are judged by, are never the same."""


def batch(draw: Draw, size: int, seed: int, step: int) -> Batch:
    """The `size` sequences of a training step; with the first two arguments bound, a pure `make_batch`."""
    return draw(size, np.random.default_rng((TRAINING, seed, step)))


def fresh(draw: Draw, count: int, seed: int, size: int = 100) -> list[Batch]:
    """`count` sequences that training never sees, in batches of at most `size`."""
    return [
        draw(min(size, count - begin), np.random.default_rng((FRESH, seed, begin))) for begin in range(0, count, size)
    ]


def evaluator(draw: Draw, count: int, seed: int, measures: Mapping[str, Loss], model: Layer) -> Evaluator:
    """Measures params on `count` sequences that training never sees."""
    batches = fresh(draw, count, seed)
    step = training.make_eval_step(model, measures)
    return lambda params: training.evaluate(step, params, batches)
