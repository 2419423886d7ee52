# SPDX-License-Identifier: Apache-2.0
"""The sequential engine: one `lax.scan`, with a hand-written reverse pass where the cell offers one."""

import dataclasses
import functools

import jax

from seqjax import require
from seqjax.base import Array, Carry, Cell, Params
from seqjax.engines.steps.adjoint import scan_adjoint, scan_blocks, stored_step
from seqjax.engines.steps.blocks import block_size
from seqjax.engines.steps.loops import loop
from seqjax.engines.steps.sequential import SequentialEngine
from seqjax.engines.steps.stepping import Steps, masked_step
from seqjax.plan import Plan, residual_bytes
from seqjax.spread import constants
from seqjax.trees import tree_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Scan(SequentialEngine):
    """Runs a cell step by step.

    If a cell offers the adjoint capability, the reverse pass is hand-written: the forward pass keeps what the
    cell chooses, storing outputs only once; the reverse loop computes no weight gradients, which come from one
    matmul per block of steps, just as inputs are projected by one per block. The projections of a block fit the
    cache; if blocks do not divide T, the remaining steps have a loop of their own. The numbers are those of
    autodiff. Other cells, and `adjoint=False`, go through autodiff.

    A gradient takes O(T) memory. Forward-mode differentiation (`jvp`, `jacfwd`) needs `adjoint=False`, as JAX
    does not allow it for hand-written reverse rules. Gradients of gradients work either way, but with the hand-written
    pass they take a time of T² where no block divides a long T.

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

    Source: Werbos 1990; Appleyard, Kočiský and Blunsom 2016 for one product over many steps.
    """

    unroll: int = 1
    adjoint: bool = True

    def __post_init__(self):
        require.positive("Scan", unroll=self.unroll)
        require.boolean("Scan", adjoint=self.adjoint)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        T, how = xs.shape[0], "hand-written reverse pass" if self._by_hand(cell) else "reverse pass by autodiff"
        return Plan(repr(cell), repr(self), how, T * self.step_bytes(cell, params, carry, xs), T)

    def step_bytes(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> int:
        """Bytes that a gradient keeps of each step: residuals, and cotangents too if no blocks contract them."""
        x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        if self._by_hand(cell):
            z = jax.eval_shape(cell.project, params, x)
            stored, y, residuals = jax.eval_shape(functools.partial(stored_step, cell), params, carry, z)
            _, d_z, extra = jax.eval_shape(cell.step_transpose, params, residuals, carry, y)
            whole = block_size(cell, params, xs) == 1
            return tree_bytes((stored, d_z, extra) if whole else stored)

        def step(params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
            return cell.step(params, carry, cell.project(params, x))

        def kept(copies: int) -> int:
            carries, inputs = (
                jax.tree.map(lambda a: jax.ShapeDtypeStruct((copies, *a.shape), a.dtype), tree) for tree in (carry, x)
            )
            return residual_bytes(step, params, carries, inputs)

        return kept(2) - kept(1)  # what does not grow with the batch (weights) is kept only once, not per step

    def _by_hand(self, cell: Cell) -> bool:
        return self.adjoint and "adjoint" in cell.capabilities

    def run_steps(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        run = scan_adjoint if self._by_hand(cell) else scan
        return run(cell, self.unroll, params, initial, carry, steps)

    def run_without_rule(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        run = scan_blocks if self._by_hand(cell) else scan
        return run(cell, self.unroll, params, initial, carry, steps)


def scan(
    cell: Cell, unroll: int, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """The plain loop, differentiated by JAX."""

    def step(carry: Carry, step: Steps) -> tuple[Carry, Array]:
        return masked_step(cell, constants(params, steps.x), initial, carry, step)

    return loop(step, carry, steps, unroll=unroll)
