# SPDX-License-Identifier: Apache-2.0
"""A batch: what a training step learns from, and what is said of one that does not fit."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array, Layer, Mask, Resets
from seqjax.layers.batch_major import BatchMajor, swap, time_major
from seqjax.require import shown


class Batch(NamedTuple):
    """Sequences, what to predict from them, and their mask and resets.

    Attributes:
      xs: `[T, ..., D]`, or ids `[T, ...]`; for a `BatchMajor` model batch-major, like all the fields below.
      ys: targets, as the loss expects them: `[T', ..., F]`, or labels `[T', ...]`, for the T' steps of the outputs.
      mask: `[T, ...]` bool, for the inputs: False is padding; the loss sees what `model.time_map` makes of it.
      resets: `[T, ...]` bool: True where a new sequence begins.
    """

    xs: Array
    ys: Array
    mask: Mask = None
    resets: Resets = None


def as_batch(given: Any) -> Batch:
    """`given`, a `Batch` or a tuple of its fields.

    Raises:
      ValueError: naming anything else.

    >>> as_batch((jnp.ones((5, 2, 3)), jnp.zeros((5, 2, 1)))).ys.shape
    (5, 2, 1)
    """
    if not isinstance(given, tuple | list) or not 2 <= len(given) <= len(Batch._fields):
        raise ValueError(
            f"a batch is Batch(xs, ys, mask, resets), or a tuple of these with at least xs and ys, got {shown(given)}."
        )
    if not hasattr(given[0], "shape") or not hasattr(given[0], "dtype"):
        raise ValueError(f"a batch's xs must be an array [T, ..., D], or ids [T, ...], got {shown(given[0])}.")
    return Batch(*given)


def batch_in_time(model: Layer, batch: Batch) -> tuple[Layer, Batch]:
    """The model without a `BatchMajor` around it, and the batch with time first.

    Raises:
      ValueError: targets without both of the axes that `BatchMajor` swaps; all else about them is the loss's to say.
    """
    inner, xs, mask, resets = time_major(model, batch.xs, batch.mask, batch.resets)
    if inner is model:
        return model, batch
    if any(jnp.ndim(leaf) < 2 for leaf in jax.tree.leaves(batch.ys)):
        raise ValueError(
            f"a BatchMajor model takes ys [B, T, ...], got {shown(batch.ys)}; "
            "for one label a sequence use Last in the model, labels [B, 1]."
        )
    return inner, Batch(xs, jax.tree.map(swap, batch.ys), mask, resets)


@contextlib.contextmanager
def shapes_as_given(model: Layer, batch: Batch) -> Iterator[None]:
    """Adds the shape of a `BatchMajor` model's targets to what a loss, which sees them time-major, says of them."""
    try:
        yield
    except ValueError as error:
        if not isinstance(model, BatchMajor):
            raise
        raise ValueError(
            f"{error} These shapes are time-major, as losses see them; the model is BatchMajor, "
            f"and its ys were given as {shown(batch.ys)}."
        ) from error
