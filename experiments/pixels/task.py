# SPDX-License-Identifier: Apache-2.0
"""What is on an image, read pixel by pixel."""

import functools
from collections.abc import Mapping

import seqjax
from experiments.pixels import data, images
from experiments.study.blocks import blocks as residual_blocks
from experiments.study.task import Evaluator, Task, require
from seqjax import training
from seqjax.base import Array, Cell, Layer, Mask, Params

METRIC = "test_accuracy"


def percent_right(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """`training.accuracy` in percent."""
    return 100 * training.accuracy(predictions, targets, mask)


def task(
    replicate: int = 0,
    *,
    path: str | None = None,
    permutation: int | None = None,
    pool: int = 4,
    limit: int | None = None,
    batch_size: int = 64,
    stand_in: bool = False,
    blocks: int = 0,
    width: int = 64,
) -> Task:
    """Classification after the last pixel; the same for all replicates.

    Args:
      replicate: ignored: the split is fixed.
      path, permutation, pool, limit, stand_in: the images, see `data.load`.
      batch_size: images in a batch.
      blocks, width: see `model`.

    Raises:
      ValueError: a number out of range.
      ValueError, OSError: see `data.load`.
    """
    require("pixels", pool=pool, limit=limit, batch_size=batch_size, width=width)
    require("pixels", least=0, permutation=permutation, blocks=blocks)
    held = data.load(path, permutation=permutation, pool=pool, limit=limit, stand_in=stand_in)

    def make_batch(seed: int, step: int) -> training.Batch:
        return data.batch(held, size=batch_size, seed=seed, step=step)

    def evaluator(model: Layer) -> Evaluator:
        step = training.make_eval_step(model, {"accuracy": percent_right})

        def evaluate(params: Params) -> Mapping[str, float]:
            return {
                "valid_accuracy": training.evaluate(step, params, held.all("valid"))["accuracy"],
                "test_accuracy": training.evaluate(step, params, held.all("test"))["accuracy"],
            }

        return evaluate

    return Task(
        name=held.name,
        make_batch=make_batch,
        loss=training.cross_entropy,
        model=functools.partial(model, blocks=blocks, width=width),
        evaluator=evaluator,
        metric=METRIC,
        better="higher",
        also={"valid_accuracy": {}},
        data=held.describe(),
        baselines={"chance": 100 / images.CLASSES, "least squares on all pixels": data.least_squares_accuracy(held)},
    )


def model(cell: Cell, blocks: int = 0, width: int = 64) -> seqjax.Serial:
    """A recurrent layer of this cell, and the logits of what it knows after the last pixel.

    With `blocks`, pixels projected to `width` features and so many residual blocks around the cell, a gelu after the
    recurrence in each, in place of the bare layer.
    """
    if not blocks:
        return seqjax.Serial(seqjax.RNN(cell), seqjax.Last(), seqjax.Dense(images.CLASSES))
    stack = residual_blocks(cell, blocks, width, activation="gelu")
    return seqjax.Serial(seqjax.Dense(width), *stack, seqjax.LayerNorm(), seqjax.Last(), seqjax.Dense(images.CLASSES))
