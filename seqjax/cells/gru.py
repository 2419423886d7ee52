# SPDX-License-Identifier: Apache-2.0
"""The gated recurrent unit, with its reset before or after the recurrent product."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.activations import Activation, activation_function, gate_function, has_slopes, sigmoid, slopes
from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells import gates, normalization
from seqjax.dtypes import DTypes
from seqjax.initializers import Initializer


class GRUParams(NamedTuple):
    """Params of `GRU`: H units, D inputs; gates side by side in the order z, r, g; `None` where an option is off.

    Attributes:
      w_in: `[D, 3*H]`.
      w_rec: `[H, 3*H]`.
      bias: `[3*H]`.
      bias_rec: `[3*H]`, with `reset="after"`.
      scale, offset: `[3*H]`, with layer normalization.
    """

    w_in: Array
    w_rec: Array
    bias: Option
    bias_rec: Option = None
    scale: Option = None
    offset: Option = None


class GRUCarry(NamedTuple):
    """h `[..., H]`, the output of the step before."""

    h: Array


class GRUResiduals(NamedTuple):
    z: Array
    r: Array
    g: Array
    h_before: Array
    recurrent: Option  # W_hg h + b_rec, with reset="after"
    normalized: Option  # z, r, g, with layer normalization


def gru_residuals(
    params: GRUParams,
    carry: GRUCarry,
    z: Array | gates.Gates,
    h: Array | None = None,
    *,
    reset: str = "before",
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = sigmoid,
    epsilon: float = normalization.EPSILON,
) -> tuple[GRUCarry, Array, GRUResiduals]:
    """One step, with everything its transpose needs; the recurrent products see `h`, by default the carry's."""
    hidden = params.w_rec.shape[0]
    z_x, r_x, g_x = gates.in_pieces(z, 1, 1, 1)
    dtype = g_x.dtype
    h_before = carry.h.astype(dtype)
    seen = h_before if h is None else h.astype(dtype)

    if reset == "after":
        product = gates.recur(seen, params.w_rec, dtype)
        if params.bias_rec is not None:
            product = product + params.bias_rec.astype(dtype)
        z_h, r_h, recurrent = gates.split_gates(product, 3)
    else:
        z_h, r_h = gates.split_gates(gates.recur(seen, params.w_rec[:, : 2 * hidden], dtype), 2)
        recurrent = None
    activate = functools.partial(normalization.activate, params, epsilon)
    keep, kept_z = activate(0, gate, z_x + z_h)
    r, kept_r = activate(1, gate, r_x + r_h)
    g_h = gates.recur(r * seen, params.w_rec[:, 2 * hidden :], dtype) if recurrent is None else r * recurrent
    g, kept_g = activate(2, activation, g_x + g_h)
    y = keep * h_before + (1 - keep) * g
    normalized = None if params.scale is None else (kept_z, kept_r, kept_g)
    return GRUCarry(y.astype(carry.h.dtype)), y, GRUResiduals(keep, r, g, h_before, recurrent, normalized)


def gru_step(
    params: GRUParams,
    carry: GRUCarry,
    z: Array | gates.Gates,
    h: Array | None = None,
    *,
    reset: str = "before",
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = sigmoid,
    epsilon: float = normalization.EPSILON,
) -> tuple[GRUCarry, Array]:
    """One step from `z = W_x x + b`; see `GRU` for the recurrence and its sources.

    Args:
      params: as returned by `GRU.init`.
      carry: h `[..., H]`.
      z: `[..., 3*H]`, gates in the order z, r, g, or the pieces that `GRU.project` returns.
      h: what the recurrent products see in place of `carry.h`.
      reset: where r acts, as in `GRU`.
      activation, gate: functions of arrays, for g, and for z and r.
      epsilon: for layer normalization.

    Returns:
      The new carry and y = h `[..., H]`, in the dtype of z.

    Raises:
      ValueError: an unknown `reset`.
      TypeError: by JAX, shapes that do not fit; only the cell and the engines say what they expected.

    >>> cell = GRU(4)
    >>> params, x = cell.init(jax.random.key(0), 3), jnp.ones((2, 3))
    >>> carry, y = gru_step(params, cell.initial_carry(params, (2,)), x @ params.w_in + params.bias)
    >>> y.shape
    (2, 4)
    """
    require.one_of("gru_step", reset=(reset, ("before", "after")))
    carry, y, _ = gru_residuals(params, carry, z, h, reset=reset, activation=activation, gate=gate, epsilon=epsilon)
    return carry, y


