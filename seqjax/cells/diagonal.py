# SPDX-License-Identifier: Apache-2.0
"""A GRU and an LSTM with diagonal recurrent weights, which make Newton's method cheap."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.activations import Activation, activation_function, gate_function, has_slopes, sigmoid, slopes
from seqjax.base import Array, Carry, Cell, Key, Option, Shape
from seqjax.cells import gates
from seqjax.cells.gru import GRUCarry
from seqjax.dtypes import DTypes
from seqjax.initializers import Initializer, KeepGate, Uniform, resolve


class DiagonalParams(NamedTuple):
    """Params of `DiagonalGRU`, gates side by side in the order z, r, g, and of `DiagonalLSTM`, in the order f, g, o:
    H units, D inputs; `None` where an option is off.

    Attributes:
      w_in: `[D, 3*H]`.
      w_rec: `[3, H]`.
      bias: `[3*H]`.
    """

    w_in: Array
    w_rec: Array
    bias: Option


class DiagonalLSTMCarry(NamedTuple):
    """c `[..., H]`, the memory cell."""

    c: Array


class DiagonalGRUResiduals(NamedTuple):
    z: Array
    r: Array
    g: Array
    h_before: Array


class DiagonalLSTMResiduals(NamedTuple):
    f: Array
    g: Array
    o: Array
    c_before: Array
    c_after: Array
    squashed: Array  # φ(c_t)


def diagonal_gru_residuals(
    params: DiagonalParams,
    carry: GRUCarry,
    z: gates.Gates,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = sigmoid,
) -> tuple[GRUCarry, Array, DiagonalGRUResiduals]:
    """One step of `DiagonalGRU` from `z = W_x x + b`, with everything its transpose needs."""
    z_x, r_x, g_x = z
    w_z, w_r, w_g = params.w_rec.astype(g_x.dtype)
    h = carry.h.astype(g_x.dtype)
    keep = gate(z_x + w_z * h)
    r = gate(r_x + w_r * h)
    g = activation(g_x + w_g * (r * h))
    y = keep * h + (1 - keep) * g
    return GRUCarry(y.astype(carry.h.dtype)), y, DiagonalGRUResiduals(keep, r, g, h)


def diagonal_lstm_residuals(
    params: DiagonalParams,
    carry: DiagonalLSTMCarry,
    z: gates.Gates,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = sigmoid,
) -> tuple[DiagonalLSTMCarry, Array, DiagonalLSTMResiduals]:
    """One step of `DiagonalLSTM` from `z = W_x x + b`, with everything its transpose needs."""
    f_x, g_x, o_x = z
    w_f, w_g, w_o = params.w_rec.astype(g_x.dtype)
    c_before = carry.c.astype(g_x.dtype)
    f = gate(f_x + w_f * c_before)
    g = activation(g_x + w_g * c_before)
    c = f.astype(carry.c.dtype) * carry.c + ((1 - f) * g).astype(carry.c.dtype)
    c_after = c.astype(c_before.dtype)
    o = gate(o_x + w_o * c_after)
    squashed = activation(c_after)
    return DiagonalLSTMCarry(c), o * squashed, DiagonalLSTMResiduals(f, g, o, c_before, c_after, squashed)


@dataclasses.dataclass(frozen=True, repr=False)
class DiagonalFamily(Cell):
    """What the two cells share: options, params, and slopes computed from the stored activations."""

    hidden_dim: int
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    use_bias: bool = True
    w_in_init: Initializer = "glorot_uniform"
    w_rec_init: Initializer = Uniform(-1.0, 1.0)
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        owner = type(self).__name__
        require.positive(owner, hidden_dim=self.hidden_dim)
        require.activations(owner, activation=self.activation, recurrent_activation=self.recurrent_activation)
        require.dtypes(owner, self.dtypes)
        require.boolean(owner, use_bias=self.use_bias)
        require.initializers(owner, w_in_init=self.w_in_init, w_rec_init=self.w_rec_init, bias_init=self.bias_init)

    @property
    def capabilities(self) -> frozenset[str]:
        known = has_slopes(self.activation, self.recurrent_activation)
        return frozenset({"adjoint", "jacobian"} if known else ())

    @property
    def jacobian_structure(self) -> str:
        return "diagonal"

    def init(self, key: Array, in_dim: int) -> DiagonalParams:
        require.positive(type(self).__name__, in_dim=in_dim)
        in_key, rec_key, bias_key = jax.random.split(key, 3)
        hidden = self.hidden_dim
        return DiagonalParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 3, self.dtypes),
            w_rec=resolve(self.w_rec_init)(rec_key, (3, hidden), self.dtypes.params),
            bias=gates.init_bias(bias_key, self.bias_init, hidden, 3, self.dtypes) if self.use_bias else None,
        )

    def project(self, params: DiagonalParams, x: Array) -> gates.Gates:
        return gates.project_gates(self, params, x, 1, 1, 1)

    def step(self, params: DiagonalParams, carry: Carry, z: gates.Gates, key: Key = None) -> tuple[Carry, Array]:
        after, y, _ = self.step_residuals(params, carry, z)
        return after, y

    def _zeros(self, params: DiagonalParams, batch_shape: Shape) -> Array:
        return jnp.zeros((*batch_shape, params.w_rec.shape[1]), self.dtypes.of_carry(params.w_in))

    def _options(self) -> dict:
        return {
            "activation": activation_function(self.activation),
            "gate": gate_function(self.recurrent_activation),
        }

    def _slopes(self, capability: str) -> list[Callable[[Array], Array]]:
        return slopes(self, capability, self.activation, self.recurrent_activation)


def accumulate_diagonal(params: DiagonalParams, d_zs: Array, seen: list[Array]) -> DiagonalParams:
    """The params' cotangent; `seen` holds, for each gate, what its recurrent weight multiplied at every step."""
    d_gates = gates.split_gates(d_zs, len(seen))
    d_rec = [gates.leading_sum(d * s, params.w_rec.dtype) for d, s in zip(d_gates, seen, strict=True)]
    return jax.tree.map(jnp.zeros_like, params)._replace(w_rec=jnp.stack(d_rec))


