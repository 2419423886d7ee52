# SPDX-License-Identifier: Apache-2.0
"""Activations that are the same in Keras, by name or as the function itself."""

import jax
import jax.numpy as jnp

from seqjax.activations import Activation
from seqjax.base import Array
from seqjax.interop.layout import unsupported


def gelu(x: Array) -> Array:
    """x Φ(x), Keras' `gelu`; seqjax's own `"gelu"` is the approximation by tanh."""
    return jax.nn.gelu(x, approximate=False)


def leaky_relu(x: Array) -> Array:
    """max(x, 0.2 x), Keras' `leaky_relu`; the slope of seqjax's own `"leaky_relu"` is 0.01."""
    return jax.nn.leaky_relu(x, 0.2)


_SAME = ("tanh", "sigmoid", "relu", "hard_sigmoid", "hard_tanh", "elu", "selu", "softplus", "softsign", "silu")
_FROM_KERAS: dict[str, Activation] = {
    "linear": "identity",
    **{name: name for name in _SAME},
    "exponential": jnp.exp,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "log_softmax": jax.nn.log_softmax,
    "relu6": jax.nn.relu6,
    "softmax": jax.nn.softmax,
}
_TO_KERAS = {activation: name for name, activation in _FROM_KERAS.items()}


def from_name(owner: str, name: object) -> Activation:
    """The activation that Keras calls `name`.

    Raises:
      ValueError: a user's own function, or one that seqjax does not have.

    >>> from_name("keras Dense 'a'", "linear")
    'identity'
    """
    if not isinstance(name, str) or name not in _FROM_KERAS:
        raise unsupported(owner, f"activation={name!r}", f"known are {sorted(_FROM_KERAS)}")
    return _FROM_KERAS[name]


def to_name(owner: str, activation: Activation | None) -> str:
    """The name that Keras has for an activation.

    Raises:
      ValueError: an activation that Keras does not have, or defines differently.

    >>> to_name("Dense(1)", None)
    'linear'
    """
    if activation is None:
        return "linear"
    if activation not in _TO_KERAS:
        raise unsupported(
            owner,
            f"activation {activation!r} in Keras",
            f"known are {sorted(map(str, _TO_KERAS))}; Keras' own gelu and leaky_relu are in {__name__}",
        )
    return _TO_KERAS[activation]
