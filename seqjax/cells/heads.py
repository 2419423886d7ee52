# SPDX-License-Identifier: Apache-2.0
"""Several cells side by side as one: a recurrence with block-diagonal weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Key, Params, Residuals, Shape

HEADS = -2
"""The axis of heads in the arrays of a step, `[..., N, K]`; in params it is the first."""


@dataclasses.dataclass(frozen=True, repr=False)
class MultiHead(Cell):
    """N cells of K units that read the same inputs, each with its own weights; their outputs are side by side.

    Units of one head do not see those of another from step to step, only in the layer above: the recurrent
    weights of all N * K units are block-diagonal, with 1/N of the parameters and the work of dense ones. This lets
    a large layer fit a kernel that holds its weights on chip (`Fused`).

    Params are those of the cell with a leading axis of size N; the carry's arrays are `[..., N*K]`. The hand-written
    gradient is the cell's.

    Args:
      cell: the cell of each head.
      heads: N.

    Raises:
      ValueError: `cell` is not a cell, or `heads` is not a positive integer.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = MultiHead(seqjax.LSTM(128), 4)
    >>> params = cell.init(jax.random.key(0), 10)
    >>> params.w_rec.shape, cell.initial_carry(params, (2,)).h.shape
    ((4, 128, 512), (2, 512))

    Source: Pöppel et al. 2024 (FlashRNN); Beck et al. 2024 (xLSTM), the sLSTM's heads.
    """

    cell: Cell
    heads: int

    def __post_init__(self):
        require.cell("MultiHead", self.cell)
        require.positive("MultiHead", heads=self.heads)

    @property
    def capabilities(self) -> frozenset[str]:
        return self.cell.capabilities & {"adjoint", "seen"}

    @property
    def stochastic(self) -> bool:
        return self.cell.stochastic

    @property
    def couples_batch(self) -> bool:
        return self.cell.couples_batch

    def init(self, key: Array, in_dim: int) -> Params:
        return jax.vmap(lambda key: self.cell.init(key, in_dim))(jax.random.split(key, self.heads))

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        def start(params: Params) -> Carry:
            return self.cell.initial_carry(params, batch_shape)

        for leaf in jax.tree.leaves(jax.eval_shape(start, jax.tree.map(lambda a: a[0], params))):
            if leaf.ndim <= len(batch_shape):
                raise ValueError(
                    f"MultiHead puts heads side by side on the axis of features, and the carry of {self.cell!r} has an "
                    f"array without one, {leaf.shape} for a batch of {tuple(batch_shape)}; give it a last axis."
                )
        return join(jax.vmap(start, 0, HEADS, axis_size=self.heads)(params))

    def project(self, params: Params, x: Array) -> Any:
        return jax.vmap(self.cell.project, (0, None), HEADS, axis_size=self.heads)(params, x)

    def project_transpose(self, params: Params, x: Array, d_z: Any) -> tuple[Params, Array]:
        d_params, d_xs = jax.vmap(self.cell.project_transpose, (0, None, HEADS))(params, x, d_z)
        return d_params, d_xs.sum(0)

    def step(self, params: Params, carry: Carry, z: Any, key: Key = None) -> tuple[Carry, Array]:
        keys = None if key is None else jax.random.split(key, self.heads)
        return join(jax.vmap(self.cell.step, (0, HEADS, HEADS, 0), HEADS)(params, self.split(carry), z, keys))

    def step_seen(self, params: Params, carry: Carry, h: Array, z: Any) -> tuple[Carry, Array]:
        seen = jax.vmap(self.cell.step_seen, (0, HEADS, HEADS, HEADS), HEADS)
        return join(seen(params, self.split(carry), self.split(h), z))

    def step_residuals(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Array, Residuals]:
        step = jax.vmap(self.cell.step_residuals, (0, HEADS, HEADS), HEADS)
        after, y, residuals = step(params, self.split(carry), z)
        return join(after), join(y), residuals

    def step_transpose(
        self, params: Params, residuals: Residuals, d_carry: Carry, d_y: Array
    ) -> tuple[Carry, Any, Any]:
        step = jax.vmap(self.cell.step_transpose, (0, HEADS, HEADS, HEADS), HEADS)
        d_before, d_z, extra = step(params, residuals, self.split(d_carry), self.split(d_y))
        return join(d_before), d_z, extra

    def accumulate(self, params: Params, residuals: Residuals, d_zs: Any, extras: Any) -> Params:
        return jax.vmap(self.cell.accumulate, (0, HEADS, HEADS, HEADS))(params, residuals, d_zs, extras)

    def calibrate(self, params: Params, carry: Carry, xs: Array) -> Params:
        return jax.vmap(self.cell.calibrate, (0, HEADS, None))(params, self.split(carry), xs)

    def gate_values(self, params: Params, carry: Carry, z: Any) -> dict[str, tuple[Array, Any]]:
        made_by = {}

        def alone(params: Params, carry: Carry, z: Any) -> dict[str, Array]:
            found = self.cell.gate_values(params, carry, z)
            made_by.update({name: activation for name, (_, activation) in found.items()})
            return {name: values for name, (values, _) in found.items()}

        values = join(jax.vmap(alone, (0, HEADS, HEADS), HEADS)(params, self.split(carry), z))
        return {name: (values[name], made_by[name]) for name in values}

    def run_heads(
        self, run: Callable[..., tuple[Carry, Array]], params: Params, initial: Carry | None, carry: Carry
    ) -> tuple[Carry, Array]:
        """`run(params, initial, carry) -> (carry, ys)` for each head, for an engine that runs a single head's cell."""
        heads = jax.vmap(run, (0, HEADS, HEADS), HEADS)
        return join(heads(params, self.split(initial), self.split(carry)))

    def split(self, tree: Any) -> Any:
        """Arrays `[..., N*K]` as `[..., N, K]`."""
        return jax.tree.map(lambda a: a.reshape(*a.shape[:-1], self.heads, a.shape[-1] // self.heads), tree)


def join(tree: Any) -> Any:
    """Arrays `[..., N, K]` as `[..., N*K]`."""
    return jax.tree.map(lambda a: jnp.reshape(a, (*a.shape[:-2], a.shape[-2] * a.shape[-1])), tree)
