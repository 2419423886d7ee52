# SPDX-License-Identifier: Apache-2.0
"""What a model is about to do, before it does it: estimates of memory and sequential depth."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Plan(NamedTuple):
    """One layer of a model, with how it will be run and why.

    Attributes:
      layer: as code.
      engine: as code, "" for a layer that has none.
      why: in words.
      memory: bytes that a gradient needs, besides inputs, outputs and params. An estimate: what XLA takes for
        sequences of thousands of steps on CPU is mostly within a factor of two.
      depth: sequential steps of a forward pass, each of which waits for the one before.
    """

    layer: str
    engine: str
    why: str
    memory: int
    depth: int


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


def residual_bytes(fn: Callable, *arguments: Any) -> int:
    """Bytes that autodiff keeps for the reverse pass of one call of `fn`.

    >>> import jax.numpy as jnp
    >>> residual_bytes(jnp.sin, jnp.ones(10, jnp.float32))
    40
    """
    transposed = jax.eval_shape(lambda *arguments: jax.vjp(fn, *arguments)[1], *arguments)
    return tree_bytes(transposed)


def as_text(plans: tuple[Plan, ...]) -> str:
    """A table of plans, one row per layer."""
    head = ("layer", "engine", "gradient needs", "depth", "why")
    rows = [(p.layer, p.engine or "-", f"{p.memory / 2**20:,.1f} MiB", f"{p.depth:,}", p.why) for p in plans]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in (head, *rows)]
    return "\n".join(lines)
