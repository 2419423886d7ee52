# SPDX-License-Identifier: Apache-2.0
"""Pytrees of arrays: the names of their leaves, their bytes, and whether their sizes are known."""

import math
from collections.abc import Callable
from typing import Any

import jax


def leaf_names(tree: Any, root: str = "", *, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`; `root` if the tree itself is a leaf.

    >>> leaf_names(({"w": 1.0}, None, 2.0)), leaf_names(1.0, "carry")
    (['0.w', '2'], ['carry'])
    """
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf))
    return [jax.tree_util.keystr(path, simple=True, separator=".") or root for path in paths]


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or `ShapeDtypeStruct`s, in a pytree.

    >>> import jax.numpy as jnp
    >>> tree_bytes((jnp.ones((2, 3), jnp.float32), None))
    24
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def is_known(*trees: Any) -> bool:
    """Whether all sizes are plain numbers; in an export some may be symbolic.

    >>> from jax.export import symbolic_shape
    >>> is_known(jax.ShapeDtypeStruct((5, 2), float)), is_known(jax.ShapeDtypeStruct(symbolic_shape("5, b"), float))
    (True, False)
    """
    return all(isinstance(size, int) for leaf in jax.tree.leaves(trees) for size in leaf.shape)
