# SPDX-License-Identifier: Apache-2.0
"""Sequences in pieces: cutting, padding, joining, and running them one after the other."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.dtypes import widen
from seqjax.engines.stepping import Steps


def near_divisor(n: int, target: float) -> int:
    """The divisor of `n` nearest in ratio to `target`, or `target` rounded if none is within a factor of two.

    >>> near_divisor(100_000, 316.2), near_divisor(997, 31.6)
    (250, 32)
    """
    within = range(max(1, math.ceil(target / 2)), min(n, int(2 * target)) + 1)
    divisors = [d for d in within if n % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / target)), default=max(1, round(target)))


def split_at(tree: Any, T: int) -> tuple[Any, Any]:
    """The first `T` steps of every array, and the rest."""
    return jax.tree.map(lambda a: a[:T], tree), jax.tree.map(lambda a: a[T:], tree)


def join(pieces: Array) -> Array:
    """Pieces `[count, size, ...]` as one sequence. This reshape adds or removes no other axis, as JAX does not allow
    that for an array that a mesh with explicit axes splits."""
    return pieces.reshape(pieces.shape[0] * pieces.shape[1], *pieces.shape[2:])  # -1 would fail for an empty batch


def delayed(ys: Array, first: Array) -> Array:
    """`ys` delayed by one step: `first`, then all of `ys` but the last."""
    return jnp.concatenate([first[None], ys[:-1]])


def pad_steps(steps: Steps, T: int) -> Steps:
    """The steps padded to `T` of them, with the added ones masked."""
    given = steps.x.shape[0]
    if given == T:
        return steps
    mask = jnp.ones(steps.x.shape[:-1], bool) if steps.mask is None else steps.mask

    def longer(array: jax.Array) -> jax.Array:
        return jnp.concatenate([array, jnp.broadcast_to(array[-1:], (T - given, *array.shape[1:]))])

    padded = jax.tree.map(longer, steps._replace(mask=mask))
    real = (jnp.arange(T) < given).reshape(T, *[1] * (mask.ndim - 1))
    return padded._replace(mask=padded.mask & real, reset=None if steps.reset is None else padded.reset & real)


def split_steps(steps: Steps, size: int) -> Steps:
    """Steps `[T, ...]` as pieces `[K, size, ...]`; the last one is filled up with masked steps."""
    count = -(-steps.x.shape[0] // size)
    return jax.tree.map(lambda a: a.reshape(count, size, *a.shape[1:]), pad_steps(steps, count * size))


def loop(step: Callable[..., tuple[Any, Any]], carry: Any, xs: Any, **options: Any) -> tuple[Any, Any]:
    """`lax.scan`. On CPU it stacks narrow floats as float32 and rounds them back afterwards, which is lossless: XLA has
    no bfloat16 there and would convert the whole stack to float32 and back at every step."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(step, carry, xs, **options)
    dtypes: list[Any] = []

    def widened(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = step(carry, x)
        dtypes[:] = [jax.tree.map(lambda a: a.dtype, y)]
        return carry, jax.tree.map(widen, y)

    carry, ys = jax.lax.scan(widened, carry, xs, **options)
    return carry, jax.tree.map(lambda a, dtype: a if a.dtype == dtype else a.astype(dtype), ys, dtypes[0])


def scan_pieces(
    body: Callable[..., tuple[Any, tuple[Any, Any]]],
    carry: Any,
    steps: Any,
    size: int,
    beside: Any = None,
    *,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, Any]]:
    """`lax.scan` over pieces of a sequence.

    Inside the loop, pieces have no axes of size 1 (see `flat_pieces`); `body` and the caller see the original shapes.

    Args:
      body: `body(carry, piece, beside) -> (carry, (outputs, kept))`.
      carry: what passes from piece to piece.
      steps: pytree of `[T, ...]`.
      size: steps in a piece; it must divide T.
      beside: pytree of `[T / size, ...]`, one entry per piece.
      reverse: whether to run the last piece first.

    Returns:
      The carry, the outputs of all steps `[T, ...]`, and what is kept of each piece `[T / size, ...]`.
    """
    shapes: list[Any] = []

    def piece(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        flat, beside = inputs
        shaped = jax.tree.map(lambda a, like: a.reshape(size, *like.shape[1:]), flat, steps)
        carry, (outputs, kept) = body(carry, shaped, beside)
        shapes[:] = [jax.tree.map(lambda a: a.shape[1:], outputs)]
        return carry, (jax.tree.map(lambda a: a.reshape(size, *_without_ones(a)), outputs), kept)

    flat = jax.tree.map(lambda a: flat_pieces(a, size), steps)
    carry, (outputs, kept) = loop(piece, carry, (flat, beside), reverse=reverse)
    return carry, (jax.tree.map(lambda a, shape: join(a).reshape(a.shape[0] * size, *shape), outputs, shapes[0]), kept)


def flat_pieces(a: Array, size: int) -> Array:
    """`[T, ...]` as `[T / size, size, ...]` without axes of size 1: with one, such as a batch of 1, XLA may lay out a
    piece so that it has to be copied."""
    pieces = a.reshape(a.shape[0] // size, size, *a.shape[1:])  # only this in one reshape: see `join`
    return pieces.reshape(*pieces.shape[:2], *_without_ones(a))


def _without_ones(a: Array) -> list[int]:
    """The sizes of all axes but the first, without ones."""
    return [size for size in a.shape[1:] if size != 1]
