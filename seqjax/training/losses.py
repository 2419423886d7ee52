# SPDX-License-Identifier: Apache-2.0
"""Losses for sequences that leave padding out.

Each is `loss(predictions, targets, mask=None) -> scalar`: the mean over the valid steps and
the features, or 0 if no step is valid. Axis 0 is time, axis -1 features; `mask [T, ...]` is
False where a step is padding. Whatever the padding contains, even NaN, reaches neither the
value nor a gradient. Half precision is widened to float32 before anything is summed.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import require
from seqjax.base import Array, Described, Mask
from seqjax.dtypes import widen
from seqjax.sequences import hide

Loss = Callable[[Array, Array, Mask], Array]
CALL = "loss(predictions, targets, mask) -> scalar"


def mean_squared_error(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The mean of (ŷ - y)² over valid steps and features.

    Args:
      predictions: `[T, ..., F]`.
      targets: `[T, ..., F]`, of the same dtype.
      mask: `[T, ...]` bool, False where a step is padding.

    Returns:
      A scalar in at least float32; 0 if no step is valid.

    Raises:
      ValueError: shapes or dtypes that do not match.

    >>> predictions, targets = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [jnp.nan]])
    >>> float(mean_squared_error(predictions, targets, jnp.array([True, False])))
    1.0
    """
    return _mean(optax.squared_error, *_same(predictions, targets, mask), mask)


