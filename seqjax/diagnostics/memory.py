# SPDX-License-Identifier: Apache-2.0
"""Memory horizon: how much the last output still depends on inputs from long ago."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Key, Layer, Mask, Params, Resets
from seqjax.layers.batch_major import time_major
from seqjax.layers.inner import check_inputs, check_layers
from seqjax.norms import row_norms
from seqjax.sequences import check_sequence, last_step


def memory_profile(
    model: Layer,
    params: Params,
    xs: Array,
    *,
    carry: Carry | None = None,
    mask: Mask = None,
    resets: Resets = None,
    projections: int | None = None,
    projection_key: Key = None,
) -> Array:
    """‖∂y_T/∂x_t‖ (Frobenius) against the lag T - t, in steps of the input.

    By default it is exact, with one reverse pass for each of the F outputs. With `projections=K` it is
    estimated from K passes with v ~ N(0, I): E‖vᵀJ‖² = ‖J‖², with a relative standard deviation of the
    norm of at most 1/sqrt(2K). It always runs in evaluation mode: no dropout, and population statistics,
    so that sequences are independent.

    Args:
      model: any layer, under any engines, strided or not.
      params: its params.
      xs: `[T, ..., D]`; for a `BatchMajor` model `[B, T, ..., D]`, with mask and resets to match.
      carry: the carry to start from; by default the initial one.
      mask, resets: as for `Layer.apply`. y_T is the last unmasked output of each sequence, and lags
        count from its last unmasked input.
      projections: K, or `None` for the exact norm.
      projection_key: draws the projections; it is not a `key` of `Layer.apply`, which would mean training.

    Returns:
      `[T, ...]` for every sequence, where axis 0 is the lag, starting at 0; NaN at lags that reach before its
      first step, infinity where the derivative has left its dtype's range.

    Raises:
      ValueError: a `model` that is not a layer; integer inputs, which have no derivative; projections without a
        projection_key, or fewer than one.

    >>> import seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 1)))
    >>> profile = memory_profile(model, params, jnp.ones((50, 2, 1)))
    >>> profile.shape, bool((profile[0] > profile[-1]).all())
    ((50, 2), True)

    Source: the sensitivity of Hochreiter et al. 2001, section 3; Hutchinson 1990 for the projections.
    """
    check_layers("memory_profile", model)
    check_sequence(xs)
    model, xs, mask, resets = time_major(model, xs, mask, resets)
    check_inputs(model, xs, mask, resets)
    xs = jnp.asarray(xs)
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(
            f"xs are {xs.dtype}, and outputs have no derivative in ids; look at the layers after Embed: "
            "Serial(*model.layers[1:]) on its outputs."
        )
    require.positive_if_given("memory_profile", projections=projections)
    start = model.initial_carry(params, model.batch_shape(xs)) if carry is None else carry
    out_mask, _ = model.time_map(mask, resets, start)

    def last_output(xs: Array) -> Array:
        _, ys = model.apply(params, start, xs, mask=mask, resets=resets)
        if out_mask is None:
            return ys[-1]
        return jnp.take_along_axis(ys, last_step(out_mask)[None, ..., None], axis=0)[0]

    y, pull = jax.vjp(last_output, xs)
    if projections is None:
        directions, scale = jnp.eye(y.shape[-1], dtype=y.dtype), 1
        norms = jax.lax.map(lambda unit: row_norms(pull(jnp.broadcast_to(unit, y.shape))[0]), directions)
    elif projection_key is None:
        raise ValueError("memory_profile: random projections need a key; give projection_key=jax.random.key(0).")
    else:
        keys, scale = jax.random.split(projection_key, projections), projections
        norms = jax.lax.map(lambda k: row_norms(pull(jax.random.normal(k, y.shape, y.dtype))[0]), keys)
    return _by_lag(row_norms(jnp.moveaxis(norms, 0, -1)) / scale**0.5, mask)


def _by_lag(norms: Array, mask: Mask) -> Array:
    """Norms `[T, ...]` over steps, as `[T, ...]` over lags from the last unmasked step."""
    norms = jnp.where(jnp.isfinite(norms), norms, jnp.inf)  # an overflow on the way may end as NaN
    if mask is None:
        return jnp.flip(norms, 0)
    lags = jnp.arange(len(norms)).reshape(-1, *[1] * (norms.ndim - 1))
    step = jnp.where(mask.any(0), last_step(mask), -1) - lags
    return jnp.where(step >= 0, jnp.take_along_axis(norms, jnp.maximum(step, 0), axis=0), jnp.nan)


class Horizon(NamedTuple):
    """How far back a memory reaches.

    Attributes:
      lag: `[...]` int32: from this lag on, the profile stays at or below the fraction of its largest value.
      reached: `[...]` bool: whether it falls that far at all within the sequence; if not, `lag` is the sequence's
        length.
    """

    lag: Array
    reached: Array


def memory_horizon(profile: Array, fraction: float = 0.01) -> Horizon:
    """The lag from which a profile stays at or below a fraction of its largest value.

    Args:
      profile: `[T, ...]` over lags, as returned by `memory_profile`; NaN where there is no such lag.
      fraction: of the largest value, between 0 and 1.

    Returns:
      The lag, and whether the profile falls that far at all.

    Raises:
      ValueError: a fraction out of range.

    >>> memory_horizon(0.5 ** jnp.arange(20.0))  # 2⁻⁶ > 0.01 > 2⁻⁷
    Horizon(lag=Array(7, dtype=int32), reached=Array(True, dtype=bool))
    >>> memory_horizon(0.9 ** jnp.arange(20.0))
    Horizon(lag=Array(20, dtype=int32), reached=Array(False, dtype=bool))
    """
    if not 0 < fraction < 1:
        raise ValueError(f"memory_horizon: fraction must be between 0 and 1, got {fraction!r}.")
    lags = jnp.arange(len(profile), dtype=jnp.int32).reshape(-1, *[1] * (profile.ndim - 1))
    above = (profile > fraction * jnp.nanmax(profile, axis=0)) | jnp.isposinf(profile)
    lag = jnp.max(jnp.where(above, lags + 1, jnp.zeros_like(lags)), axis=0)
    return Horizon(lag, lag < jnp.sum(~jnp.isnan(profile), axis=0, dtype=jnp.int32))
