# SPDX-License-Identifier: Apache-2.0
"""A cell made from a user's functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

from seqjax import require
from seqjax.base import Array, Carry, Cell, Key, Params, Shape


@dataclasses.dataclass(frozen=True, repr=False)
class LambdaCell(Cell):
    """A cell made from functions.

    Args:
      init_fn: `(key, in_dim) -> params`.
      step_fn: `(params, carry, x) -> (carry, y)`, with any leading batch axes.
      carry_fn: `(params, batch_shape) -> carry`.

    Raises:
      ValueError: an argument that is not a function.

    Functions compare by identity: create the cell once, from named functions, so that it compiles once.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> leaky = LambdaCell(
    ...     lambda key, in_dim: {"rate": jnp.full(in_dim, 0.1)},
    ...     lambda params, h, x: (h + params["rate"] * (x - h),) * 2,
    ...     lambda params, batch_shape: jnp.zeros((*batch_shape, params["rate"].shape[0])),
    ... )
    >>> layer = seqjax.RNN(leaky)
    >>> params = layer.init(jax.random.key(0), jnp.ones((5, 2)))
    >>> layer.apply(params, layer.initial_carry(params, ()), jnp.ones((5, 2)))[1].shape
    (5, 2)
    """

    init_fn: Callable[[Array, int], Params]
    step_fn: Callable[[Params, Carry, Array], tuple[Carry, Array]]
    carry_fn: Callable[[Params, Shape], Carry]

    def __post_init__(self):
        require.functions(
            "LambdaCell",
            init_fn=(self.init_fn, "init_fn(key, in_dim)"),
            step_fn=(self.step_fn, "step_fn(params, carry, x)"),
            carry_fn=(self.carry_fn, "carry_fn(params, batch_shape)"),
        )

    def init(self, key: Array, in_dim: int) -> Params:
        return self.init_fn(key, in_dim)

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return self.carry_fn(params, batch_shape)

    def step(self, params: Params, carry: Carry, z: Any, key: Key = None) -> tuple[Carry, Array]:
        return self.step_fn(params, carry, z)