def gru_transpose(
    params: GRUParams,
    kept: GRUResiduals,
    d_carry: GRUCarry,
    d_y: Array,
    *,
    slope: Callable[[Array], Array],
    gate_slope: Callable[[Array], Array],
) -> tuple[GRUCarry, tuple[Array, Array], tuple | None]:
    """The transpose of one step: `(d_carry, (d_product, d_g), d_activated)`.

    `d_product` is the cotangent of the recurrent product, where reset is before of that for z and r alone. Its first
    two gates are those of the linear combinations of z and r, too; `d_g` is that of g's.
    """
    hidden = params.w_rec.shape[0]
    w_gates, w_g = params.w_rec[:, : 2 * hidden], params.w_rec[:, 2 * hidden :]
    d_h = d_carry.h.astype(d_y.dtype) + d_y

    through = functools.partial(normalization.activate_transpose, params, kept.normalized)
    d_zgate, d_az = through(0, gate_slope(kept.z), d_h * (kept.h_before - kept.g))
    d_g, d_ag = through(2, slope(kept.g), d_h * (1 - kept.z))
    if kept.recurrent is None:
        d_gated = gates.recur_transpose(d_g, w_g)
        d_r, d_ar = through(1, gate_slope(kept.r), d_gated * kept.h_before)
        d_product = jnp.concatenate([d_zgate, d_r], -1)
        d_before = d_h * kept.z + d_gated * kept.r + gates.recur_transpose(d_product, w_gates)
    else:
        d_r, d_ar = through(1, gate_slope(kept.r), d_g * kept.recurrent)
        d_product = jnp.concatenate([d_zgate, d_r, d_g * kept.r], -1)
        d_before = d_h * kept.z + gates.recur_transpose(d_product, params.w_rec)
    d_activated = None if kept.normalized is None else (d_az, d_ar, d_ag)
    return GRUCarry(d_before.astype(d_carry.h.dtype)), (d_product, d_g), d_activated


