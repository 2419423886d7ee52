# SPDX-License-Identifier: Apache-2.0
"""Judges a model by whole recordings, which it is streamed over piece by piece."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import seqjax
from seqjax import sequences
from seqjax.base import Array, Layer, Mask, Params
from seqjax.training import AtLastStep, cross_entropy

PIECE = 528
"""Steps of a piece of the stream, about ten seconds; the carry goes on from piece to piece."""


class Verdict(NamedTuple):
    """What a model says of each recording, as logarithms of probabilities."""

    pooled: Array
    """`[B, classes]`, the mean over the recording's valid steps."""
    last: Array
    """`[B, classes]`, at the last valid step."""


def stream(model: Layer, params: Params, xs: Array, mask: Array, piece: int = PIECE) -> Verdict:
    """Runs a model over whole recordings in pieces, and keeps of its outputs no more than their sum and the last.

    Args:
      model: any layer that streams, whose outputs are logits.
      params: its params.
      xs: `[T, B, D]`.
      mask: `[T, B]` bool, False after a recording's end.
      piece: steps of a piece, a multiple of the model's stride.
    """
    carry = model.initial_carry(params, xs.shape[1:-1])
    valid = jnp.asarray(model.time_map(mask, None, carry)[0])
    classes = jax.eval_shape(model.apply, params, carry, xs)[1].shape[-1]
    nothing = jnp.zeros((*xs.shape[1:-1], classes), jnp.float32)

    def add(total: Verdict, logits: Array, valid: Array) -> Verdict:
        said = jax.nn.log_softmax(logits.astype(jnp.float32))
        newest = jnp.take_along_axis(said, sequences.last_step(valid)[None, :, None], axis=0)[0]
        return Verdict(
            total.pooled + jnp.sum(jnp.where(valid[..., None], said, 0), axis=0),
            jnp.where(valid.any(0)[:, None], newest, total.last),
        )

    start = Verdict(nothing, nothing)
    _, total = seqjax.fold(model, params, carry, xs, add, start, segment=piece, extras=valid, mask=mask)
    count = jnp.maximum(jnp.sum(valid, axis=0, dtype=jnp.float32), 1)
    return Verdict(total.pooled / count[:, None], total.last)


def judge(
    model: Layer, xs: ArrayLike, lengths: ArrayLike, labels: ArrayLike
) -> Callable[[Params], Mapping[str, float]]:
    """What of recordings a model gets right, as a function of its params; compiled once.

    Args:
      model: as for `stream`.
      xs: `[T, B, D]`, padded.
      lengths: `[B]` int.
      labels: `[B]` int.

    Returns:
      A function of params that returns `accuracy` and `nats` (the mean of -log p of the true class), of the
      pooled verdict, and `accuracy_last` and `nats_last`, of the last step's.
    """
    inputs = jnp.asarray(xs)
    mask = seqjax.mask_from_lengths(jnp.asarray(lengths), inputs.shape[0])
    truth = jnp.asarray(labels)

    return lambda params: {name: float(value) for name, value in _measures(model, params, inputs, mask, truth).items()}


@functools.partial(jax.jit, static_argnums=0)
def _measures(model: Layer, params: Params, xs: Array, mask: Array, truth: Array) -> dict[str, Array]:
    """The measures of `judge`; all folds share one compilation."""
    verdict = stream(model, params, xs, mask)
    found = {}
    for name, said in (("", verdict.pooled), ("_last", verdict.last)):
        found[f"accuracy{name}"] = jnp.mean(said.argmax(-1).astype(truth.dtype) == truth, dtype=jnp.float32)
        found[f"nats{name}"] = -jnp.mean(jnp.take_along_axis(said, truth[:, None], axis=-1))
    return found


def every_step(logits: Array, labels: Array, mask: Mask = None) -> Array:
    """The cross-entropy of all valid steps, in nats: logits `[T, B, classes]`, labels `[1, B]`, one a recording."""
    return cross_entropy(logits, jnp.broadcast_to(labels, logits.shape[:-1]), mask)


def last_step(logits: Array, labels: Array, mask: Mask = None) -> Array:
    """The cross-entropy of each recording's last valid step, in nats; shapes as for `every_step`."""
    return AtLastStep(cross_entropy)(logits, jnp.broadcast_to(labels, logits.shape[:-1]), mask)
