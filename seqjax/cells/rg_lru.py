# SPDX-License-Identifier: Apache-2.0
"""The real-gated linear recurrent unit of Griffin."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells import gates
from seqjax.cells.affine import affine_step, check_state, state_dtype
from seqjax.dtypes import DTypes, at_least_float32
from seqjax.initializers import Initializer, resolve

POWER = 8.0
"""c, which the source fixes."""


class RGLRUParams(NamedTuple):
    """Params of `RGLRU`: H units, D inputs; gates side by side in the order r, i; `None` where an option is off.

    Attributes:
      w_in: `[D, 2*H]`.
      bias: `[2*H]`.
      decay_logit: `[H]`, Λ.
      w_x: `[D, H]`, W_u.
    """

    w_in: Array
    bias: Option
    decay_logit: Array
    w_x: Option


class RGLRUCarry(NamedTuple):
    """h `[..., H]`, the state and, in the compute dtype, the output of the step before."""

    h: Array


class RGLRUInput(NamedTuple):
    """The projected input.

    Attributes:
      gates: `[..., 2*H]`, before the sigmoid.
      x: `[..., H]`, u, which enters the recurrence.
    """

    gates: Array
    x: Array


def complement_root(log_a: Array) -> Array:
    """sqrt(1 - a²) from log a <= 0.

    1 - a² = -expm1(2 log a) does not cancel near a = 1. There the slope with respect to log a is
    unbounded, but log a = -c r softplus(-Λ), and the slope with respect to Λ or r's pre-activation is
    at most |log a| a² / sqrt(1 - a²) < 1/4 and tends to zero. So nothing is clipped and autodiff is
    exact; the only guard is against dividing by a root that underflows to 0.

    >>> round(float(complement_root(jnp.float32(-5e-13))), 9)
    1e-06
    """
    square = -jnp.expm1(2 * log_a)
    inside = square >= jnp.finfo(square.dtype).tiny
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, square, jnp.ones_like(square))), jnp.zeros_like(square))


def rg_lru_coefficients(decay_logit: Array, z: RGLRUInput) -> tuple[RGLRUCarry, RGLRUCarry]:
    """`(decay, drive)` = (a, sqrt(1 - a²) ⊗ i ⊗ u) of one step or of many; see `RGLRU` for the recurrence.

    Args:
      decay_logit: Λ `[H]`, in the dtype that the state shall have.
      z: as returned by `RGLRU.project`.

    Returns:
      Two carries with h `[..., H]`.

    >>> cell = RGLRU(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> decay, drive = rg_lru_coefficients(params.decay_logit, cell.project(params, jnp.ones((2, 3))))
    >>> decay.h.shape, drive.h.shape
    ((2, 4), (2, 4))
    """
    dtype = decay_logit.dtype
    r, i = gates.split_gates(jax.nn.sigmoid(z.gates.astype(dtype)), 2)
    log_a = -POWER * r * jax.nn.softplus(-decay_logit)
    return RGLRUCarry(jnp.exp(log_a)), RGLRUCarry(complement_root(log_a) * i * z.x.astype(dtype))


@dataclasses.dataclass(frozen=True, repr=False)
class RGLRU(Cell):
    """Real-gated linear recurrent unit.

    r, i = σ(W· x_t + b·),  a = σ(Λ)^(c r),  c = 8,
    y_t = h_t = a ⊗ h_{t-1} + sqrt(1 - a²) ⊗ (i ⊗ u_t).

    u_t = W_u x_t, which in the source is a separate layer before the cell. With `project_input=False`,
    u_t = x_t, exactly the source's equations, and inputs must have H features. (The authors' code
    also leaves out the root at the first step of a sequence; the equations do not, and nor do we.)

    The state is at least float32, whatever the compute dtype.

    Args:
      hidden_dim: H.
      project_input: whether W_u exists.
      min_decay, max_decay: bounds of the uniform distribution from which the initial σ(Λ)^c is drawn.
      use_bias: whether the gates' biases exist.
      w_in_init, bias_init, w_x_init: initializers of the gates and of W_u.
      dtypes: params, compute and carry.

    Its params are `RGLRUParams`.

    Raises:
      ValueError: decays that violate 0 < min < max < 1, a 16-bit carry, a size that is not a
        positive integer, or, without projection, inputs that do not have H features.

    >>> import jax
    >>> params = RGLRU(4).init(jax.random.key(0), 3)
    >>> params.w_in.shape, params.decay_logit.shape, params.w_x.shape
    ((3, 8), (4,), (3, 4))

    Source: De et al. 2024 (Griffin, arXiv 2402.19427), equations 1 to 4; section 2.4 for the initialization.
    """

    hidden_dim: int
    project_input: bool = True
    min_decay: float = 0.9
    max_decay: float = 0.999
    use_bias: bool = True
    w_in_init: Initializer = "lecun_normal"
    bias_init: Initializer = "zeros"
    w_x_init: Initializer = "lecun_normal"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("RGLRU", hidden_dim=self.hidden_dim)
        check_state("RGLRU", self.dtypes)
        require.boolean("RGLRU", use_bias=self.use_bias, project_input=self.project_input)
        decays = self.min_decay, self.max_decay
        if not all(map(require.is_number, decays)) or not 0 < self.min_decay < self.max_decay < 1:
            raise ValueError(
                f"RGLRU needs 0 < min_decay < max_decay < 1, got min_decay={self.min_decay!r}, "
                f"max_decay={self.max_decay!r}."
            )
        require.initializers("RGLRU", w_in_init=self.w_in_init, bias_init=self.bias_init, w_x_init=self.w_x_init)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"affine"})

    def init(self, key: Array, in_dim: int) -> RGLRUParams:
        require.positive("RGLRU", in_dim=in_dim)
        hidden, dtype = self.hidden_dim, self.dtypes.params
        if not self.project_input and in_dim != hidden:
            raise ValueError(
                f"{self!r} takes inputs of {hidden} features as they are, got {in_dim}; leave project_input on, "
                "or put a Dense layer before it."
            )
        in_key, bias_key, decay_key, x_key = jax.random.split(key, 4)
        wide = at_least_float32(dtype)
        uniform = jax.random.uniform(decay_key, (hidden,), wide, self.min_decay, self.max_decay)
        log_a = jnp.log(uniform) / POWER
        return RGLRUParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 2, self.dtypes),
            bias=gates.init_bias(bias_key, self.bias_init, hidden, 2, self.dtypes) if self.use_bias else None,
            decay_logit=(log_a - jnp.log(-jnp.expm1(log_a))).astype(dtype),
            w_x=resolve(self.w_x_init)(x_key, (in_dim, hidden), dtype) if self.project_input else None,
        )

    def initial_carry(self, params: RGLRUParams, batch_shape: Shape) -> RGLRUCarry:
        return RGLRUCarry(jnp.zeros((*batch_shape, self.hidden_dim), state_dtype(self.dtypes, params.w_in)))

    def project(self, params: RGLRUParams, x: Array) -> RGLRUInput:
        z = gates.project_input(self, params, x)
        x = x.astype(z.dtype)
        return RGLRUInput(z, x if params.w_x is None else x @ params.w_x.astype(z.dtype))

    def coefficients(self, params: RGLRUParams, z: RGLRUInput) -> tuple[RGLRUCarry, RGLRUCarry]:
        return rg_lru_coefficients(params.decay_logit.astype(state_dtype(self.dtypes, params.w_in)), z)

    def readout(self, params: RGLRUParams, carry: RGLRUCarry, z: RGLRUInput) -> Array:
        return carry.h.astype(z.gates.dtype)

    def step(self, params: RGLRUParams, carry: RGLRUCarry, z: RGLRUInput, key: Key = None) -> tuple[RGLRUCarry, Array]:
        return affine_step(self, params, carry, z)

    def gate_values(self, params: RGLRUParams, carry: RGLRUCarry, z: RGLRUInput) -> dict[str, tuple[Array, str]]:
        r, i = gates.split_gates(jax.nn.sigmoid(z.gates), 2)
        return {"r": (r, "sigmoid"), "i": (i, "sigmoid")}
