# SPDX-License-Identifier: Apache-2.0
"""The sequential engine: one `lax.scan`, with a hand-written reverse pass where the cell offers one."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.stepping import Steps, enter, leave, masked_step, prepare, select, zeros_like
from seqjax.plan import Plan, residual_bytes, tree_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Scan(Engine):
    """Runs a cell step by step.

    Where a cell offers the adjoint capability the reverse pass is hand-written: the forward pass
    keeps what the cell chooses, the reverse loop computes no weight gradient, and one matmul after
    it does. Numbers are those of autodiff. Other cells, and `adjoint=False`, go through autodiff.

    Memory of a gradient is O(T). Forward-mode differentiation (`jvp`, `jacfwd`) needs
    `adjoint=False`, as JAX refuses it for hand-written reverse rules; gradients of gradients do not.

    Args:
      unroll: steps in one iteration of the compiled loop.
      adjoint: whether to use the hand-written reverse pass.

    Raises:
      ValueError: `unroll` is not a positive integer.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.GRU(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = Scan().run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((5, 2, 3)))
    >>> ys.shape
    (5, 2, 4)
    """

    unroll: int = 1
    adjoint: bool = True

    def __post_init__(self):
        if not isinstance(self.unroll, int) or self.unroll < 1:
            raise ValueError(f"Scan: unroll must be a positive integer, got {self.unroll!r}.")

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        steps, initial = prepare(cell, params, carry, xs, mask, resets, key)
        return self.run_steps(cell, params, initial, carry, steps)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        T, how = xs.shape[0], "hand-written reverse pass" if self._by_hand(cell) else "reverse pass by autodiff"
        return Plan(repr(cell), repr(self), how, T * self.step_bytes(cell, params, carry, xs), T)

    def step_bytes(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> int:
        """Bytes that a gradient keeps of each step: residuals, and cotangents until they are contracted."""
        x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        if self._by_hand(cell):
            z = jax.eval_shape(cell.project, params, x)
            _, y, residuals = jax.eval_shape(cell.step_residuals, params, carry, z)
            _, d_z, extra = jax.eval_shape(cell.step_transpose, params, residuals, carry, y)
            return tree_bytes((residuals, d_z, extra))

        def step(params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
            return cell.step(params, carry, cell.project(params, x))

        def kept(copies: int) -> int:
            carries, inputs = (
                jax.tree.map(lambda a: jax.ShapeDtypeStruct((copies, *a.shape), a.dtype), tree) for tree in (carry, x)
            )
            return residual_bytes(step, params, carries, inputs)

        return kept(2) - kept(1)  # what does not grow with the batch, weights, is kept once and not at each step

    def _by_hand(self, cell: Cell) -> bool:
        return self.adjoint and "adjoint" in cell.capabilities

    def run_steps(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        """`run` on steps that are prepared already: what engines do with a piece of a sequence."""
        loop = scan_adjoint if self._by_hand(cell) else scan
        return loop(cell, self.unroll, params, initial, carry, steps)


def scan(
    cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The plain loop, differentiated by JAX."""
    step = functools.partial(masked_step, cell, params, initial)
    return jax.lax.scan(step, carry, steps, unroll=unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_adjoint(
    cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The same loop with the cell's own transpose."""
    return scan(cell, unroll, params, initial, carry, steps)


def _forward(cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps):
    def step(carry: Carry, step: Steps) -> tuple[Carry, tuple[Array, Any]]:
        before, x = enter(initial, carry, step)
        after, y, residuals = cell.step_residuals(params, before, cell.project(params, x))
        carry, y = leave(before, after, y, step)
        return carry, (y, residuals)

    carry, (ys, residuals) = jax.lax.scan(step, carry, steps, unroll=unroll)
    return (carry, ys), (params, initial, steps, residuals)


def _reverse(cell: Cell, unroll: int, kept: tuple, cotangents: tuple[Carry, Array]):
    params, initial, steps, residuals = kept
    d_carry, d_ys = cotangents

    def step(state: tuple[Carry, Carry | None], inputs: tuple[Steps, Any, Array]):
        (d_carry, d_initial), (step, residuals, d_y) = state, inputs
        d_after = select(step.mask, d_carry, zeros_like(d_carry))
        d_y = select(step.mask, d_y, jnp.zeros_like(d_y))
        d_before, d_z, extra = cell.step_transpose(params, residuals, d_after, d_y)
        if step.mask is not None:
            d_before = jax.tree.map(jnp.add, d_before, select(step.mask, zeros_like(d_carry), d_carry))
        if step.reset is not None:
            zeros = zeros_like(d_before)
            d_initial = jax.tree.map(jnp.add, d_initial, select(step.reset, d_before, zeros))
            d_before = select(step.reset, zeros, d_before)
        return (d_before, d_initial), (d_z, extra)

    flags = steps._replace(x=None, key=None)
    (d_carry, d_initial), (d_zs, extras) = jax.lax.scan(
        step, (d_carry, zeros_like(initial)), (flags, residuals, d_ys), reverse=True, unroll=unroll
    )
    d_params = cell.accumulate(params, residuals, d_zs, extras)
    safe_xs = select(steps.mask, steps.x, jnp.zeros_like(steps.x))
    _, project_transpose = jax.vjp(cell.project, params, safe_xs)
    d_projected, d_xs = project_transpose(d_zs)
    return jax.tree.map(jnp.add, d_params, d_projected), d_initial, d_carry, Steps(d_xs, None, None, None)


scan_adjoint.defvjp(_forward, _reverse)
