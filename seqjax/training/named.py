# SPDX-License-Identifier: Apache-2.0
"""A pytree as arrays by name: all that a checkpoint knows about the structure of what it holds.

A key of `jax.random` is held as its data, and an array without entries by its form alone.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Array
from seqjax.trees import leaf_names

Forms = dict[str, str]
"""The dtype and shape of every leaf by its path, as they are compared and shown."""


def forms(tree: Any) -> Forms:
    """Of a tree of arrays or shapes.

    Raises:
      ValueError: two leaves have the same path.

    >>> forms({"params": (jnp.zeros((2, 3)), None), "step": jnp.int32(7)})
    {'params.0': 'float32[2, 3]', 'step': 'int32[]'}
    """
    return {name: _form(leaf) for name, leaf in _leaves(tree).items()}


def arrays(tree: Any) -> dict[str, np.ndarray]:
    """What there is to store of a tree.

    Raises:
      ValueError: two leaves have the same path.
    """
    return {name: _data(leaf) for name, leaf in _leaves(tree).items() if leaf.size}


def fill(like: Any, stored: Mapping[str, np.ndarray]) -> Any:
    """The stored arrays in the structure of `like`, whose `forms` are theirs.

    >>> tree = {"key": jax.random.key(0), "rows": jnp.arange(3)}
    >>> fill(tree, arrays(tree))["rows"]
    Array([0, 1, 2], dtype=int32)
    """

    def leaf(name: str, like: Any) -> Array:
        if _is_key(like):
            return jax.random.wrap_key_data(jnp.asarray(stored[name]), impl=jax.random.key_impl(like))
        return jnp.asarray(stored[name]) if name in stored else jnp.zeros(like.shape, like.dtype)

    leaves = [leaf(name, value) for name, value in _leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _leaves(tree: Any) -> dict[str, Any]:
    """By path, e.g. `params.0.w_in`."""
    names = leaf_names(tree)
    if len(set(names)) != len(names):
        raise ValueError("two leaves of the state have the same path; dict keys in params must not contain dots.")
    leaves = (leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in jax.tree.leaves(tree))
    return dict(zip(names, leaves, strict=True))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _form(leaf: Any) -> str:
    return f"{leaf.dtype if _is_key(leaf) else jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _data(leaf: Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
