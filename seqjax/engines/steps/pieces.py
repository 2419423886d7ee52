# SPDX-License-Identifier: Apache-2.0
"""Sequences in pieces: cutting, padding and joining."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.engines.steps.stepping import Steps


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
