# SPDX-License-Identifier: Apache-2.0
"""The recurrence of the LSTM and its hand-written transpose, as plain functions.

They tell from the params which options are on, so the peephole LSTM uses them too.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.activations import activation_function, sigmoid
from seqjax.base import Array, Option, Shape
from seqjax.cells import gates, normalization
from seqjax.dtypes import DTypes, at_least_float32


class LSTMParams(NamedTuple):
    """Params of `LSTM` and `PeepholeLSTM`: H units, D inputs, P outputs (P = H without projection); gates side by side
    in the order i, f, g, o; `None` where an option is off.

    Attributes:
      w_in: `[D, 4*H]`.
      w_rec: `[P, 4*H]`.
      bias: `[4*H]`.
      peephole: `[3, H]`, in the order i, f, o.
      scale, offset: `[4*H]`, with layer normalization.
      w_proj: `[H, P]`, with a projection.
    """

    w_in: Array
    w_rec: Array
    bias: Option
    peephole: Option = None
    scale: Option = None
    offset: Option = None
    w_proj: Option = None


class LSTMCarry(NamedTuple):
    """h `[..., P]`, the output of the step before, and c `[..., H]`, the memory cell."""

    h: Array
    c: Array


class LSTMResiduals(NamedTuple):
    i: Array
    f: Array
    g: Array
    o: Array
    c_before: Array
    h_before: Array
    unprojected: Option  # o ⊗ φ(c_t), with projection
    normalized: Option  # i, f, g, o, with layer normalization


def lstm_carry(params: LSTMParams, batch_shape: Shape, dtypes: DTypes) -> LSTMCarry:
    """A carry of zeros."""
    dtype = dtypes.of_carry(params.w_in)
    h_dim, c_dim = params.w_rec.shape[0], params.w_rec.shape[1] // 4
    return LSTMCarry(jnp.zeros((*batch_shape, h_dim), dtype), jnp.zeros((*batch_shape, c_dim), dtype))


def lstm_pieces(
    params: LSTMParams, activation: Callable[[Array], Array], gate: Callable[[Array], Array]
) -> tuple[int, ...]:
    """How many gates are computed together: all four if a single tanh can serve them, otherwise one at a time."""
    alone = params.peephole is None and params.scale is None
    return (4,) if alone and activation is jnp.tanh and gate is sigmoid else (1, 1, 1, 1)


@jax.custom_jvp
def activate_together(pre: Array) -> gates.Gates:
    """σ for i, f and o and tanh for g, `[..., 4*H]`, by a single tanh: σ(x) = ½ + ½ tanh(x / 2), as in
    `activations.sigmoid`."""
    wide = at_least_float32(pre.dtype)
    half = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], wide), pre.shape[-1] // 4)
    activated = half * jnp.tanh(half * pre.astype(wide)) + (1 - half)
    return tuple(gates.split_gates(activated.astype(pre.dtype), 4))


@activate_together.defjvp
def _slopes_from_outputs(primals: tuple[Array], tangents: tuple[Array]) -> tuple[gates.Gates, gates.Gates]:
    i, f, g, o = activate_together(*primals)
    d_i, d_f, d_g, d_o = gates.split_gates(*tangents, 4)
    return (i, f, g, o), (d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g * g), d_o * o * (1 - o))


def lstm_residuals(
    params: LSTMParams,
    carry: LSTMCarry,
    z: Array | gates.Gates,
    h: Array | None = None,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = sigmoid,
    epsilon: float = normalization.EPSILON,
) -> tuple[LSTMCarry, Array, LSTMResiduals]:
    """One step, with everything its transpose needs; the recurrent product sees `h`, by default the carry's."""
    pieces = gates.in_pieces(z, *lstm_pieces(params, activation, gate))
    dtype = pieces[0].dtype
    pre = gates.add_gates(pieces, gates.recur(carry.h if h is None else h, params.w_rec, dtype))
    candidate = activation
    if len(pre) == 1:
        identity = activation_function("identity")
        pre, candidate, gate = activate_together(*pre), identity, identity
    peep = None if params.peephole is None else params.peephole.astype(dtype)
    c_before = carry.c.astype(dtype)

    activate = functools.partial(normalization.activate, params, epsilon)
    i, kept_i = activate(0, gate, pre[0] if peep is None else pre[0] + peep[0] * c_before)
    f, kept_f = activate(1, gate, pre[1] if peep is None else pre[1] + peep[1] * c_before)
    g, kept_g = activate(2, candidate, pre[2])
    c = f.astype(carry.c.dtype) * carry.c + (i * g).astype(carry.c.dtype)
    c_after = c.astype(dtype)
    o, kept_o = activate(3, gate, pre[3] if peep is None else pre[3] + peep[2] * c_after)
    unprojected = o * activation(c_after)
    y = unprojected if params.w_proj is None else unprojected @ params.w_proj.astype(dtype)
    residuals = LSTMResiduals(
        i, f, g, o, c_before, carry.h.astype(dtype),
        unprojected=None if params.w_proj is None else unprojected,
        normalized=None if params.scale is None else (kept_i, kept_f, kept_g, kept_o),
    )  # fmt: skip
    return LSTMCarry(y.astype(carry.h.dtype), c), y, residuals


