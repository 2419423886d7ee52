# SPDX-License-Identifier: Apache-2.0
"""Euclidean norms that do not overflow: entries are divided by the largest one before they are squared."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from seqjax.base import Array
from seqjax.dtypes import widen


def global_norm(tree: Any) -> Array:
    """The L2 norm of all leaves together, in at least float32.

    >>> global_norm(jnp.array([3e19, 4e19], "float32")), global_norm(jnp.array([300, 400], "float16"))
    (Array(5.e+19, dtype=float32), Array(500., dtype=float32))
    """
    largest, _, norm = scaled(tree)
    return jnp.where(jnp.isinf(largest), largest, largest * norm)


def scaled(tree: Any) -> tuple[Array, Any, Array]:
    """`(largest, tree / largest, norm of tree / largest)`, where `largest` is the largest absolute value; the norm is
    at least 1, or NaN if `largest` is infinite."""
    wide = jax.tree.map(widen, tree)
    peaks = jax.tree.map(lambda leaf: jnp.max(jnp.abs(leaf), initial=0), wide)
    largest = jax.tree.reduce(jnp.maximum, peaks, jnp.asarray(0.0))
    parts = jax.tree.map(lambda leaf: leaf / jnp.where(largest == 0, 1, largest), wide)
    return largest, parts, jnp.maximum(optax.tree.norm(parts), 1)  # 0 if all entries are zero


def row_norms(a: Array) -> Array:
    """L2 norms over the last axis, `[..., n] -> [...]`, in at least float32.

    >>> row_norms(jnp.array([[3e19, 4e19], [0, jnp.inf]], "float32"))
    Array([5.e+19,    inf], dtype=float32)
    """
    return jnp.vectorize(global_norm, signature="(n)->()")(a)
