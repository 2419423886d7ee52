# SPDX-License-Identifier: Apache-2.0
"""Names for the leaves of a pytree: the paths to them."""

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
