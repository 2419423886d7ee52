# SPDX-License-Identifier: Apache-2.0
"""The independently recurrent network: each unit sees only its own past."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.activations import Activation, activation_function, has_slopes, slopes
from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells import gates
from seqjax.dtypes import DTypes
from seqjax.initializers import Initializer, Uniform, resolve


class IndRNNParams(NamedTuple):
    """Params of `IndRNN`: H units, D inputs; `None` where an option is off.

    Attributes:
      w_in: `[D, H]`.
      w_rec: `[H]`, u.
      bias: `[H]`.
    """

    w_in: Array
    w_rec: Array
    bias: Option


class IndRNNCarry(NamedTuple):
    """h `[..., H]`, the output of the step before."""

    h: Array


class IndRNNResiduals(NamedTuple):
    h_before: Array
    h: Array


def indrnn_step(
    params: IndRNNParams, carry: IndRNNCarry, z: Array, *, activation: Callable[[Array], Array] = jax.nn.relu
) -> tuple[IndRNNCarry, Array]:
    """One step from `z = W_x x + b`; see `IndRNN` for the recurrence.

    Args:
      params: as returned by `IndRNN.init`; only `w_rec [H]` is used.
      carry: h `[..., H]`.
      z: `[..., H]`.
      activation: φ, a function of arrays.

    Returns:
      The new carry and y = h `[..., H]`, in the dtype of z.

    Raises:
      TypeError: by JAX, shapes that do not fit; only the cell and the engines say what they expected.

    >>> cell = IndRNN(4)
    >>> params, x = cell.init(jax.random.key(0), 3), jnp.ones((2, 3))
    >>> carry, y = indrnn_step(params, cell.initial_carry(params, (2,)), x @ params.w_in + params.bias)
    >>> y.shape
    (2, 4)
    """
    y = activation(z + params.w_rec.astype(z.dtype) * carry.h.astype(z.dtype))
    return IndRNNCarry(y.astype(carry.h.dtype)), y


@dataclasses.dataclass(frozen=True, repr=False)
class IndRNN(Cell):
    """Independently recurrent network.

    y_t = h_t = φ(W_x x_t + u ⊗ h_{t-1} + b): units mix from layer to layer, not from step to step,
    so a unit's u shows how long it remembers, and the step's Jacobian is diagonal.

    Args:
      hidden_dim: H.
      activation: φ.
      use_bias: whether b exists.
      w_in_init, w_rec_init, bias_init: initializers; by default u starts within [0, 1]. Where |u| > 1
        a relu unit may grow without bound; the source's choice is `Uniform(0.0, 2 ** (1 / T))`.
      dtypes: params, compute and carry.

    Its params are `IndRNNParams`.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax
    >>> params = IndRNN(4).init(jax.random.key(0), 3)
    >>> params.w_in.shape, params.w_rec.shape
    ((3, 4), (4,))

    Source: Li et al. 2018, equation 4.
    """

    hidden_dim: int
    activation: Activation = "relu"
    use_bias: bool = True
    w_in_init: Initializer = "glorot_uniform"
    w_rec_init: Initializer = Uniform(0.0, 1.0)
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("IndRNN", hidden_dim=self.hidden_dim)
        require.dtypes("IndRNN", self.dtypes)
        require.boolean("IndRNN", use_bias=self.use_bias)
        require.activations("IndRNN", activation=self.activation)
        require.initializers("IndRNN", w_in_init=self.w_in_init, w_rec_init=self.w_rec_init, bias_init=self.bias_init)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"adjoint", "jacobian"} if has_slopes(self.activation) else ())

    @property
    def jacobian_structure(self) -> str:
        return "diagonal"

    def init(self, key: Array, in_dim: int) -> IndRNNParams:
        require.positive("IndRNN", in_dim=in_dim)
        in_key, rec_key, bias_key = jax.random.split(key, 3)
        hidden = self.hidden_dim
        return IndRNNParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 1, self.dtypes),
            w_rec=resolve(self.w_rec_init)(rec_key, (hidden,), self.dtypes.params),
            bias=gates.init_bias(bias_key, self.bias_init, hidden, 1, self.dtypes) if self.use_bias else None,
        )

    def initial_carry(self, params: IndRNNParams, batch_shape: Shape) -> IndRNNCarry:
        return IndRNNCarry(jnp.zeros((*batch_shape, params.w_rec.shape[0]), self.dtypes.of_carry(params.w_in)))

    def project(self, params: IndRNNParams, x: Array) -> Array:
        return gates.project_input(self, params, x)

    def step(self, params: IndRNNParams, carry: IndRNNCarry, z: Array, key: Key = None) -> tuple[IndRNNCarry, Array]:
        return indrnn_step(params, carry, z, activation=activation_function(self.activation))

    def gate_values(self, params: IndRNNParams, carry: IndRNNCarry, z: Array) -> dict[str, tuple[Array, Activation]]:
        return {"h": (self.step(params, carry, z)[1], self.activation)}

    def step_jacobian(self, params: IndRNNParams, carry: IndRNNCarry, z: Array) -> IndRNNCarry:
        _, y = self.step(params, carry, z)
        return IndRNNCarry((self._slope("jacobian")(y) * params.w_rec.astype(z.dtype)).astype(carry.h.dtype))

    def step_residuals(
        self, params: IndRNNParams, carry: IndRNNCarry, z: Array
    ) -> tuple[IndRNNCarry, Array, IndRNNResiduals]:
        after, y = self.step(params, carry, z)
        return after, y, IndRNNResiduals(carry.h.astype(z.dtype), y)

    def step_transpose(
        self, params: IndRNNParams, residuals: IndRNNResiduals, d_carry: IndRNNCarry, d_y: Array
    ) -> tuple[IndRNNCarry, Array, tuple]:
        d_z = (d_carry.h.astype(d_y.dtype) + d_y) * self._slope("adjoint")(residuals.h)
        d_h = d_z * params.w_rec.astype(d_z.dtype)
        return IndRNNCarry(d_h.astype(d_carry.h.dtype)), d_z, ()

    def accumulate(self, params: IndRNNParams, residuals: IndRNNResiduals, d_zs: Array, extras: tuple) -> IndRNNParams:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros._replace(w_rec=gates.leading_sum(d_zs * residuals.h_before, params.w_rec.dtype))

    def _slope(self, capability: str) -> Callable[[Array], Array]:
        return slopes(self, capability, self.activation)[0]
