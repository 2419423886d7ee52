# SPDX-License-Identifier: Apache-2.0
"""The LSTM: the options it shares with the peephole LSTM, bound to the equations."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.activations import Activation, activation_function, gate_function, has_slopes, slopes
from seqjax.base import Array, Cell, Key, Shape
from seqjax.cells import gates, normalization
from seqjax.cells.lstm_equations import (
    LSTMCarry,
    LSTMParams,
    LSTMResiduals,
    lstm_accumulate,
    lstm_carry,
    lstm_pieces,
    lstm_residuals,
    lstm_step,
    lstm_transpose,
    memory_after,
)
from seqjax.dtypes import DTypes
from seqjax.initializers import ForgetGate, Initializer, resolve


@dataclasses.dataclass(frozen=True, repr=False)
class LSTMFamily(Cell):
    """The options of `LSTM` and `PeepholeLSTM`, bound to the equations."""

    peepholes: ClassVar[bool]

    hidden_dim: int
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    use_bias: bool = True
    normalize: str | None = None
    epsilon: float = normalization.EPSILON
    proj_dim: int | None = None
    w_in_init: Initializer = "glorot_uniform"
    w_rec_init: Initializer = "orthogonal"
    bias_init: Initializer = ForgetGate()
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        name = type(self).__name__
        require.positive(name, hidden_dim=self.hidden_dim)
        require.positive_if_given(name, proj_dim=self.proj_dim)
        require.one_of(name, normalize=(self.normalize, (None, "layer")))
        require.positive_number(name, epsilon=self.epsilon)
        require.dtypes(name, self.dtypes)
        require.boolean(name, use_bias=self.use_bias)
        require.activations(name, activation=self.activation, recurrent_activation=self.recurrent_activation)
        require.initializers(name, w_in_init=self.w_in_init, w_rec_init=self.w_rec_init, bias_init=self.bias_init)

    def _options(self) -> dict[str, Any]:
        return {
            "activation": activation_function(self.activation),
            "gate": gate_function(self.recurrent_activation),
            "epsilon": self.epsilon,
        }

    @property
    def capabilities(self) -> frozenset[str]:
        known = has_slopes(self.activation, self.recurrent_activation)
        return frozenset({"adjoint", "seen"} if known else {"seen"})

    def init(self, key: Array, in_dim: int) -> LSTMParams:
        require.positive(type(self).__name__, in_dim=in_dim)
        in_key, rec_key, bias_key, proj_key = jax.random.split(key, 4)
        hidden, dtype = self.hidden_dim, self.dtypes.params
        normalized = self.normalize is not None
        return LSTMParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 4, self.dtypes),
            w_rec=gates.init_gates(rec_key, self.w_rec_init, self.proj_dim or hidden, hidden, 4, self.dtypes),
            bias=gates.init_bias(bias_key, self.bias_init, hidden, 4, self.dtypes) if self.use_bias else None,
            peephole=jnp.zeros((3, hidden), dtype) if self.peepholes else None,
            scale=jnp.ones(4 * hidden, dtype) if normalized else None,
            offset=jnp.zeros(4 * hidden, dtype) if normalized else None,
            w_proj=resolve(self.w_in_init)(proj_key, (hidden, self.proj_dim), dtype) if self.proj_dim else None,
        )

    def initial_carry(self, params: LSTMParams, batch_shape: Shape) -> LSTMCarry:
        return lstm_carry(params, batch_shape, self.dtypes)

    def project(self, params: LSTMParams, x: Array) -> gates.Gates:
        options = self._options()
        return gates.project_gates(self, params, x, *lstm_pieces(params, options["activation"], options["gate"]))

    def step(self, params: LSTMParams, carry: LSTMCarry, z: gates.Gates, key: Key = None) -> tuple[LSTMCarry, Array]:
        return lstm_step(params, carry, z, **self._options())

    def gate_values(self, params: LSTMParams, carry: LSTMCarry, z: gates.Gates) -> dict[str, tuple[Array, Activation]]:
        _, _, kept = self.step_residuals(params, carry, z)
        phi_c = activation_function(self.activation)(memory_after(kept))
        return {
            **{name: (getattr(kept, name), self.recurrent_activation) for name in ("i", "f", "o")},
            "g": (kept.g, self.activation),
            "phi_c": (phi_c, self.activation),
        }

    def step_seen(self, params: LSTMParams, carry: LSTMCarry, h: Array, z: gates.Gates) -> tuple[LSTMCarry, Array]:
        return lstm_step(params, carry, z, h, **self._options())

    def step_residuals(
        self, params: LSTMParams, carry: LSTMCarry, z: gates.Gates
    ) -> tuple[LSTMCarry, Array, LSTMResiduals]:
        return lstm_residuals(params, carry, z, **self._options())

    def step_transpose(
        self, params: LSTMParams, residuals: LSTMResiduals, d_carry: LSTMCarry, d_y: Array
    ) -> tuple[LSTMCarry, Array, tuple]:
        slope, gate_slope = slopes(self, "adjoint", self.activation, self.recurrent_activation)
        activation = activation_function(self.activation)
        return lstm_transpose(
            params, residuals, d_carry, d_y, activation=activation, slope=slope, gate_slope=gate_slope
        )

    def project_transpose(self, params: LSTMParams, x: Array, d_z: Array) -> tuple[LSTMParams, Array]:
        return gates.project_transpose(params, x, d_z)

    def accumulate(self, params: LSTMParams, residuals: LSTMResiduals, d_zs: Array, extras: tuple) -> LSTMParams:
        return lstm_accumulate(params, residuals, d_zs, extras)


@dataclasses.dataclass(frozen=True, repr=False)
class LSTM(LSTMFamily):
    """Long short-term memory.

    i, f, o = σ(W_x· x_t + W_h· h_{t-1} + b·),  g = φ(W_xg x_t + W_hg h_{t-1} + b_g),
    c_t = f ⊗ c_{t-1} + i ⊗ g,  y_t = h_t = o ⊗ φ(c_t)

    With `normalize="layer"` each gate's linear combination is normalized over its H features
    before its activation. With `proj_dim=P`, y_t = h_t = W_p (o ⊗ φ(c_t)) has P features.

    Args:
      hidden_dim: H.
      activation: φ.
      recurrent_activation: σ.
      use_bias: whether b exists.
      normalize: `None` or `"layer"`.
      epsilon: added to the variance in the normalization.
      proj_dim: P, or `None` for no projection.
      w_in_init, w_rec_init, bias_init: initializers; `w_in_init` draws W_p too, and by default the forget gate's
        bias starts at 1.
      dtypes: params, compute and carry.

    Its params (`LSTMParams`) have the gates side by side in the order i, f, g, o: w_in `[D, 4*H]`, w_rec `[H, 4*H]`
    (`[P, 4*H]` with a projection), bias `[4*H]`; w_proj `[H, P]`.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax, jax.numpy as jnp
    >>> cell = LSTM(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, y = cell.step(params, cell.initial_carry(params, (2,)), cell.project(params, jnp.ones((2, 3))))
    >>> cell, y.shape
    (LSTM(4), (2, 4))

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins
    2000; projection: Sak, Senior and Beaufays 2014 (without peepholes, as in PyTorch and cuDNN).
    """

    peepholes: ClassVar[bool] = False