@dataclasses.dataclass(frozen=True, repr=False)
class DiagonalGRU(DiagonalFamily):
    """Gated recurrent unit with diagonal recurrent weights.

    z, r = σ(W_x· x_t + w· ⊗ h_{t-1} + b·),  g = φ(W_xg x_t + w_g ⊗ (r ⊗ h_{t-1}) + b_g),
    y_t = h_t = z ⊗ h_{t-1} + (1 - z) ⊗ g

    Units mix through W_x of the next layer, not from step to step, so the step's Jacobian is exactly
    diagonal and `Newton` solves it elementwise.

    Args:
      hidden_dim: H.
      activation: φ.
      recurrent_activation: σ.
      use_bias: whether b exists.
      w_in_init, w_rec_init, bias_init: initializers; by default recurrent weights start within [-1, 1].
      dtypes: params, compute and carry.

    Its params are `DiagonalParams`.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax
    >>> DiagonalGRU(4).init(jax.random.key(0), 3).w_rec.shape
    (3, 4)

    Source: Danieli et al. 2025 (ParaRNN), ParaGRU; their z is our 1 - z, and W_x is not split into heads.
    """

    def initial_carry(self, params: DiagonalParams, batch_shape: Shape) -> GRUCarry:
        return GRUCarry(self._zeros(params, batch_shape))

    def step_residuals(
        self, params: DiagonalParams, carry: GRUCarry, z: gates.Gates
    ) -> tuple[GRUCarry, Array, DiagonalGRUResiduals]:
        return diagonal_gru_residuals(params, carry, z, **self._options())

    def gate_values(
        self, params: DiagonalParams, carry: GRUCarry, z: gates.Gates
    ) -> dict[str, tuple[Array, Activation]]:
        _, _, kept = self.step_residuals(params, carry, z)
        gate = self.recurrent_activation
        return {"z": (kept.z, gate), "r": (kept.r, gate), "g": (kept.g, self.activation)}

    def step_jacobian(self, params: DiagonalParams, carry: GRUCarry, z: gates.Gates) -> GRUCarry:
        slope, gate_slope = self._slopes("jacobian")
        _, _, kept = self.step_residuals(params, carry, z)
        w_z, w_r, w_g = params.w_rec.astype(kept.g.dtype)
        through_z = (kept.h_before - kept.g) * gate_slope(kept.z) * w_z
        through_g = (1 - kept.z) * slope(kept.g) * w_g * (kept.r + kept.h_before * gate_slope(kept.r) * w_r)
        return GRUCarry((kept.z + through_z + through_g).astype(carry.h.dtype))

    def step_transpose(
        self, params: DiagonalParams, residuals: DiagonalGRUResiduals, d_carry: GRUCarry, d_y: Array
    ) -> tuple[GRUCarry, Array, tuple]:
        slope, gate_slope = self._slopes("adjoint")
        kept, (w_z, w_r, w_g) = residuals, params.w_rec.astype(d_y.dtype)
        d_h = d_carry.h.astype(d_y.dtype) + d_y
        d_zgate = d_h * (kept.h_before - kept.g) * gate_slope(kept.z)
        d_g = d_h * (1 - kept.z) * slope(kept.g)
        d_gated = d_g * w_g
        d_r = d_gated * kept.h_before * gate_slope(kept.r)
        d_before = d_h * kept.z + d_zgate * w_z + d_gated * kept.r + d_r * w_r
        return GRUCarry(d_before.astype(d_carry.h.dtype)), jnp.concatenate([d_zgate, d_r, d_g], -1), ()

    def accumulate(
        self, params: DiagonalParams, residuals: DiagonalGRUResiduals, d_zs: Array, extras: tuple
    ) -> DiagonalParams:
        h = residuals.h_before
        return accumulate_diagonal(params, d_zs, [h, h, residuals.r * h])


