# SPDX-License-Identifier: Apache-2.0
"""Activations by name, their bounds, and the slopes that a hand-written reverse pass can compute from their outputs."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax.base import Array, Cell
from seqjax.dtypes import widen

Activation = str | Callable[[Array], Array]

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}

_SLOPES: dict[str, Callable[[Array], Array]] = {
    "identity": jnp.ones_like,
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
    "relu": lambda y: (y > 0).astype(y.dtype),
    "softplus": lambda y: -jnp.expm1(-y),
}

_BOUNDS: dict[str, tuple[float, float]] = {
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "relu": (0.0, math.inf),
    "softplus": (0.0, math.inf),
    "elu": (-1.0, math.inf),
    "selu": (-1.7580993408473766, math.inf),
}


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    """The function behind an activation field: a name, or any elementwise function.

    Names keep a model printable, comparable and storable; functions are compared by identity.
    `hard_sigmoid` is that of JAX and PyTorch, relu6(x + 3) / 6.

    Raises:
      ValueError: an unknown name.

    >>> float(activation_function("relu")(-1.0))
    0.0
    """
    if callable(activation):
        return activation
    if not isinstance(activation, str) or activation not in FUNCTIONS:
        raise ValueError(f"unknown activation {activation!r}; give a function or one of {sorted(FUNCTIONS)}.")
    return FUNCTIONS[activation]


def slope_from_output(activation: Activation) -> Callable[[Array], Array] | None:
    """φ'(x) as a function of y = φ(x); `None` where the output alone does not determine it.

    >>> slope_from_output("tanh")(0.5)
    0.75
    """
    return _SLOPES.get(activation) if isinstance(activation, str) else None


def bounds(activation: Activation) -> tuple[float, float] | None:
    """The values that φ approaches where its slope vanishes, infinite on a side where it does not; `None` if it has
    none, or is a function of your own.

    >>> bounds("tanh"), bounds("relu"), bounds("identity")
    ((-1.0, 1.0), (0.0, inf), None)
    """
    return _BOUNDS.get(activation) if isinstance(activation, str) else None


def has_slopes(*activations: Activation) -> bool:
    """Whether the hand-written reverse pass can compute every slope from the stored outputs."""
    return all(slope_from_output(activation) is not None for activation in activations)


def slopes(cell: Cell, capability: str, *activations: Activation) -> list[Callable[[Array], Array]]:
    """The slopes of `activations` as functions of their outputs, for a capability of `cell` that needs them.

    Raises:
      ValueError: one of them has no such slope, so the cell does not offer the capability.
    """
    found = [slope for activation in activations if (slope := slope_from_output(activation)) is not None]
    if len(found) < len(activations):
        raise cell.not_offered(capability)
    return found


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    """σ through tanh, in at least float32: faster on CPU than XLA's, which needs one more exponential and division.

    Its absolute error is that of a number near 1: in float32 a gate of 1e-4 has three correct digits, one below 3e-8
    none. Its slope is computed from the output, so autodiff stores nothing else.
    """
    wide = widen(x)
    return (0.5 * jnp.tanh(0.5 * wide) + 0.5).astype(x.dtype)


sigmoid.defjvps(lambda d_x, y, x: d_x * y * (1 - y))


def gate_function(activation: Activation) -> Callable[[Array], Array]:
    """Like `activation_function`, for gates: the name "sigmoid" means the `sigmoid` above."""
    return sigmoid if activation == "sigmoid" else activation_function(activation)
