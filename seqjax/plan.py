# SPDX-License-Identifier: Apache-2.0
"""What a model is about to do, before it does it: estimates of memory and sequential depth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from seqjax.trees import tree_bytes


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
