# SPDX-License-Identifier: Apache-2.0
"""The LSTM, with the recurrence and its hand-written transpose as plain functions.

The functions read from the params which options are on, so that the peephole LSTM uses them too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells import gates
from seqjax.cells.activations import Activation, activation_function, slope_from_output
from seqjax.dtypes import DTypes
from seqjax.initializers import ForgetGate, Initializer, resolve


class LSTMParams(NamedTuple):
    """H units, D inputs, P outputs (P = H without projection); gates in the order i, f, g, o."""

    w_in: Array  # [D, 4*H]
    w_rec: Array  # [P, 4*H]
    bias: Option  # [4*H]
    peephole: Option = None  # [3, H], i, f, o
    scale: Option = None  # [4*H]
    offset: Option = None  # [4*H]
    w_proj: Option = None  # [H, P]


class LSTMCarry(NamedTuple):
    h: Array  # [..., P]
    c: Array  # [..., H]


class LSTMResiduals(NamedTuple):
    i: Array
    f: Array
    g: Array
    o: Array
    c_before: Array
    h_before: Array
    output: Option  # o ⊗ φ(c_t), with projection
    normalized: Option  # i, f, g, o, with layer normalization


def lstm_carry(params: LSTMParams, batch_shape: Shape, dtypes: DTypes) -> LSTMCarry:
    """Zeros."""
    dtype = dtypes.of_carry(params.w_in)
    h_dim, c_dim = params.w_rec.shape[0], params.w_rec.shape[1] // 4
    return LSTMCarry(jnp.zeros((*batch_shape, h_dim), dtype), jnp.zeros((*batch_shape, c_dim), dtype))


def lstm_residuals(
    params: LSTMParams,
    carry: LSTMCarry,
    z: gates.Gates,
    h: Array | None = None,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = jax.nn.sigmoid,
    epsilon: float = gates.EPSILON,
) -> tuple[LSTMCarry, Array, LSTMResiduals]:
    """One step and all that its transpose needs; the recurrent product sees `h`, by default the carry's."""
    dtype = z[0].dtype
    pre = gates.add_gates(z, gates.recur(carry.h if h is None else h, params.w_rec, dtype))
    peep = None if params.peephole is None else params.peephole.astype(dtype)
    c_before = carry.c.astype(dtype)

    def squash(k: int, function: Callable[[Array], Array], x: Array) -> tuple[Array, gates.Normalized | None]:
        if params.scale is None:
            return function(x), None
        scale, offset = (gates.split_gates(p, 4)[k] for p in (params.scale, params.offset))
        y, kept = gates.normalize(x, scale, offset, epsilon)
        return function(y), kept

    i, kept_i = squash(0, gate, pre[0] if peep is None else pre[0] + peep[0] * c_before)
    f, kept_f = squash(1, gate, pre[1] if peep is None else pre[1] + peep[1] * c_before)
    g, kept_g = squash(2, activation, pre[2])
    c = f.astype(carry.c.dtype) * carry.c + (i * g).astype(carry.c.dtype)
    c_after = c.astype(dtype)
    o, kept_o = squash(3, gate, pre[3] if peep is None else pre[3] + peep[2] * c_after)
    output = o * activation(c_after)
    y = output if params.w_proj is None else output @ params.w_proj.astype(dtype)
    residuals = LSTMResiduals(
        i, f, g, o, c_before, carry.h.astype(dtype),
        output=None if params.w_proj is None else output,
        normalized=None if params.scale is None else (kept_i, kept_f, kept_g, kept_o),
    )  # fmt: skip
    return LSTMCarry(y.astype(carry.h.dtype), c), y, residuals


def lstm_step(
    params: LSTMParams,
    carry: LSTMCarry,
    z: gates.Gates,
    h: Array | None = None,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = jax.nn.sigmoid,
    epsilon: float = gates.EPSILON,
) -> tuple[LSTMCarry, Array]:
    """One step from `z = W_x x + b`; see `LSTM` for the recurrence."""
    carry, y, _ = lstm_residuals(params, carry, z, h, activation=activation, gate=gate, epsilon=epsilon)
    return carry, y


def lstm_transpose(
    params: LSTMParams,
    kept: LSTMResiduals,
    d_carry: LSTMCarry,
    d_y: Array,
    *,
    activation: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    gate_slope: Callable[[Array], Array],
) -> tuple[LSTMCarry, Array, tuple]:
    """The transpose of one step: `(d_carry, d_z, (d_activated, d_projected))`.

    φ(c_t) is computed again: in a loop that waits for memory that is cheaper than to store it.
    """
    squashed = activation(_c_after(kept))
    d_projected = d_carry.h.astype(d_y.dtype) + d_y
    d_output = d_projected if params.w_proj is None else gates.recur_transpose(d_projected, params.w_proj)
    peep = None if params.peephole is None else params.peephole.astype(d_y.dtype)

    def through(k: int, slope_of: Array, d: Array) -> tuple[Array, Array]:
        d_activated = d * slope_of
        if kept.normalized is None:
            return d_activated, d_activated
        scale = gates.split_gates(params.scale, 4)[k]
        return gates.normalize_transpose(scale, kept.normalized[k], d_activated), d_activated

    d_o, d_ao = through(3, gate_slope(kept.o), d_output * squashed)
    d_c = d_carry.c + (d_output * kept.o * slope(squashed)).astype(d_carry.c.dtype)
    if peep is not None:
        d_c = d_c + (peep[2] * d_o).astype(d_c.dtype)
    d = d_c.astype(d_y.dtype)
    d_i, d_ai = through(0, gate_slope(kept.i), d * kept.g)
    d_f, d_af = through(1, gate_slope(kept.f), d * kept.c_before)
    d_g, d_ag = through(2, slope(kept.g), d * kept.i)
    d_c = d_c * kept.f.astype(d_c.dtype)
    if peep is not None:
        d_c = d_c + (peep[0] * d_i + peep[1] * d_f).astype(d_c.dtype)
    d_z = jnp.concatenate([d_i, d_f, d_g, d_o], axis=-1)
    d_h = gates.recur_transpose(d_z, params.w_rec)
    d_activated = None if kept.normalized is None else (d_ai, d_af, d_ag, d_ao)
    extra = (d_activated, None if params.w_proj is None else d_projected)
    return LSTMCarry(d_h.astype(d_carry.h.dtype), d_c), d_z, extra


