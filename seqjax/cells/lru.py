# SPDX-License-Identifier: Apache-2.0
"""The linear recurrent unit: a complex diagonal recurrence with real inputs, outputs and params."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells.affine import affine_step, check_state, state_dtype
from seqjax.dtypes import DTypes
from seqjax.initializers import Initializer, Ring, resolve


class LRUParams(NamedTuple):
    """Params of `LRU`: D inputs, N complex states, H outputs; all real; `None` where an option is off.

    Attributes:
      nu_log: `[N]`, the log of -log |λ|.
      theta_log: `[N]`, the log of the phase of λ.
      gamma_log: `[N]`, the log of the input's normalization.
      b_re, b_im: `[D, N]`.
      c_re, c_im: `[N, H]`.
      d: `[D, H]`.
    """

    nu_log: Array
    theta_log: Array
    gamma_log: Array
    b_re: Array
    b_im: Array
    c_re: Array
    c_im: Array
    d: Option


class LRUCarry(NamedTuple):
    """h `[..., N]`, complex."""

    h: Array


class LRUInput(NamedTuple):
    """The projected input.

    Attributes:
      re, im: `[..., N]`, the real and imaginary parts of B x.
      skip: `[..., H]`, D x, if there is a D.
    """

    re: Array
    im: Array
    skip: Option


def lru_eigenvalues(params: LRUParams, dtype: jnp.dtype) -> Array:
    """λ = exp(-exp(ν_log) + i exp(θ_log)) `[N]`, in the complex dtype made of the real `dtype`."""
    modulus = jnp.exp(-jnp.exp(params.nu_log.astype(dtype)))
    phase = jnp.exp(params.theta_log.astype(dtype))
    return jax.lax.complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))


def lru_coefficients(params: LRUParams, z: LRUInput, *, dtype: jnp.dtype) -> tuple[LRUCarry, LRUCarry]:
    """`(decay, drive)` = (λ, γ ⊗ B x) of one step or of many; see `LRU` for the recurrence.

    Args:
      params: as returned by `LRU.init`.
      z: as returned by `LRU.project`.
      dtype: the real dtype of which the state's complex one is made.

    Returns:
      Two carries, with h `[N]` for the decay, which is the same at all steps, and `[..., N]` for the drive.

    >>> cell = LRU(4, state_dim=6)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> decay, drive = lru_coefficients(params, cell.project(params, jnp.ones((2, 3))), dtype=jnp.float32)
    >>> decay.h.shape, drive.h.shape, drive.h.dtype
    ((6,), (2, 6), dtype('complex64'))
    """
    gamma = jnp.exp(params.gamma_log.astype(dtype))
    drive = jax.lax.complex(gamma * z.re.astype(dtype), gamma * z.im.astype(dtype))
    return LRUCarry(lru_eigenvalues(params, dtype)), LRUCarry(drive)


def lru_readout(params: LRUParams, carry: LRUCarry, z: LRUInput) -> Array:
    """y = Re(C h) + D x of one step or of many.

    Args:
      params: as returned by `LRU.init`.
      carry: h `[..., N]`, after the step.
      z: as returned by `LRU.project`.

    Returns:
      y `[..., H]`, in the dtype of z.

    >>> cell = LRU(4, state_dim=6)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> lru_readout(params, cell.initial_carry(params, (2,)), cell.project(params, jnp.ones((2, 3)))).shape
    (2, 4)
    """
    dtype = z.re.dtype
    y = carry.h.real.astype(dtype) @ params.c_re.astype(dtype) - carry.h.imag.astype(dtype) @ params.c_im.astype(dtype)
    return y if z.skip is None else y + z.skip


@dataclasses.dataclass(frozen=True, repr=False)
class LRU(Cell):
    """Linear recurrent unit.

    h_t = λ ⊗ h_{t-1} + γ ⊗ (B x_t),  y_t = Re(C h_t) + D x_t,  λ = exp(-exp(ν_log) + i exp(θ_log)).

    The state h is complex (complex64, or complex128 for float64 params) with `state_dim` features;
    the output is real with `hidden_dim` features. |λ| < 1 whatever the params. γ starts at
    sqrt(1 - |λ|²), which gives each state the variance of its input. Params are real: a complex
    matrix is stored as a pair.

    Args:
      hidden_dim: H, features of the output.
      state_dim: N, the number of complex states; `None`: as many as outputs.
      skip: whether D exists.
      eigenvalue_init: initializer of ν_log and θ_log, drawn as `[2, N]`.
      b_init: initializer of the real and imaginary parts of B, each then divided by sqrt(2).
      c_init: initializer of the real and imaginary parts of C.
      d_init: initializer of D.
      dtypes: params, compute and carry; `carry` is the real dtype of which the complex one is made.

    Its params are `LRUParams`.

    Raises:
      ValueError: a 16-bit carry, or a size that is not a positive integer.

    >>> import jax
    >>> cell = LRU(4, state_dim=6)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> cell.initial_carry(params, (2,)).h.shape, params.c_re.shape
    ((2, 6), (6, 4))

    Source: Orvieto et al. 2023 (arXiv 2303.06349), section 3; lemma 3.2 for the eigenvalues. In their
    code D is diagonal, with as many inputs as outputs; here it is the matrix of their equations.
    """

    hidden_dim: int
    state_dim: int | None = None
    skip: bool = True
    eigenvalue_init: Initializer = Ring()
    b_init: Initializer = "lecun_normal"
    c_init: Initializer = "lecun_normal"
    d_init: Initializer = "lecun_normal"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("LRU", hidden_dim=self.hidden_dim)
        require.positive_if_given("LRU", state_dim=self.state_dim)
        check_state("LRU", self.dtypes)
        require.boolean("LRU", skip=self.skip)
        require.initializers(
            "LRU", eigenvalue_init=self.eigenvalue_init, b_init=self.b_init, c_init=self.c_init, d_init=self.d_init
        )

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"affine"})

    def init(self, key: Array, in_dim: int) -> LRUParams:
        require.positive("LRU", in_dim=in_dim)
        states, outputs, dtype = self.state_dim or self.hidden_dim, self.hidden_dim, self.dtypes.params
        ring_key, b_re, b_im, c_re, c_im, d_key = jax.random.split(key, 6)
        nu_log, theta_log = resolve(self.eigenvalue_init)(ring_key, (2, states), dtype)
        draw_b, draw_c, draw_d = (resolve(initializer) for initializer in (self.b_init, self.c_init, self.d_init))
        return LRUParams(
            nu_log=nu_log,
            theta_log=theta_log,
            gamma_log=0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu_log))),  # 1 - |λ|² without cancellation
            b_re=draw_b(b_re, (in_dim, states), dtype) / math.sqrt(2),
            b_im=draw_b(b_im, (in_dim, states), dtype) / math.sqrt(2),
            c_re=draw_c(c_re, (states, outputs), dtype),
            c_im=draw_c(c_im, (states, outputs), dtype),
            d=draw_d(d_key, (in_dim, outputs), dtype) if self.skip else None,
        )

    def initial_carry(self, params: LRUParams, batch_shape: Shape) -> LRUCarry:
        zeros = jnp.zeros((*batch_shape, self.state_dim or self.hidden_dim), state_dtype(self.dtypes, params.b_re))
        return LRUCarry(jax.lax.complex(zeros, zeros))

    def project(self, params: LRUParams, x: Array) -> LRUInput:
        x = self.dtypes.cast(self, x, params.b_re)
        skip = None if params.d is None else x @ params.d.astype(x.dtype)
        return LRUInput(x @ params.b_re.astype(x.dtype), x @ params.b_im.astype(x.dtype), skip)

    def coefficients(self, params: LRUParams, z: LRUInput) -> tuple[LRUCarry, LRUCarry]:
        return lru_coefficients(params, z, dtype=state_dtype(self.dtypes, params.b_re))

    def readout(self, params: LRUParams, carry: LRUCarry, z: LRUInput) -> Array:
        return lru_readout(params, carry, z)

    def step(self, params: LRUParams, carry: LRUCarry, z: LRUInput, key: Key = None) -> tuple[LRUCarry, Array]:
        return affine_step(self, params, carry, z)
