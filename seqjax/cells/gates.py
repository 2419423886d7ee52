# SPDX-License-Identifier: Apache-2.0
"""What the cells' linear combinations share: weights drawn gate by gate, the projection, and products.

A cell with G gates has `w_in [D, G*H]`, `w_rec [H, G*H]` and `bias [G*H]`, with the gates side by side.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from seqjax.base import Array
from seqjax.dtypes import DTypes, add_bias, at_least_float32
from seqjax.initializers import Initializer, resolve
from seqjax.machine import platform
from seqjax.spread import is_spread


def init_gates(key: Array, initializer: Initializer, rows: int, hidden_dim: int, gates: int, dtypes: DTypes) -> Array:
    """Weights `[rows, gates * hidden_dim]`, each gate drawn separately."""
    draw = resolve(initializer)
    blocks = [draw(k, (rows, hidden_dim), dtypes.params) for k in jax.random.split(key, gates)]
    return jnp.concatenate(blocks, axis=1)


def init_bias(key: Array, initializer: Initializer, hidden_dim: int, gates: int, dtypes: DTypes) -> Array:
    """A bias `[gates * hidden_dim]`, drawn as `[gates, hidden_dim]`."""
    return resolve(initializer)(key, (gates, hidden_dim), dtypes.params).reshape(gates * hidden_dim)


def project_input(cell: Any, params: Any, x: Array) -> Array:
    """`W_x x + b` in the compute dtype of `cell`, `[..., D] -> [..., G*H]`."""
    x = cell.dtypes.cast(cell, x, params.w_in)
    z = x @ params.w_in.astype(x.dtype)
    return z if params.bias is None else add_bias(z, params.bias)


def project_transpose(params: Any, x: Array, d_z: Array) -> tuple[Any, Array]:
    """The transpose of `project_input`: the params' cotangent, zero except in `w_in` and `bias`, and that of `x`.

    Autodiff computes the same products, but orders the operands of the weights' product so that XLA
    transposes the larger one, `d_z`, in memory, which takes as long as the product itself.
    """
    d_params = jax.tree.map(jnp.zeros_like, params)
    d_params = d_params._replace(w_in=outer_sum(x.astype(d_z.dtype), d_z, params.w_in))
    if params.bias is not None:
        d_params = d_params._replace(bias=leading_sum(d_z, params.bias.dtype))
    return d_params, recur_transpose(d_z, params.w_in).astype(x.dtype)


Gates = tuple[Array, ...]
"""A linear combination of all gates, `[..., G*H]`, in pieces of one or more gates. On CPU, XLA vectorizes operations on
a piece, but not those on a slice of an input of the loop, which take four times as long. So each piece holds the gates
that are computed together."""


def in_pieces(z: Array | Gates, *counts: int) -> Gates:
    """All gates, whole or in other pieces, as pieces of `counts` gates each."""
    if isinstance(z, tuple) and len(z) == len(counts):
        return z
    whole = jnp.concatenate(z, axis=-1) if isinstance(z, tuple) else z
    hidden = whole.shape[-1] // sum(counts)
    return tuple(jnp.split(whole, [hidden * n for n in itertools.accumulate(counts[:-1])], axis=-1))


def add_gates(z: Gates, recurrent: Array) -> Gates:
    """`z` plus the recurrent product `[..., G*H]`, in the pieces of `z`."""
    ends = list(itertools.accumulate(piece.shape[-1] for piece in z))
    return tuple(a + b for a, b in zip(z, jnp.split(recurrent, ends[:-1], axis=-1), strict=True))


def project_gates(cell: Any, params: Any, x: Array, *counts: int) -> Gates:
    """`W_x x + b`, in pieces of `counts` gates each.

    With a single input the product is elementwise and XLA fuses it into its consumers, but not through a split; so
    the weights are split instead.
    """
    if params.w_in.shape[0] > 1:
        return in_pieces(project_input(cell, params, x), *counts)
    weights = in_pieces(_outside_the_loop(params.w_in), *counts)
    biases = [None] * len(counts) if params.bias is None else in_pieces(_outside_the_loop(params.bias), *counts)
    pieces = (params._replace(w_in=w, bias=b) for w, b in zip(weights, biases, strict=True))
    return tuple(project_input(cell, piece, x) for piece in pieces)


def recur(h: Array, w_rec: Array, dtype: Any) -> Array:
    """`W_h h` in the dtype of the projected input."""
    return h.astype(dtype) @ _outside_the_loop(w_rec.astype(dtype))


def recur_transpose(d: Array, w_rec: Array) -> Array:
    """`W_hᵀ d`, the cotangent of `recur`'s state."""
    return d @ _outside_the_loop(w_rec.astype(d.dtype).T)


def _outside_the_loop(weights: Array) -> Array:
    """Weights that were cast, sliced or transposed, as an array that XLA makes once rather than at every step.

    Without the barrier XLA folds the change into the product: on CPU a matmul on a transposed view takes
    up to twice as long, and a slice is copied at every step.
    """
    return jax.lax.optimization_barrier(weights)


def side_by_side(*pieces: Array) -> Array:
    """Gates `[..., H]` as one `[..., G*H]`, for use at every step of a loop.

    On CPU, XLA computes a concatenation of short rows element by element. Writing each piece to its place is
    vectorized, except for dtypes such as bfloat16 that are widened for it and rounded again.
    """
    width, size = pieces[0].shape[-1], pieces[0].dtype.itemsize
    if platform() != "cpu" or size < 4 or width * size >= 128 or is_spread(pieces[0]):
        return jnp.concatenate(pieces, axis=-1)
    together = jnp.concatenate([jnp.zeros_like(piece) for piece in pieces], axis=-1)
    for k, piece in enumerate(pieces):
        together = jax.lax.dynamic_update_slice_in_dim(together, piece, k * width, axis=-1)
    return together


def split_gates(a: Array, gates: int) -> list[Array]:
    """The gates of `[..., G*H]`."""
    return jnp.split(a, gates, axis=-1)


def outer_sum(left: Array, right: Array, weights: Array) -> Array:
    """Σ over all leading axes of left ⊗ right, `[..., A], [..., B] -> [A, B]`, as one matmul.

    Where the batch is spread over devices, the sum has the sharding of the `weights` whose cotangent it is. On one
    device the leading axes are merged before the product, as otherwise XLA on CPU would copy `left` transposed; on
    several devices merging could gather the batch.
    """
    sharding = jax.typeof(weights).sharding
    spread = left if is_spread(left) else right if is_spread(right) else None
    if spread is not None:  # on its mesh, which may not be that of the weights
        sharding = NamedSharding(jax.typeof(spread).sharding.mesh, sharding.spec)
    elif jax.device_count() == 1:
        left, right = (a.reshape(-1, a.shape[-1]) for a in (left, right))
    leading = tuple(range(left.ndim - 1))
    contraction = (leading, leading), ((), ())
    total = jax.lax.dot_general(left, right, contraction, out_sharding=sharding)
    return total.astype(weights.dtype)


def leading_sum(x: Array, dtype: Any) -> Array:
    """Σ over all axes but the last, in at least float32."""
    return x.sum(tuple(range(x.ndim - 1)), dtype=at_least_float32(x.dtype)).astype(dtype)
