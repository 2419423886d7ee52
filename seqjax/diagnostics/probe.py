# SPDX-License-Identifier: Apache-2.0
"""A cell that exposes its state at every step, and gradients with respect to that state."""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Key, Params, Shape
from seqjax.diagnostics.perturb import perturbed_step
from seqjax.dtypes import at_least_float32, widest
from seqjax.trees import leaf_names


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """A carry as one real vector `[..., N]`: leaves side by side, complex ones as their real, then imaginary parts.

    >>> from seqjax.cells import LSTMCarry
    >>> layout = StateLayout.of(LSTMCarry(jnp.zeros((2, 3)), jnp.ones((2, 3))), batch_ndim=1)
    >>> layout.names, layout.size, layout.pack(LSTMCarry(jnp.zeros((2, 3)), jnp.ones((2, 3))))[0].tolist()
    (('h', 'c'), 6, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    """

    names: tuple[str, ...]
    treedef: Any
    shapes: tuple[Shape, ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, carry: Carry, batch_ndim: int) -> Self:
        """The layout of carries like `carry`, whose leaves have `batch_ndim` batch axes."""
        leaves, treedef = jax.tree.flatten(carry)
        return cls(
            tuple(leaf_names(carry, "carry")),
            treedef,
            tuple(leaf.shape[batch_ndim:] for leaf in leaves),
            tuple(jnp.dtype(leaf.dtype) for leaf in leaves),
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of real numbers in each leaf."""
        parts = (2 if _is_complex(dtype) else 1 for dtype in self.dtypes)
        return tuple(n * math.prod(shape) for n, shape in zip(parts, self.shapes, strict=True))

    @property
    def size(self) -> int:
        """N."""
        return sum(self.widths)

    @property
    def dtype(self) -> Any:
        """The widest real dtype among the leaves, but at least float32: LAPACK has nothing narrower."""
        real = (jnp.finfo(d).dtype for d in self.dtypes if jnp.issubdtype(d, jnp.inexact))
        return at_least_float32(widest(*real))

    def pack(self, carry: Carry) -> Array:
        """`[..., N]` in `dtype`."""
        parts = []
        for leaf, shape in zip(jax.tree.leaves(carry), self.shapes, strict=True):
            flat = leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], -1)
            parts += [flat.real, flat.imag] if _is_complex(leaf.dtype) else [flat]
        return jnp.concatenate([part.astype(self.dtype) for part in parts], -1)

    def split(self, vector: Array) -> dict[str, Array]:
        """The part of each leaf, by name."""
        ends = [sum(self.widths[: k + 1]) for k in range(len(self.widths) - 1)]
        return dict(zip(self.names, jnp.split(vector, ends, axis=-1), strict=True))

    def unpack(self, vector: Array) -> Carry:
        """The inverse of `pack`."""
        leaves = []
        for part, shape, dtype in zip(self.split(vector).values(), self.shapes, self.dtypes, strict=True):
            if _is_complex(dtype):
                real = part.astype(jnp.finfo(dtype).dtype)
                part = jax.lax.complex(*jnp.split(real, 2, axis=-1))
            leaves.append(part.reshape(*part.shape[:-1], *shape).astype(dtype))
        return jax.tree.unflatten(self.treedef, leaves)


def _is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


@dataclasses.dataclass(frozen=True, repr=False)
class Probe(Cell):
    """A cell whose inputs also contain a perturbation of its state, and whose outputs also contain the state.

    carry_t = step(carry_{t-1}, x_t) + δ_t, with y_t computed from that carry_t: for inputs `[x_t, δ_t]` the
    outputs are `[y_t, carry_{t-1}]`, with states as vectors `[..., N]` of `StateLayout`. At δ = 0 its numbers
    are the cell's, and the gradient of a loss with respect to δ_t is dL/dcarry_t along every path, including
    the output of step t: δ_t is added once the step has made the new carry, before it makes y_t from it. For inputs
    `[x_t]` alone nothing is added, and any cell will do.

    It runs under every engine that needs no capability of a cell. Its params and carry are the cell's.

    Args:
      cell: any cell.
      in_dim: D, the number of the cell's own input features.
      in_dtype: their dtype.

    >>> import seqjax
    >>> cell = Probe(seqjax.GRU(4), 3)
    >>> params = cell.init(jax.random.key(0), 3 + 4)
    >>> xs = jnp.ones((5, 2, 3 + 4)).at[..., 3:].set(0)
    >>> carry, ys = seqjax.engines.Scan().run(cell, params, cell.initial_carry(params, (2,)), xs)
    >>> ys.shape, bool((ys[1:, :, 4:] == ys[:-1, :, :4]).all())  # of a GRU the output is the state
    ((5, 2, 8), True)
    """

    cell: Cell
    in_dim: int
    in_dtype: str = "float32"

    @property
    def stochastic(self) -> bool:
        return self.cell.stochastic

    @property
    def couples_batch(self) -> bool:
        return self.cell.couples_batch

    def init(self, key: Array, in_dim: int) -> Params:
        return self.cell.init(key, self.in_dim)

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return self.cell.initial_carry(params, batch_shape)

    def project(self, params: Params, x: Array) -> tuple[Any, Array]:
        own, delta = x[..., : self.in_dim], x[..., self.in_dim :]
        return self.cell.project(params, own.astype(self.in_dtype)), delta

    def step(self, params: Params, carry: Carry, z: tuple[Any, Array], key: Key = None) -> tuple[Carry, Array]:
        z, delta = z
        layout = StateLayout.of(carry, delta.ndim - 1)
        if delta.shape[-1]:
            after, y = perturbed_step(self.cell, params, carry, z, key, layout.unpack(delta))
        else:
            after, y = self.cell.step(params, carry, z, key)
        return after, jnp.concatenate([y.astype(delta.dtype), layout.pack(carry).astype(delta.dtype)], -1)
