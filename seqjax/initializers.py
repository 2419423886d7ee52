# SPDX-License-Identifier: Apache-2.0
"""Initializers: those of `jax.nn.initializers` by name, and what recurrences need besides.

An initializer is a function `initializer(key, shape, dtype) -> array`. Fields of cells and layers
accept a name from `jax.nn.initializers` ("glorot_uniform", "orthogonal", "zeros", ...), a frozen
dataclass from this module, or any such function. Cells draw the weights of each gate separately, as
`[D, H]`, and the bias of all gates at once, as `[gates, H]`, so that an initializer can tell the gates apart.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.base import Array, Described, Shape
from seqjax.dtypes import at_least_float32

__all__ = ["Chrono", "ForgetGate", "Initializer", "KeepGate", "Ring", "Uniform", "WriteGate", "resolve"]

Initializer = str | Callable[..., Array]

BARE = ("zeros", "ones")
_MADE = (
    *("glorot_normal", "glorot_uniform", "xavier_normal", "xavier_uniform"),
    *("he_normal", "he_uniform", "kaiming_normal", "kaiming_uniform", "lecun_normal", "lecun_uniform"),
    *("normal", "truncated_normal", "uniform", "orthogonal", "delta_orthogonal"),
)
"""Names that are initializers themselves, and names of factories that need no arguments (`constant` needs a value)."""


def resolve(initializer: Initializer) -> Callable[..., Array]:
    """The function that an initializer field stands for; half-precision weights are drawn in float32 and rounded.

    Args:
      initializer: a name from `jax.nn.initializers`, or a function, which is called as `(key, shape, dtype)`.

    Returns:
      `(key, shape, dtype) -> array`.

    Raises:
      ValueError: a name that is not in `jax.nn.initializers`, or one that needs options.

    >>> resolve("ones")(jax.random.key(0), (3,), "bfloat16")
    Array([1, 1, 1], dtype=bfloat16)
    """
    return functools.partial(_rounded, initializer if callable(initializer) else _named(initializer))


def _rounded(draw: Callable[..., Array], key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    return draw(key, shape, at_least_float32(dtype)).astype(dtype)  # LAPACK's QR, for one, has no bfloat16


def _named(initializer: str) -> Callable[..., Array]:
    if not isinstance(initializer, str) or initializer not in BARE + _MADE:
        raise ValueError(f"unknown initializer {initializer!r}; give a function or one of {sorted(BARE + _MADE)}.")
    found = getattr(jax.nn.initializers, initializer)
    return found if initializer in BARE else found()


def _check_finite(owner: str, **given: float) -> None:
    for name, number in given.items():
        if not isinstance(number, numbers.Real) or isinstance(number, bool) or not math.isfinite(number):
            raise ValueError(f"{owner}: {name} must be a finite number, got {number!r}.")


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(Described):
    """Weights of any shape, drawn from U(low, high).

    Args:
      low, high: the bounds, low < high.

    Raises:
      ValueError: bounds that are not finite, or a `low` that is not below `high`.

    >>> weights = Uniform(-1.0, 1.0)(jax.random.key(0), (100,))
    >>> bool((jnp.abs(weights) <= 1).all()), bool((weights < 0).any())
    (True, True)
    """

    low: float
    high: float

    def __post_init__(self):
        _check_finite("Uniform", low=self.low, high=self.high)
        if not self.low < self.high:
            raise ValueError(f"Uniform needs low < high, got {self.low!r} and {self.high!r}.")

    def __call__(self, key: Array, shape: Shape, dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, self.low, self.high)


@dataclasses.dataclass(frozen=True, repr=False)
class ForgetGate(Described):
    """An LSTM bias of zeros, except for the forget gate's, which is `value`.

    `[4, H]`, gates in the order i, f, g, o. Source: Gers, Schmidhuber and Cummins 2000;
    Jozefowicz, Zaremba and Sutskever 2015 for the value 1.

    Args:
      value: the forget gate's bias; above 0, the cell starts by remembering.

    Raises:
      ValueError: a value that is not finite, or a shape that is not that of an LSTM's bias.

    >>> ForgetGate(1.0)(jax.random.key(0), (4, 1)).ravel().tolist()
    [0.0, 1.0, 0.0, 0.0]
    """

    value: float = 1.0

    def __post_init__(self):
        _check_finite("ForgetGate", value=self.value)

    def __call__(self, key: Array, shape: Shape, dtype=jnp.float32) -> Array:
        if len(shape) != 2 or shape[0] != 4:
            raise ValueError(
                f"ForgetGate fills an LSTM's bias [4, H], got shape {shape}; KeepGate fills a bias [3, H]."
            )
        return jnp.zeros(shape, dtype).at[1].set(self.value)


@dataclasses.dataclass(frozen=True, repr=False)
class KeepGate(Described):
    """A bias `[3, H]` of zeros, except for `value` at the gate that keeps the state: z of a GRU, f of a diagonal LSTM.

    Args:
      value: that gate's bias; above 0, the cell starts by remembering.

    Raises:
      ValueError: a value that is not finite, or a bias with a different number of gates.

    >>> KeepGate(1.0)(jax.random.key(0), (3, 1)).ravel().tolist()
    [1.0, 0.0, 0.0]
    """

    value: float = 1.0

    def __post_init__(self):
        _check_finite("KeepGate", value=self.value)

    def __call__(self, key: Array, shape: Shape, dtype=jnp.float32) -> Array:
        if len(shape) != 2 or shape[0] != 3:
            raise ValueError(
                f"KeepGate fills a bias [3, H] whose first gate keeps the state, got shape {shape}; "
                "an LSTM's is filled by ForgetGate, a MinGRU's by WriteGate."
            )
        return jnp.zeros(shape, dtype).at[0].set(self.value)


@dataclasses.dataclass(frozen=True, repr=False)
class WriteGate(Described):
    """A minimal GRU's bias `[2, H]` of zeros, except for `value` at z, which writes the state: below 0, memory is long.

    Args:
      value: the bias of z.

    Raises:
      ValueError: a value that is not finite, or a bias with a different number of gates.

    >>> WriteGate(-1.0)(jax.random.key(0), (2, 1)).ravel().tolist()
    [-1.0, 0.0]
    """

    value: float = -1.0

    def __post_init__(self):
        _check_finite("WriteGate", value=self.value)

    def __call__(self, key: Array, shape: Shape, dtype=jnp.float32) -> Array:
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(f"WriteGate fills a MinGRU's bias [2, H], got shape {shape}; z of a GRU keeps the state.")
        return jnp.zeros(shape, dtype).at[0].set(self.value)


@dataclasses.dataclass(frozen=True, repr=False)
class Chrono(Described):
    """A gate bias for memories of 1 to `max_steps` steps.

    LSTM `[4, H]`: b_f = log u, b_i = -b_f, u ~ U(1, max_steps - 1). GRU `[3, H]`: b_z = log u
    (z keeps the state); minimal GRU `[2, H]`: b_z = -log u (z writes it). Source: Tallec and
    Ollivier 2018, equation 16.

    Args:
      max_steps: the longest memory, at least 3.

    Raises:
      ValueError: a memory that is too short or not finite, or a bias with a different number of gates.

    >>> bias = Chrono(1000)(jax.random.key(0), (4, 8))
    >>> bool((bias[0] == -bias[1]).all() & (bias[1] >= 0).all() & (bias[2:] == 0).all())
    True
    """

    max_steps: int

    def __post_init__(self):
        _check_finite("Chrono", max_steps=self.max_steps)
        if self.max_steps < 3:
            raise ValueError(f"Chrono needs max_steps >= 3, got {self.max_steps}.")

    def __call__(self, key: Array, shape: Shape, dtype=jnp.float32) -> Array:
        if len(shape) != 2 or shape[0] not in (2, 3, 4):
            raise ValueError(
                f"Chrono fills the bias of an LSTM [4, H], a GRU [3, H] or a MinGRU [2, H], got shape {shape}."
            )
        memory = jnp.log(jax.random.uniform(key, shape[1:], dtype, 1.0, self.max_steps - 1.0))
        zeros = jnp.zeros(shape, dtype)
        if shape[0] == 4:
            return zeros.at[0].set(-memory).at[1].set(memory)
        return zeros.at[0].set(memory if shape[0] == 3 else -memory)


@dataclasses.dataclass(frozen=True, repr=False)
class Ring(Described):
    """Eigenvalues of a complex diagonal recurrence, drawn uniformly over the area of a ring.

    λ = exp(-exp(ν_log) + i exp(θ_log)), |λ|² ~ U(r_min², r_max²), arg λ ~ U(0, max_phase). Fills
    `[2, N]` with ν_log and θ_log. Source: Orvieto et al. 2023, lemma 3.2.

    Args:
      r_min, r_max: bounds of |λ|, 0 <= r_min < r_max < 1.
      max_phase: upper bound of the phase in radians, in (0, 2π]; small phases are slow oscillations.

    Raises:
      ValueError: bounds out of range, or a shape other than `[2, N]`.

    >>> nu_log, theta_log = Ring(0.5, 0.9)(jax.random.key(0), (2, 64))
    >>> modulus = jnp.exp(-jnp.exp(nu_log))
    >>> bool((modulus >= 0.5).all() & (modulus <= 0.9).all())
    True
    """

    r_min: float = 0.9
    r_max: float = 0.999
    max_phase: float = 2 * math.pi

    def __post_init__(self):
        _check_finite("Ring", r_min=self.r_min, r_max=self.r_max, max_phase=self.max_phase)
        if not 0 <= self.r_min < self.r_max < 1:
            raise ValueError(f"Ring needs 0 <= r_min < r_max < 1, got r_min={self.r_min}, r_max={self.r_max}.")
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"Ring needs max_phase in (0, 2π], got {self.max_phase}.")

    def __call__(self, key: Array, shape: Shape, dtype=jnp.float32) -> Array:
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(f"Ring fills ν_log and θ_log of N eigenvalues, [2, N], got shape {shape}.")
        wide = at_least_float32(dtype)
        modulus, phase = 1 - jax.random.uniform(key, shape, wide)  # in (0, 1]: no logarithm of zero
        square = self.r_min**2 + (self.r_max**2 - self.r_min**2) * modulus
        rate = jnp.maximum(-0.5 * jnp.log(square), jnp.finfo(wide).eps)  # keeps |λ| < 1 where r_max rounds to 1
        return jnp.log(jnp.stack([rate, self.max_phase * phase])).astype(dtype)