def _c_after(kept: LSTMResiduals) -> Array:
    return kept.f * kept.c_before + kept.i * kept.g


def lstm_accumulate(params: LSTMParams, kept: LSTMResiduals, d_zs: Array, extras: tuple) -> LSTMParams:
    """The params' cotangent from the residuals and cotangents of all steps, one contraction each."""
    dtype = params.w_rec.dtype
    d_activated, d_projected = extras
    d_peephole = d_scale = d_offset = d_proj = None
    if params.peephole is not None:
        d_i, d_f, _, d_o = gates.split_gates(d_zs, 4)
        pairs = ((d_i, kept.c_before), (d_f, kept.c_before), (d_o, _c_after(kept)))
        d_peephole = jnp.stack([gates.leading_sum(d * c, dtype) for d, c in pairs])
    if d_activated is not None:
        units = [n.unit for n in kept.normalized]
        d_scale = jnp.concatenate([gates.leading_sum(d * u, dtype) for d, u in zip(d_activated, units, strict=True)])
        d_offset = jnp.concatenate([gates.leading_sum(d, dtype) for d in d_activated])
    if d_projected is not None:
        d_proj = gates.outer_sum(kept.output, d_projected, params.w_proj)
    return LSTMParams(
        w_in=jnp.zeros_like(params.w_in),
        w_rec=gates.outer_sum(kept.h_before, d_zs, params.w_rec),
        bias=None if params.bias is None else jnp.zeros_like(params.bias),
        peephole=d_peephole,
        scale=d_scale,
        offset=d_offset,
        w_proj=d_proj,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class LSTMFamily(Cell):
    """The options of `LSTM` and `PeepholeLSTM`, bound to the functions above."""

    peepholes: ClassVar[bool]

    hidden_dim: int
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    use_bias: bool = True
    normalize: str | None = None
    epsilon: float = gates.EPSILON
    proj_dim: int | None = None
    w_in_init: Initializer = "glorot_uniform"
    w_rec_init: Initializer = "orthogonal"
    bias_init: Initializer = ForgetGate()
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        name = type(self).__name__
        gates.positive(name, hidden_dim=self.hidden_dim, proj_dim=self.proj_dim)
        gates.one_of(name, normalize=(self.normalize, (None, "layer")))
        gates.positive_number(name, epsilon=self.epsilon)
        self._options()
        for initializer in (self.w_in_init, self.w_rec_init, self.bias_init):
            resolve(initializer)

    def _options(self) -> dict[str, Any]:
        return {
            "activation": activation_function(self.activation),
            "gate": activation_function(self.recurrent_activation),
            "epsilon": self.epsilon,
        }

    @property
    def capabilities(self) -> frozenset[str]:
        known = gates.has_slopes(self.activation, self.recurrent_activation)
        return frozenset({"adjoint"} if known else ())

    def init(self, key: Array, in_dim: int) -> LSTMParams:
        gates.positive(type(self).__name__, in_dim=in_dim)
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
        return gates.project_gates(self, params, x, 4)

    def step(self, params: LSTMParams, carry: LSTMCarry, z: gates.Gates, key: Key = None) -> tuple[LSTMCarry, Array]:
        return lstm_step(params, carry, z, **self._options())

    def step_seen(self, params: LSTMParams, carry: LSTMCarry, h: Array, z: gates.Gates) -> tuple[LSTMCarry, Array]:
        return lstm_step(params, carry, z, h, **self._options())

    def step_residuals(
        self, params: LSTMParams, carry: LSTMCarry, z: gates.Gates
    ) -> tuple[LSTMCarry, Array, LSTMResiduals]:
        return lstm_residuals(params, carry, z, **self._options())

    def step_transpose(
        self, params: LSTMParams, residuals: LSTMResiduals, d_carry: LSTMCarry, d_y: Array
    ) -> tuple[LSTMCarry, Array, tuple]:
        slope, gate_slope = slope_from_output(self.activation), slope_from_output(self.recurrent_activation)
        if slope is None or gate_slope is None:
            raise self._not_offered("adjoint")
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
    before its activation. With `proj_dim` P, y_t = h_t = W_p (o ⊗ φ(c_t)) has P features.

    Args:
      hidden_dim: H.
      activation: φ.
      recurrent_activation: σ.
      use_bias: whether b exists.
      normalize: `None` or `"layer"`.
      epsilon: added to the variance by the normalization.
      proj_dim: P, or `None` for no projection.
      w_in_init, w_rec_init, bias_init: initializers; the forget gate's bias starts at 1.
      dtypes: params, compute and carry.

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
