# SPDX-License-Identifier: Apache-2.0
"""The minimal GRU and LSTM, whose gates see only the input, so that they are affine in their state."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells import gates
from seqjax.cells.affine import affine_step, check_state, state_dtype
from seqjax.dtypes import DTypes
from seqjax.initializers import Initializer

MODES = ("direct", "log")


class MinGRUParams(NamedTuple):
    """Params of `MinGRU`: H units, D inputs; gates side by side in the order z, g; `None` where an option is off.

    Attributes:
      w_in: `[D, 2*H]`.
      bias: `[2*H]`.
    """

    w_in: Array
    bias: Option


class MinLSTMParams(NamedTuple):
    """Params of `MinLSTM`: H units, D inputs; gates side by side in the order i, f, g; `None` where an option is off.

    Attributes:
      w_in: `[D, 3*H]`.
      bias: `[3*H]`.
    """

    w_in: Array
    bias: Option


class MinCarry(NamedTuple):
    """h `[..., H]`, the state and, in the compute dtype, the output of the step before."""

    h: Array


def positive_candidate(x: Array) -> Array:
    """The candidate of the log form: x + 0.5 for x >= 0, σ(x) for x < 0; positive, continuous and increasing.

    >>> positive_candidate(jnp.array([-200.0, 0.0, 2.0])).tolist()
    [0.0, 0.5, 2.5]
    """
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def min_gru_coefficients(z: Array, *, mode: str = "direct") -> tuple[MinCarry, MinCarry]:
    """`(decay, drive)` = (1 - z, z ⊗ g) of one step or of many; see `MinGRU` for the recurrence.

    Args:
      z: `[..., 2*H]`, W_x x + b, in the dtype that the state shall have.
      mode: the candidate, `"direct"` or `"log"`.

    Returns:
      Two carries with h `[..., H]`.

    >>> decay, drive = min_gru_coefficients(jnp.array([0.0, 4.0]))
    >>> decay.h.tolist(), drive.h.tolist()
    ([0.5], [2.0])
    """
    z_x, g = gates.split_gates(z, 2)
    g = positive_candidate(g) if mode == "log" else g
    return MinCarry(jax.nn.sigmoid(-z_x)), MinCarry(jax.nn.sigmoid(z_x) * g)  # σ(-x) = 1 - σ(x), without cancellation


def min_lstm_coefficients(z: Array, *, mode: str = "direct") -> tuple[MinCarry, MinCarry]:
    """`(decay, drive)` = (f', i' ⊗ g) of one step or of many; see `MinLSTM` for the recurrence.

    Args:
      z: `[..., 3*H]`, W_x x + b, in the dtype that the state shall have.
      mode: the candidate, `"direct"` or `"log"`.

    Returns:
      Two carries with h `[..., H]`.

    >>> decay, drive = min_lstm_coefficients(jnp.array([1.0, 1.0, 4.0]))
    >>> decay.h.tolist(), drive.h.tolist()
    ([0.5], [2.0])
    """
    i_x, f_x, g = gates.split_gates(z, 3)
    g = positive_candidate(g) if mode == "log" else g
    balance = jax.nn.softplus(-i_x) - jax.nn.softplus(-f_x)  # log f - log i, finite where both gates underflow
    return MinCarry(jax.nn.sigmoid(balance)), MinCarry(jax.nn.sigmoid(-balance) * g)


@dataclasses.dataclass(frozen=True, repr=False)
class MinimalFamily(Cell):
    """What the two cells share: options, projection, and a step made from the coefficients."""

    hidden_dim: int
    mode: str = "direct"
    use_bias: bool = True
    w_in_init: Initializer = "glorot_uniform"
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        name = type(self).__name__
        require.positive(name, hidden_dim=self.hidden_dim)
        require.one_of(name, mode=(self.mode, MODES))
        check_state(name, self.dtypes)
        require.boolean(name, use_bias=self.use_bias)
        require.initializers(name, w_in_init=self.w_in_init, bias_init=self.bias_init)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"affine"})

    def initial_carry(self, params: Any, batch_shape: Shape) -> MinCarry:
        return MinCarry(jnp.zeros((*batch_shape, self.hidden_dim), state_dtype(self.dtypes, params.w_in)))

    def project(self, params: Any, x: Array) -> Array:
        return gates.project_input(self, params, x)

    def readout(self, params: Any, carry: MinCarry, z: Array) -> Array:
        return carry.h.astype(z.dtype)

    def step(self, params: Any, carry: MinCarry, z: Array, key: Key = None) -> tuple[MinCarry, Array]:
        return affine_step(self, params, carry, z)


@dataclasses.dataclass(frozen=True, repr=False)
class MinGRU(MinimalFamily):
    """Minimal gated recurrent unit.

    z = σ(W_z x_t + b_z),  g = W_g x_t + b_g,  y_t = h_t = (1 - z) ⊗ h_{t-1} + z ⊗ g.

    Here z *writes* the state, as in the source, whereas `GRU`'s z keeps it. With `mode="log"` the
    candidate is the source's positive one, x + 0.5 for x >= 0 and σ(x) for x < 0, so that a positive
    state stays positive. The source works with logarithms there because its parallel scan divides by
    products of decays. No engine here does, so in both modes the carry is h itself, not log h, and no
    accuracy is lost: 1 - z is computed as σ(-x), and the update is an average, which cannot overflow.

    The state is at least float32, whatever the compute dtype.

    Args:
      hidden_dim: H.
      mode: the candidate, `"direct"` or `"log"`.
      use_bias: whether the biases exist.
      w_in_init, bias_init: initializers.
      dtypes: params, compute and carry.

    Its params are `MinGRUParams`.

    Raises:
      ValueError: an unknown mode, a 16-bit carry, or a size that is not a positive integer.

    >>> import jax
    >>> MinGRU(4, mode="log").init(jax.random.key(0), 3).w_in.shape
    (3, 8)

    Source: Feng et al. 2024 (arXiv 2410.01201), section 3.1, appendix B for the log form.
    """

    def init(self, key: Array, in_dim: int) -> MinGRUParams:
        require.positive("MinGRU", in_dim=in_dim)
        in_key, bias_key = jax.random.split(key)
        return MinGRUParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, self.hidden_dim, 2, self.dtypes),
            bias=gates.init_bias(bias_key, self.bias_init, self.hidden_dim, 2, self.dtypes) if self.use_bias else None,
        )

    def coefficients(self, params: MinGRUParams, z: Array) -> tuple[MinCarry, MinCarry]:
        return min_gru_coefficients(z.astype(state_dtype(self.dtypes, params.w_in)), mode=self.mode)

    def gate_values(self, params: MinGRUParams, carry: MinCarry, z: Array) -> dict[str, tuple[Array, str]]:
        return {"z": (jax.nn.sigmoid(gates.split_gates(z, 2)[0]), "sigmoid")}


@dataclasses.dataclass(frozen=True, repr=False)
class MinLSTM(MinimalFamily):
    """Minimal long short-term memory, with gates normalized so that they sum to 1.

    i, f = σ(W_x· x_t + b·),  f' = f / (f + i),  i' = i / (f + i),  g = W_g x_t + b_g,
    y_t = h_t = f' ⊗ h_{t-1} + i' ⊗ g.

    f' and i' are computed from log f - log i, so they are right even where both gates underflow. With
    `mode="log"` the candidate is the source's positive one; see `MinGRU` for why the carry is h
    itself in both modes. The state is at least float32, whatever the compute dtype.

    Args:
      hidden_dim: H.
      mode: the candidate, `"direct"` or `"log"`.
      use_bias: whether the biases exist.
      w_in_init: initializer of the weights.
      bias_init: initializer of the bias, drawn like an LSTM's as `[4, H]` and used without o, so
        that `ForgetGate` and `Chrono` mean the same as for an `LSTM`.
      dtypes: params, compute and carry.

    Its params are `MinLSTMParams`.

    Raises:
      ValueError: an unknown mode, a 16-bit carry, or a size that is not a positive integer.

    >>> import jax, seqjax
    >>> cell = MinLSTM(1, bias_init=seqjax.initializers.ForgetGate(1.0))
    >>> cell.init(jax.random.key(0), 3).bias.tolist()
    [0.0, 1.0, 0.0]

    Source: Feng et al. 2024 (arXiv 2410.01201), section 3.2, appendix B for the log form.
    """

    def init(self, key: Array, in_dim: int) -> MinLSTMParams:
        require.positive("MinLSTM", in_dim=in_dim)
        in_key, bias_key = jax.random.split(key)
        hidden, bias = self.hidden_dim, None
        if self.use_bias:
            bias = gates.init_bias(bias_key, self.bias_init, hidden, 4, self.dtypes)[: 3 * hidden]
        return MinLSTMParams(gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 3, self.dtypes), bias)

    def coefficients(self, params: MinLSTMParams, z: Array) -> tuple[MinCarry, MinCarry]:
        return min_lstm_coefficients(z.astype(state_dtype(self.dtypes, params.w_in)), mode=self.mode)

    def gate_values(self, params: MinLSTMParams, carry: MinCarry, z: Array) -> dict[str, tuple[Array, str]]:
        return {"f": (self.coefficients(params, z)[0].h, "sigmoid")}