@dataclasses.dataclass(frozen=True, repr=False)
class DiagonalLSTM(DiagonalFamily):
    """LSTM whose gates see nothing of the past but the memory cell, through diagonal weights.

    f = σ(W_xf x_t + w_f ⊗ c_{t-1} + b_f),  g = φ(W_xg x_t + w_g ⊗ c_{t-1} + b_g),
    c_t = f ⊗ c_{t-1} + (1 - f) ⊗ g,  o = σ(W_xo x_t + w_o ⊗ c_t + b_o),  y_t = o ⊗ φ(c_t)

    The carry is c alone, so the step's Jacobian is exactly diagonal and `Newton` solves it elementwise.
    The input gate is 1 - f, so c stays within the range of φ; with a separate input gate, a c that
    opens its own forget gate would grow without bound.

    Args:
      hidden_dim: H.
      activation: φ.
      recurrent_activation: σ.
      use_bias: whether b exists.
      w_in_init, w_rec_init, bias_init: initializers; by default recurrent weights start within [-1, 1]
        and the forget gate's bias at 1.
      dtypes: params, compute and carry.

    Its params are `DiagonalParams`.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax
    >>> cell = DiagonalLSTM(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> cell.initial_carry(params, (2,)).c.shape, params.w_rec.shape
    ((2, 4), (3, 4))

    Source: Danieli et al. 2025 (ParaRNN), ParaLSTM, with h eliminated: theirs has the coupled gates
    and, besides the weights on c, diagonal weights on h_{t-1}, which make the Jacobian a 2 x 2 block
    for each unit. Here g sees c too, and W_x is not split into heads.
    """

    bias_init: Initializer = KeepGate()

    def initial_carry(self, params: DiagonalParams, batch_shape: Shape) -> DiagonalLSTMCarry:
        return DiagonalLSTMCarry(self._zeros(params, batch_shape))

    def step_residuals(
        self, params: DiagonalParams, carry: DiagonalLSTMCarry, z: gates.Gates
    ) -> tuple[DiagonalLSTMCarry, Array, DiagonalLSTMResiduals]:
        return diagonal_lstm_residuals(params, carry, z, **self._options())

    def gate_values(
        self, params: DiagonalParams, carry: DiagonalLSTMCarry, z: gates.Gates
    ) -> dict[str, tuple[Array, Activation]]:
        _, _, kept = self.step_residuals(params, carry, z)
        gate, activation = self.recurrent_activation, self.activation
        return {
            "f": (kept.f, gate),
            "o": (kept.o, gate),
            "g": (kept.g, activation),
            "phi_c": (kept.squashed, activation),
        }

    def step_jacobian(self, params: DiagonalParams, carry: DiagonalLSTMCarry, z: gates.Gates) -> DiagonalLSTMCarry:
        slope, gate_slope = self._slopes("jacobian")
        _, _, kept = self.step_residuals(params, carry, z)
        w_f, w_g, _ = params.w_rec.astype(kept.g.dtype)
        through_f = (kept.c_before - kept.g) * gate_slope(kept.f) * w_f
        through_g = (1 - kept.f) * slope(kept.g) * w_g
        return DiagonalLSTMCarry((kept.f + through_f + through_g).astype(carry.c.dtype))

    def step_transpose(
        self, params: DiagonalParams, residuals: DiagonalLSTMResiduals, d_carry: DiagonalLSTMCarry, d_y: Array
    ) -> tuple[DiagonalLSTMCarry, Array, tuple]:
        slope, gate_slope = self._slopes("adjoint")
        kept, (w_f, w_g, w_o) = residuals, params.w_rec.astype(d_y.dtype)
        d_o = d_y * kept.squashed * gate_slope(kept.o)
        d_c = d_carry.c + (d_y * kept.o * slope(kept.squashed) + d_o * w_o).astype(d_carry.c.dtype)
        d = d_c.astype(d_y.dtype)
        d_f = d * (kept.c_before - kept.g) * gate_slope(kept.f)
        d_g = d * (1 - kept.f) * slope(kept.g)
        d_before = d_c * kept.f.astype(d_c.dtype) + (d_f * w_f + d_g * w_g).astype(d_c.dtype)
        return DiagonalLSTMCarry(d_before), jnp.concatenate([d_f, d_g, d_o], -1), ()

    def accumulate(
        self, params: DiagonalParams, residuals: DiagonalLSTMResiduals, d_zs: Array, extras: tuple
    ) -> DiagonalParams:
        return accumulate_diagonal(params, d_zs, [residuals.c_before, residuals.c_before, residuals.c_after])
