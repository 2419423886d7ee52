# SPDX-License-Identifier: Apache-2.0
"""Many steps of a cell as one batch, their Jacobians, and linear recurrences with these."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Params
from seqjax.dtypes import widest
from seqjax.engines.steps.stepping import Steps, masked_step, reset, visible
from seqjax.sequences import expand

TOGETHER = 16
"""Columns of a full Jacobian that exist at the same time where only its diagonal is wanted."""


def batched_step(
    cell: Cell, params: Params, initial: Carry | None, carries: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """`masked_step` for many steps at once: steps and carries have one more leading axis."""
    if steps.key is None:
        return masked_step(cell, params, copies(initial, steps.x.shape[0]), carries, steps)
    return jax.vmap(lambda carry, step: masked_step(cell, params, initial, carry, step))(carries, steps)


def copies(tree: Any, size: int) -> Any:
    """`tree` with a leading axis of `size` copies."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (size, *a.shape)), tree)


@dataclasses.dataclass(frozen=True)
class Packing:
    """A carry as one array: `[..., N]` if its Jacobian is diagonal, otherwise `[..., blocks, k]`.

    A dense Jacobian is one block over all features.
    """

    structure: str
    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, carry: Carry, batch_ndim: int, structure: str) -> "Packing":
        """The packing of carries like `carry`, whose leaves have `batch_ndim` batch axes.

        Raises:
          ValueError: leaves of different shapes, for the structure "block".
        """
        leaves, treedef = jax.tree.flatten(carry)
        shapes = tuple(leaf.shape[batch_ndim:] for leaf in leaves)
        if structure == "block" and len(set(shapes)) > 1:
            raise ValueError(f"a block Jacobian needs leaves of one shape [..., H], got features {shapes}.")
        return cls(structure, treedef, shapes, tuple(leaf.dtype for leaf in leaves))

    def exact(self, cell: Cell) -> bool:
        """Whether Jacobians in this packing are the cell's in full, and not just their diagonals."""
        return self.structure != "diagonal" or cell.jacobian_structure == "diagonal"

    @property
    def trailing(self) -> int:
        """The number of axes after the batch axes."""
        return 1 if self.structure == "diagonal" else 2

    @property
    def width(self) -> int:
        """Size of a block, or the number of features if the Jacobian is diagonal."""
        return len(self.shapes) if self.structure == "block" else sum(math.prod(shape) for shape in self.shapes)

    def pack(self, tree: Carry) -> Array:
        dtype = widest(*self.dtypes)
        flat = [
            leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], math.prod(shape)).astype(dtype)
            for leaf, shape in zip(jax.tree.leaves(tree), self.shapes, strict=True)
        ]
        if self.structure == "block":
            return jnp.stack(flat, -1)
        packed = jnp.concatenate(flat, -1)
        return packed if self.structure == "diagonal" else packed[..., None, :]

    def unpack(self, packed: Array) -> Carry:
        if self.structure == "block":
            flat = [packed[..., k] for k in range(len(self.shapes))]
        else:
            packed = packed if self.structure == "diagonal" else packed[..., 0, :]
            ends = [sum(math.prod(shape) for shape in self.shapes[: k + 1]) for k in range(len(self.shapes) - 1)]
            flat = jnp.split(packed, ends, axis=-1)
        leaves = [
            part.reshape(*part.shape[:-1], *shape).astype(dtype)
            for part, shape, dtype in zip(flat, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def packed_jacobians(
    packing: Packing, cell: Cell, params: Params, initial: Carry | None, carries: Carry, steps: Steps
) -> Array:
    """∂carry_t/∂carry_{t-1} of many steps at once: `[T, ..., N]`, or `[T, ..., blocks, k, k]`.

    With a diagonal packing for a cell whose Jacobian is not diagonal, only the diagonal.
    """
    if packing.structure == cell.jacobian_structure and "jacobian" in cell.capabilities and steps.key is None:
        return _closed_form(packing, cell, params, initial, carries, steps)

    def function(packed: Array) -> Array:
        return packing.pack(batched_step(cell, params, initial, packing.unpack(packed), steps)[0])

    packed = packing.pack(carries)
    if packing.structure != "diagonal":
        return columns(function, packed)
    if cell.jacobian_structure == "diagonal":
        return jax.jvp(function, (packed,), (jnp.ones_like(packed),))[1]
    return _diagonal(function, packed)


def columns(function: Callable[[Array], Array], packed: Array) -> Array:
    """The Jacobian `[..., k, k]` of a function of `[..., k]` that treats each vector alone: all columns at once."""
    _, push = jax.linearize(function, packed)
    unit = jnp.eye(packed.shape[-1], dtype=packed.dtype)
    return jnp.moveaxis(jax.vmap(lambda e: push(jnp.zeros_like(packed) + e))(unit), 0, -1)


def _diagonal(function: Callable[[Array], Array], packed: Array) -> Array:
    """The diagonal of a full Jacobian, a few columns at a time, so that the full one never exists."""
    _, push = jax.linearize(function, packed)
    width = packed.shape[-1]

    def entry(j: Array) -> Array:
        unit = jnp.zeros(width, packed.dtype).at[j].set(1)
        return push(jnp.zeros_like(packed) + unit)[..., j]

    together = min(width, TOGETHER) if packed.size else None  # JAX cannot join empty batches
    return jnp.moveaxis(jax.lax.map(entry, jnp.arange(width), batch_size=together), 0, -1)


def _closed_form(
    packing: Packing, cell: Cell, params: Params, initial: Carry | None, carries: Carry, steps: Steps
) -> Array:
    """The cell's own Jacobian where a step is taken, the identity where it is masked, 0 where there is a reset."""
    before = reset(copies(initial, steps.x.shape[0]), carries, steps)
    jacobian = cell.step_jacobian(params, before, cell.project(params, visible(steps)))
    if packing.structure == "diagonal":
        jacobian, identity = packing.pack(jacobian), jnp.ones((), jnp.bool)
    else:
        jacobian = jacobian if packing.structure == "block" else jacobian[..., None, :, :]
        identity = jnp.eye(packing.width, dtype=bool)
    if steps.mask is not None:
        jacobian = jnp.where(expand(steps.mask, jacobian), jacobian, identity.astype(jacobian.dtype))
    if steps.reset is not None:
        jacobian = jnp.where(expand(steps.reset, jacobian), jnp.zeros_like(jacobian), jacobian)
    return jacobian


def solve_recurrence(matrices: Array, drives: Array) -> Array:
    """δ_t = A_t δ_{t-1} + b_t from δ = 0, with A diagonal `[T, ..., N]` or in blocks `[T, ..., k, k]`.

    On CPU a loop, which runs at memory speed there; elsewhere an associative scan of depth log T.
    """
    return jax.lax.platform_dependent(matrices, drives, cpu=recurrence_loop, default=recurrence_tree)


def recurrence_loop(matrices: Array, drives: Array) -> Array:
    """`solve_recurrence` step by step."""

    def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        state = _apply(inputs[0], state) + inputs[1]
        return state, state

    return jax.lax.scan(step, jnp.zeros_like(drives[0]), (matrices, drives))[1]


def recurrence_tree(matrices: Array, drives: Array) -> Array:
    """`solve_recurrence` by an associative scan of affine maps."""

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        diagonal = first[0].ndim == first[1].ndim
        matrix = second[0] * first[0] if diagonal else second[0] @ first[0]
        return matrix, _apply(second[0], first[1]) + second[1]

    return jax.lax.associative_scan(compose, (matrices, drives))[1]


def _apply(matrix: Array, vector: Array) -> Array:
    return matrix * vector if matrix.ndim == vector.ndim else (matrix @ vector[..., None])[..., 0]