def lstm_step(
    params: LSTMParams,
    carry: LSTMCarry,
    z: Array | gates.Gates,
    h: Array | None = None,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    gate: Callable[[Array], Array] = sigmoid,
    epsilon: float = normalization.EPSILON,
) -> tuple[LSTMCarry, Array]:
    """One step from `z = W_x x + b`; see `LSTM` for the recurrence and its source.

    Args:
      params: as returned by `LSTM.init`.
      carry: h `[..., H]`, or `[..., P]` with a projection, and c `[..., H]`.
      z: `[..., 4*H]`, gates in the order i, f, g, o, or the pieces that `LSTM.project` returns.
      h: what the recurrent products see in place of `carry.h`.
      activation, gate: functions of arrays, for g and c, and for i, f and o.
      epsilon: for layer normalization.

    Returns:
      The new carry and y = h `[..., H]`, or `[..., P]`, in the dtype of z.

    Raises:
      TypeError: by JAX, shapes that do not fit; only the cell and the engines say what they expected.

    >>> import seqjax
    >>> cell = seqjax.LSTM(4)
    >>> params, x = cell.init(jax.random.key(0), 3), jnp.ones((2, 3))
    >>> carry, y = lstm_step(params, cell.initial_carry(params, (2,)), x @ params.w_in + params.bias)
    >>> y.shape
    (2, 4)
    """
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

    φ(c_t) is computed again: in a loop bound by memory, that is cheaper than storing it.
    """
    squashed = activation(memory_after(kept))
    d_projected = d_carry.h.astype(d_y.dtype) + d_y
    d_unprojected = d_projected if params.w_proj is None else gates.recur_transpose(d_projected, params.w_proj)
    peep = None if params.peephole is None else params.peephole.astype(d_y.dtype)

    through = functools.partial(normalization.activate_transpose, params, kept.normalized)
    d_o, d_ao = through(3, gate_slope(kept.o), d_unprojected * squashed)
    d_c = d_carry.c + (d_unprojected * kept.o * slope(squashed)).astype(d_carry.c.dtype)
    if peep is not None:
        d_c = d_c + (peep[2] * d_o).astype(d_c.dtype)
    d = d_c.astype(d_y.dtype)
    d_i, d_ai = through(0, gate_slope(kept.i), d * kept.g)
    d_f, d_af = through(1, gate_slope(kept.f), d * kept.c_before)
    d_g, d_ag = through(2, slope(kept.g), d * kept.i)
    d_c = d_c * kept.f.astype(d_c.dtype)
    if peep is not None:
        d_c = d_c + (peep[0] * d_i + peep[1] * d_f).astype(d_c.dtype)
    d_z = gates.side_by_side(d_i, d_f, d_g, d_o)
    d_h = gates.recur_transpose(d_z, params.w_rec)
    d_activated = None if kept.normalized is None else (d_ai, d_af, d_ag, d_ao)
    extra = (d_activated, None if params.w_proj is None else d_projected)
    return LSTMCarry(d_h.astype(d_carry.h.dtype), d_c), d_z, extra


def memory_after(kept: LSTMResiduals) -> Array:
    """c_t, which is recomputed because it is not stored."""
    return kept.f * kept.c_before + kept.i * kept.g


def lstm_accumulate(params: LSTMParams, kept: LSTMResiduals, d_zs: Array, extras: tuple) -> LSTMParams:
    """The params' cotangent from the residuals and cotangents of all steps, with one contraction for each param."""
    dtype = params.w_rec.dtype
    d_activated, d_projected = extras
    d_peephole = d_proj = None
    if params.peephole is not None:
        d_i, d_f, _, d_o = gates.split_gates(d_zs, 4)
        pairs = ((d_i, kept.c_before), (d_f, kept.c_before), (d_o, memory_after(kept)))
        d_peephole = jnp.stack([gates.leading_sum(d * c, dtype) for d, c in pairs])
    d_scale, d_offset = normalization.accumulate(kept.normalized, d_activated, dtype)
    if d_projected is not None:
        d_proj = gates.outer_sum(kept.unprojected, d_projected, params.w_proj)
    return LSTMParams(
        w_in=jnp.zeros_like(params.w_in),
        w_rec=gates.outer_sum(kept.h_before, d_zs, params.w_rec),
        bias=None if params.bias is None else jnp.zeros_like(params.bias),
        peephole=d_peephole,
        scale=d_scale,
        offset=d_offset,
        w_proj=d_proj,
    )