def mean_absolute_error(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The mean of |ŷ - y| over valid steps and features.

    Args:
      predictions: `[T, ..., F]`.
      targets: `[T, ..., F]`, of the same dtype.
      mask: `[T, ...]` bool, False where a step is padding.

    Returns:
      A scalar in at least float32; 0 if no step is valid.

    Raises:
      ValueError: shapes or dtypes that do not match.

    >>> float(mean_absolute_error(jnp.array([[1.0], [5.0]]), jnp.array([[0.0], [2.0]])))
    2.0
    """
    return _mean(lambda a, b: jnp.abs(a - b), *_same(predictions, targets, mask), mask)


def huber(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The mean of ½e² where |e| <= 1 and |e| - ½ elsewhere, e = ŷ - y, over valid steps and features.

    Args:
      predictions: `[T, ..., F]`.
      targets: `[T, ..., F]`, of the same dtype.
      mask: `[T, ...]` bool, False where a step is padding.

    Returns:
      A scalar in at least float32; 0 if no step is valid.

    Raises:
      ValueError: shapes or dtypes that do not match.

    Source: Huber 1964.

    >>> float(huber(jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1))))
    1.5
    """
    return _mean(optax.huber_loss, *_same(predictions, targets, mask), mask)


def binary_cross_entropy(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The mean of -y log σ(ŷ) - (1 - y) log(1 - σ(ŷ)) over valid steps and features, in nats.

    Args:
      predictions: logits `[T, ..., F]`.
      targets: `[T, ..., F]`, of the same dtype, from 0 to 1.
      mask: `[T, ...]` bool, False where a step is padding.

    Returns:
      A scalar in at least float32; 0 if no step is valid.

    Raises:
      ValueError: shapes or dtypes that do not match.

    >>> round(float(binary_cross_entropy(jnp.zeros((2, 1)), jnp.ones((2, 1)))), 4)
    0.6931
    """
    return _mean(optax.sigmoid_binary_cross_entropy, *_same(predictions, targets, mask), mask)


def cross_entropy(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The mean of -log softmax(ŷ)[y] over valid steps, in nats.

    Args:
      predictions: logits `[T, ..., classes]`.
      targets: labels `[T, ...]`, integers from 0 to classes - 1; in masked steps they can have any value.
      mask: `[T, ...]` bool, False where a step is padding.

    Returns:
      A scalar in at least float32; 0 if no step is valid.

    Raises:
      ValueError: targets that are not integer labels for the predictions' steps or, outside `jit`, labels that are
        out of range; inside, where values cannot be inspected, these make the loss NaN.

    >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    1.3863
    """

    def nats(logits: Array, labels: Array) -> Array:
        found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)  # takes -1 as the last class
        return jnp.where(labels < 0, jnp.nan, found)

    return _mean(nats, *_labelled("cross_entropy", predictions, targets, mask), mask)


def accuracy(predictions: Array, targets: Array, mask: Mask = None) -> Array:
    """The fraction of valid steps whose largest logit is the label's.

    Args:
      predictions, targets, mask: as for `cross_entropy`.

    Returns:
      A scalar from 0 to 1, in at least float32; 0 if no step is valid, NaN where `cross_entropy` is NaN.

    Raises:
      ValueError: as for `cross_entropy`.

    >>> float(accuracy(jnp.array([[0.0, 1.0], [3.0, 2.0]]), jnp.array([1, 1])))
    0.5
    """

    def hits(logits: Array, labels: Array) -> Array:
        largest = logits.argmax(-1)  # with NaN among the logits, the first NaN
        labels = labels.astype(largest.dtype)
        known = (labels >= 0) & (labels < logits.shape[-1]) & ~jnp.isnan(logits).any(-1)
        return jnp.where(known, (largest == labels).astype(logits.dtype), jnp.nan)

    return _mean(hits, *_labelled("accuracy", predictions, targets, mask), mask)


@dataclasses.dataclass(frozen=True, repr=False)
class AtLastStep(Described):
    """A loss over only the last valid step, or steps, of each sequence; one without a valid step does not count.

    It is called as `(predictions, targets, mask=None)`, with the shapes that `loss` takes, and returns its scalar.

    Args:
      loss: one of the losses here, or your own `loss(predictions, targets, mask) -> scalar`.
      steps: how many of the last valid steps count; all of a sequence that has fewer.

    Raises:
      ValueError: a loss that is not a function, or steps below 1; when called, targets of another number of steps
        than predictions, or what `loss` refuses.

    >>> last = AtLastStep(mean_squared_error)
    >>> float(last(jnp.array([[1.0], [2.0], [9.0]]), jnp.zeros((3, 1)), jnp.array([True, True, False])))
    4.0
    """

    loss: Loss
    steps: int = 1

    def __post_init__(self):
        require.functions("AtLastStep", loss=(self.loss, "loss(predictions, targets, mask)"))
        require.positive("AtLastStep", steps=self.steps)

    def __call__(self, predictions: Array, targets: Array, mask: Mask = None) -> Array:
        if jnp.shape(targets)[:1] != predictions.shape[:1]:
            raise ValueError(
                f"AtLastStep takes one target a step, {len(predictions)} steps, got {require.shown(targets)}; for one "
                "label a sequence use Last in the model, labels [1, B]; if a layer has a stride or 'valid' padding, "
                "subsample the targets to match."
            )
        if mask is None:
            return self.loss(predictions[-self.steps :], targets[-self.steps :], None)
        return self.loss(predictions, targets, last_valid(mask, self.steps))


def last_valid(mask: Array, steps: int = 1) -> Array:
    """`mask [T, ...]` reduced to the last valid steps of each sequence.

    >>> last_valid(jnp.array([True, False, True, False])).tolist()
    [False, False, True, False]
    """
    count = jnp.cumsum(mask, axis=0)
    return mask & (count > count[-1:] - steps)


def weight(loss: Loss, predictions: Array, mask: Mask) -> Array:
    """The number of steps over which `loss` is a mean, for averaging over batches: int32, shape `()`."""
    if mask is None:
        mask = jnp.ones(predictions.shape[:-1], bool)
    return jnp.sum(last_valid(mask, loss.steps) if isinstance(loss, AtLastStep) else mask, dtype=jnp.int32)


def _mean(elementwise: Callable, predictions: Array, targets: Array, mask: Mask) -> Array:
    if mask is None:
        return jnp.mean(elementwise(predictions, targets))
    # Both operands are made safe before the loss: NaN times a zero cotangent would still be NaN.
    losses = elementwise(hide(predictions, mask), hide(targets, mask))
    count = jnp.sum(mask) * (losses.size // max(mask.size, 1))
    return jnp.sum(hide(losses, mask)) / jnp.maximum(count, 1).astype(losses.dtype)


def _same(predictions: Array, targets: Array, mask: Mask) -> tuple[Array, Array]:
    predictions, targets = widen(jnp.asarray(predictions)), widen(jnp.asarray(targets))
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions {predictions.shape} and targets {targets.shape} must have the same shape [T, ..., F]; "
            "if a layer has a stride or 'valid' padding, subsample the targets to match."
        )
    if predictions.dtype != targets.dtype:
        raise ValueError(f"predictions are {predictions.dtype}, targets {targets.dtype}; cast one of them.")
    _check_mask(predictions, mask)
    return predictions, targets


def _labelled(name: str, predictions: Array, targets: Array, mask: Mask) -> tuple[Array, Array]:
    predictions, targets = widen(jnp.asarray(predictions)), jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != predictions.shape[:-1]:
        raise ValueError(
            f"{name} takes integer labels of shape {predictions.shape[:-1]} for predictions {predictions.shape}, "
            f"got {targets.dtype} {targets.shape}."
        )
    _check_mask(predictions, mask)
    labels = hide(targets, mask)
    if not isinstance(labels, jax.core.Tracer):
        _check_labels(name, np.asarray(labels), predictions.shape[-1])
    return predictions, targets


def _check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        raise ValueError(
            f"{name} takes labels in [0, {classes}), got {outside[0]} (and {outside.size - 1} more outside); "
            "mask the steps that do not count."
        )


def _check_mask(predictions: Array, mask: Mask) -> None:
    if mask is None:
        return
    if mask.shape != predictions.shape[:-1] or mask.dtype != bool:
        raise ValueError(
            f"mask must be bool {predictions.shape[:-1]} for predictions {predictions.shape}, "
            f"got {mask.dtype} {mask.shape}."
        )
