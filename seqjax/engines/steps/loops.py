# SPDX-License-Identifier: Apache-2.0
"""Loops over the steps of a sequence, and over pieces of it one after the other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.dtypes import widen
from seqjax.engines.steps.pieces import join
from seqjax.machine import platform
from seqjax.spread import zeros


def loop(step: Callable[..., tuple[Any, Any]], carry: Any, xs: Any, **options: Any) -> tuple[Any, Any]:
    """`lax.scan`, with what it stacks in the dtype of `stackable`, which is lossless."""
    dtypes: list[Any] = []

    def widened(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = step(carry, x)
        dtypes[:] = [jax.tree.map(lambda a: a.dtype, y)]
        return carry, jax.tree.map(stackable, y)

    carry, ys = jax.lax.scan(widened, carry, xs, **options)
    return carry, jax.tree.map(lambda a, dtype: a if a.dtype == dtype else a.astype(dtype), ys, dtypes[0])


def stackable(a: Array) -> Array:
    """`a` as a loop stacks it: narrow floats as float32 on CPU, where XLA has no bfloat16 and would convert the whole
    stack to float32 and back at every step."""
    return widen(a) if platform() == "cpu" else a


def scan_pieces(
    body: Callable[..., tuple[Any, tuple[Any, Any]]],
    carry: Any,
    steps: Any,
    size: int,
    beside: Any = None,
    *,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, Any]]:
    """`lax.scan` over pieces of a sequence, the last of which is shorter where `size` does not divide T.

    Inside the loop sequences have no axes of size 1 (see `without_ones`); `body` and the caller see original shapes.

    Args:
      body: `body(carry, piece, beside) -> (carry, (outputs, kept))`.
      carry: what passes from piece to piece.
      steps: pytree of `[T, ...]`.
      size: steps in a piece, at most T.
      beside: pytree of `[⌈T / size⌉, ...]`, one entry per piece.
      reverse: whether to run the last piece first.

    Returns:
      The carry, the outputs of all steps `[T, ...]`, and what is kept of each piece `[⌈T / size⌉, ...]`.
    """
    T = jax.tree.leaves(steps)[0].shape[0]
    shapes: list[Any] = []

    def piece(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        flat, beside = inputs
        shaped = jax.tree.map(lambda a, like: a.reshape(a.shape[0], *like.shape[1:]), flat, steps)
        carry, (outputs, kept) = body(carry, shaped, beside)
        shapes[:] = [jax.tree.map(lambda a: a.shape[1:], outputs)]
        return carry, (jax.tree.map(without_ones, outputs), kept)

    if T % size == 0:
        inputs = jax.tree.map(lambda a: flat_pieces(a, size), steps), beside
        carry, (outputs, kept) = loop(piece, carry, inputs, reverse=reverse)
        outputs = jax.tree.map(join, outputs)
    else:
        flat = jax.tree.map(without_ones, steps)
        carry, (outputs, kept) = _scan_in_place(piece, carry, flat, size, beside, reverse)
    return carry, (jax.tree.map(lambda a, shape: a.reshape(T, *shape), outputs, shapes[0]), kept)


def _scan_in_place(
    piece: Callable[..., tuple[Any, tuple[Any, Any]]], carry: Any, steps: Any, size: int, beside: Any, reverse: bool
) -> tuple[Any, tuple[Any, Any]]:
    """`scan_pieces` with a shorter last piece. Pieces are read and written where they lie: to cut the others off, and
    to join their outputs with its own, would copy all of a sequence. Where there is none, `lax.scan` copies nothing,
    either, and JAX's gradient of it, for a gradient of a gradient, takes a time of T and not of T² / size."""
    T = jax.tree.leaves(steps)[0].shape[0]
    count, rest = divmod(T, size)

    def step(length: int, state: tuple[Any, Any], inputs: tuple[Array, Any]) -> tuple[tuple[Any, Any], Any]:
        (carry, written), (index, beside) = state, inputs
        read = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=index * size, slice_size=length)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * size, axis=0)
        carry, (outputs, kept) = piece(carry, (jax.tree.map(read, steps), beside))
        return (carry, jax.tree.map(lambda a, ys: write(a, stackable(ys)), written, outputs)), kept

    def first(carry: Any, steps: Any, beside: Any) -> tuple[Any, Any]:
        some = jax.tree.map(lambda a: a[:rest], steps), jax.tree.map(lambda a: a[0], beside)
        _, (outputs, _) = piece(carry, some)
        return outputs, jax.tree.map(stackable, outputs)

    outputs, stacks = jax.eval_shape(first, carry, steps, beside)
    state = carry, zeros(jax.tree.map(lambda a: a.update(shape=(T, *a.shape[1:])), stacks), beside=steps)
    inputs = jnp.arange(count + 1), beside
    whole, last = jax.tree.map(lambda a: a[:count], inputs), jax.tree.map(lambda a: a[count], inputs)
    if reverse:
        state, kept_last = step(rest, state, last)
    state, kept = loop(functools.partial(step, size), state, whole, reverse=reverse)
    if not reverse:
        state, kept_last = step(rest, state, last)
    carry, written = state
    ys = jax.tree.map(lambda a, like: a.astype(like.dtype), written, outputs)
    return carry, (ys, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), kept, kept_last))


def flat_pieces(a: Array, size: int) -> Array:
    """`[T, ...]` as `[T / size, size, ...]`, without axes of size 1."""
    flat = without_ones(a)
    return flat.reshape(flat.shape[0] // size, size, *flat.shape[1:])


def without_ones(a: Array) -> Array:
    """`[T, ...]` without axes of size 1, as a loop reads and writes sequences: with one, such as a batch of 1, XLA may
    lay out a sequence so that each piece has to be copied."""
    return a.reshape(a.shape[0], *(size for size in a.shape[1:] if size != 1))
