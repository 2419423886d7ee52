# SPDX-License-Identifier: Apache-2.0
"""Pytrees of cotangents, some of whose leaves may not be differentiable."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Array


def zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def zero_cotangents(tree: Any) -> Any:
    """Zero cotangents to add to; for leaves that are not differentiable, JAX's float0."""

    def zero(leaf: Array) -> Any:
        differentiable = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.zeros_like(leaf) if differentiable else np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.map(zero, tree)


def add(tree: Any, other: Any) -> Any:
    """The sum of two pytrees of cotangents; leaves that are not differentiable have none and stay as they are."""
    return jax.tree.map(lambda a, b: a if b.dtype == jax.dtypes.float0 else a + b, tree, other)


def without_float0(tree: Any) -> Any:
    """`tree` with `None` as the cotangent of leaves that are not differentiable."""
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, tree)


def only_where(flag: Array, tree: Any) -> Any:
    """Cotangents `tree` where the scalar `flag` is True, elsewhere zeros."""
    return jax.tree.map(lambda d: d if d.dtype == jax.dtypes.float0 else jnp.where(flag, d, jnp.zeros_like(d)), tree)
