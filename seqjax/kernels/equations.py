# SPDX-License-Identifier: Apache-2.0
"""One step of each recurrence and its transpose, as a kernel sees them: gates separate, products passed in.

`product(h, *gates)` is an iterable of `W_hk h` for each given gate k in turn, with its bias if there is one, and
`transposed((k, d), ...)` the sum of `W_hkᵀ d`; everything a step needs at a time is requested at once.
`emit(k, d)` takes the cotangent of gate k's linear combination as soon as it is known.
States, gates and cotangents are alike in shape, whatever that is, and at least float32; all else is elementwise. The
equations are those of the cells.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array

States = tuple[Array, ...]
Product = Callable[..., Any]
Emit = Callable[[int, Array], None]
Function = Callable[[Array], Array]


class Functions(NamedTuple):
    """φ, σ, and their slopes as functions of their outputs."""

    activation: Function = jnp.tanh
    gate: Function = jax.nn.sigmoid
    slope: Function = lambda y: 1 - y * y
    gate_slope: Function = lambda y: y * (1 - y)


class Kind(NamedTuple):
    """A recurrence: how many arrays of each sort there are, a step and its transpose.

    `forward(z, states, product, functions) -> (states, kept)`;
    `reverse(kept, before, after, d_states, transposed, emit, functions) -> d_states`.
    The state `h` comes first.
    """

    name: str
    gates: int
    states: int
    kept: int  # besides the states, which are kept as well
    products: int  # products of a step that must run one after another
    forward: Callable[..., tuple[States, tuple[Array, ...]]]
    reverse: Callable[..., States]


def _simple(z: Sequence[Array], states: States, product: Product, functions: Functions):
    recurrent = next(iter(product(states[0], 0)))
    return (functions.activation(z[0] + recurrent),), ()


def _simple_transpose(
    kept, before: States, after: States, d: States, transposed: Product, emit: Emit, functions: Functions
):
    d_z = d[0] * functions.slope(after[0])
    emit(0, d_z)
    return (transposed((0, d_z)),)


def _lstm(z: Sequence[Array], states: States, product: Product, functions: Functions):
    h, c = states
    squash = functions.gate, functions.gate, functions.activation, functions.gate
    i, f, g, o = (each(a + b) for each, a, b in zip(squash, z, product(h, 0, 1, 2, 3), strict=True))
    c = f * c + i * g
    return (o * functions.activation(c), c), (i, f, g, o)


def _lstm_transpose(
    kept, before: States, after: States, d: States, transposed: Product, emit: Emit, functions: Functions
):
    i, f, g, o = kept
    squashed = functions.activation(f * before[1] + i * g)  # `after` is rounded, and old where masked
    d_c = d[1] + d[0] * o * functions.slope(squashed)
    d_z = (
        d_c * g * functions.gate_slope(i),
        d_c * before[1] * functions.gate_slope(f),
        d_c * i * functions.slope(g),
        d[0] * squashed * functions.gate_slope(o),
    )
    for k, array in enumerate(d_z):
        emit(k, array)
    return transposed(*enumerate(d_z)), d_c * f


def _gru_after(z: Sequence[Array], states: States, product: Product, functions: Functions):
    h = states[0]
    products = iter(product(h, 0, 1, 2))
    keep = functions.gate(z[0] + next(products))
    r = functions.gate(z[1] + next(products))
    recurrent = next(products)
    g = functions.activation(z[2] + r * recurrent)
    return (keep * h + (1 - keep) * g,), (keep, r, g, recurrent)


def _gru_after_transpose(
    kept, before: States, after: States, d: States, transposed: Product, emit: Emit, functions: Functions
):
    keep, r, g, recurrent = kept
    d_keep = d[0] * (before[0] - g) * functions.gate_slope(keep)
    d_g = d[0] * (1 - keep) * functions.slope(g)
    d_r = d_g * recurrent * functions.gate_slope(r)
    for k, array in enumerate((d_keep, d_r, d_g)):
        emit(k, array)
    return (d[0] * keep + transposed((0, d_keep), (1, d_r), (2, d_g * r)),)


def _gru_before(z: Sequence[Array], states: States, product: Product, functions: Functions):
    h = states[0]
    keep, r = (functions.gate(a + b) for a, b in zip(z, product(h, 0, 1), strict=False))
    g = functions.activation(z[2] + next(iter(product(r * h, 2))))
    return (keep * h + (1 - keep) * g,), (keep, r, g)


def _gru_before_transpose(
    kept, before: States, after: States, d: States, transposed: Product, emit: Emit, functions: Functions
):
    keep, r, g = kept
    d_keep = d[0] * (before[0] - g) * functions.gate_slope(keep)
    d_g = d[0] * (1 - keep) * functions.slope(g)
    emit(0, d_keep)
    emit(2, d_g)
    d_gated = transposed((2, d_g))
    d_r = d_gated * before[0] * functions.gate_slope(r)
    emit(1, d_r)
    return (d[0] * keep + d_gated * r + transposed((0, d_keep), (1, d_r)),)


SIMPLE = Kind("simple", 1, 1, 0, 1, _simple, _simple_transpose)
LSTM = Kind("lstm", 4, 2, 4, 1, _lstm, _lstm_transpose)
GRU_AFTER = Kind("gru-after", 3, 1, 4, 1, _gru_after, _gru_after_transpose)
GRU_BEFORE = Kind("gru-before", 3, 1, 3, 2, _gru_before, _gru_before_transpose)