def gru_accumulate(
    params: GRUParams, kept: GRUResiduals, d_zs: tuple[Array, Array], d_activated: tuple | None
) -> GRUParams:
    """The params' cotangent from the residuals and cotangents of all steps, with one contraction for each param."""
    dtype = params.w_rec.dtype
    d_product, d_g = d_zs
    d_bias_rec = None
    if kept.recurrent is None:
        products = (kept.h_before, d_product), (kept.r * kept.h_before, d_g)
        d_rec = jnp.concatenate([gates.outer_sum(left, right, params.w_rec) for left, right in products], axis=1)
    else:
        d_rec = gates.outer_sum(kept.h_before, d_product, params.w_rec)
        d_bias_rec = None if params.bias_rec is None else gates.leading_sum(d_product, dtype)
    d_scale, d_offset = normalization.accumulate(kept.normalized, d_activated, dtype)
    return GRUParams(
        w_in=jnp.zeros_like(params.w_in),
        w_rec=d_rec,
        bias=None if params.bias is None else jnp.zeros_like(params.bias),
        bias_rec=d_bias_rec,
        scale=d_scale,
        offset=d_offset,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class GRU(Cell):
    """Gated recurrent unit.

    z, r = σ(W_x· x_t + W_h· h_{t-1} + b·),  y_t = h_t = z ⊗ h_{t-1} + (1 - z) ⊗ g, with
    `reset="before"`: g = φ(W_xg x_t + W_hg (r ⊗ h_{t-1}) + b_g), or
    `reset="after"`: g = φ(W_xg x_t + b_g + r ⊗ (W_hg h_{t-1} + b_rec,g)), where z and r also have
    a second bias b_rec; this is the form used by cuDNN and PyTorch, and Keras' default.

    With `normalize="layer"` each gate's linear combination is normalized over its H features
    before its activation.

    Args:
      hidden_dim: H.
      reset: whether r acts `"before"` or `"after"` the recurrent product.
      activation: φ.
      recurrent_activation: σ.
      use_bias: whether the biases exist.
      normalize: `None` or `"layer"`.
      epsilon: added to the variance in the normalization.
      w_in_init, w_rec_init, bias_init: initializers.
      dtypes: params, compute and carry.

    Its params (`GRUParams`) have the gates side by side in the order z, r, g: w_in `[D, 3*H]`, w_rec `[H, 3*H]`,
    bias and bias_rec `[3*H]`.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax
    >>> params = GRU(4, reset="after").init(jax.random.key(0), 3)
    >>> params.w_in.shape, params.bias_rec.shape
    ((3, 12), (12,))

    Source: Cho et al. 2014, equations 5 to 8 (their z is our z). cuDNN for `reset="after"`.
    """

    hidden_dim: int
    reset: str = "before"
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    use_bias: bool = True
    normalize: str | None = None
    epsilon: float = normalization.EPSILON
    w_in_init: Initializer = "glorot_uniform"
    w_rec_init: Initializer = "orthogonal"
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("GRU", hidden_dim=self.hidden_dim)
        require.one_of("GRU", reset=(self.reset, ("before", "after")), normalize=(self.normalize, (None, "layer")))
        require.positive_number("GRU", epsilon=self.epsilon)
        require.dtypes("GRU", self.dtypes)
        require.boolean("GRU", use_bias=self.use_bias)
        require.activations("GRU", activation=self.activation, recurrent_activation=self.recurrent_activation)
        require.initializers("GRU", w_in_init=self.w_in_init, w_rec_init=self.w_rec_init, bias_init=self.bias_init)

    def _options(self) -> dict:
        return {
            "reset": self.reset,
            "activation": activation_function(self.activation),
            "gate": gate_function(self.recurrent_activation),
            "epsilon": self.epsilon,
        }

    @property
    def capabilities(self) -> frozenset[str]:
        known = has_slopes(self.activation, self.recurrent_activation)
        return frozenset({"adjoint", "seen"} if known else {"seen"})

    def init(self, key: Array, in_dim: int) -> GRUParams:
        require.positive("GRU", in_dim=in_dim)
        in_key, rec_key, bias_key = jax.random.split(key, 3)
        hidden, dtype = self.hidden_dim, self.dtypes.params
        normalized = self.normalize is not None
        return GRUParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 3, self.dtypes),
            w_rec=gates.init_gates(rec_key, self.w_rec_init, hidden, hidden, 3, self.dtypes),
            bias=gates.init_bias(bias_key, self.bias_init, hidden, 3, self.dtypes) if self.use_bias else None,
            bias_rec=jnp.zeros(3 * hidden, dtype) if self.use_bias and self.reset == "after" else None,
            scale=jnp.ones(3 * hidden, dtype) if normalized else None,
            offset=jnp.zeros(3 * hidden, dtype) if normalized else None,
        )

    def initial_carry(self, params: GRUParams, batch_shape: Shape) -> GRUCarry:
        return GRUCarry(jnp.zeros((*batch_shape, params.w_rec.shape[0]), self.dtypes.of_carry(params.w_in)))

    def project(self, params: GRUParams, x: Array) -> gates.Gates:
        return gates.project_gates(self, params, x, 1, 1, 1)

    def step(self, params: GRUParams, carry: GRUCarry, z: gates.Gates, key: Key = None) -> tuple[GRUCarry, Array]:
        return gru_step(params, carry, z, **self._options())

    def gate_values(self, params: GRUParams, carry: GRUCarry, z: gates.Gates) -> dict[str, tuple[Array, Activation]]:
        _, _, kept = self.step_residuals(params, carry, z)
        gate = self.recurrent_activation
        return {"z": (kept.z, gate), "r": (kept.r, gate), "g": (kept.g, self.activation)}

    def step_seen(self, params: GRUParams, carry: GRUCarry, h: Array, z: gates.Gates) -> tuple[GRUCarry, Array]:
        return gru_step(params, carry, z, h, **self._options())

    def step_residuals(
        self, params: GRUParams, carry: GRUCarry, z: gates.Gates
    ) -> tuple[GRUCarry, Array, GRUResiduals]:
        return gru_residuals(params, carry, z, **self._options())

    def step_transpose(
        self, params: GRUParams, residuals: GRUResiduals, d_carry: GRUCarry, d_y: Array
    ) -> tuple[GRUCarry, tuple[Array, Array], tuple | None]:
        slope, gate_slope = slopes(self, "adjoint", self.activation, self.recurrent_activation)
        return gru_transpose(params, residuals, d_carry, d_y, slope=slope, gate_slope=gate_slope)

    def project_transpose(self, params: GRUParams, x: Array, d_z: tuple[Array, Array]) -> tuple[GRUParams, Array]:
        d_product, d_g = d_z
        return gates.project_transpose(params, x, jnp.concatenate([d_product[..., : 2 * self.hidden_dim], d_g], -1))

    def accumulate(
        self, params: GRUParams, residuals: GRUResiduals, d_zs: tuple[Array, Array], extras: tuple | None
    ) -> GRUParams:
        return gru_accumulate(params, residuals, d_zs, extras)
