# SPDX-License-Identifier: Apache-2.0
"""Layer normalization inside a cell, of each gate's linear combination before its activation.

A cell with G gates has `scale [G*H]` and `offset [G*H]`, gates side by side, or `None` if nothing is normalized.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array, Option
from seqjax.cells.gates import leading_sum
from seqjax.dtypes import widen

EPSILON = 1e-5
"""Default for the `epsilon` that normalizations inside cells add to the variance."""


class Normalized(NamedTuple):
    """What the transpose of a layer normalization needs."""

    unit: Array  # [..., H], zero mean and unit variance
    inverse: Array  # [..., 1], 1 / standard deviation, in at least float32, as it may overflow half precision


def normalize(x: Array, scale: Array, offset: Array, epsilon: float = EPSILON) -> tuple[Array, Normalized]:
    """Layer normalization over features; statistics in at least float32.

    y = scale ⊗ (x - mean(x)) / sqrt(var(x) + ε) + offset. Source: Ba, Kiros and Hinton 2016.
    """
    wide = widen(x)
    centred = wide - wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    unit = (centred * inverse).astype(x.dtype)
    return scale.astype(x.dtype) * unit + offset.astype(x.dtype), Normalized(unit, inverse)


def normalize_transpose(scale: Array, kept: Normalized, d_y: Array) -> Array:
    """The cotangent of `normalize`'s input."""
    d_unit = scale.astype(d_y.dtype) * d_y
    wide = widen(d_unit)
    unit = kept.unit.astype(wide.dtype)
    centred = wide - wide.mean(-1, keepdims=True) - unit * (wide * unit).mean(-1, keepdims=True)
    return (centred * kept.inverse).astype(d_y.dtype)


def activate(
    params: Any, epsilon: float, index: int, function: Callable[[Array], Array], x: Array
) -> tuple[Array, Normalized | None]:
    """`function` of a gate's linear combination `x [..., H]`, which is normalized first if `params` have a scale."""
    if params.scale is None:
        return function(x), None
    y, kept = normalize(x, _of_gate(params.scale, index, x), _of_gate(params.offset, index, x), epsilon)
    return function(y), kept


def activate_transpose(
    params: Any, kept: Sequence[Normalized] | None, index: int, slope: Array, d: Array
) -> tuple[Array, Array]:
    """Cotangents of a gate's linear combination and of its function's argument, given that of its output."""
    d_activated = d * slope
    if kept is None:
        return d_activated, d_activated
    return normalize_transpose(_of_gate(params.scale, index, d), kept[index], d_activated), d_activated


def accumulate(kept: Sequence[Normalized] | None, d_activated: Any, dtype: Any) -> tuple[Option, Option]:
    """Cotangents of scale and offset, given those of each gate's argument at all steps; `None` if not normalized."""
    if kept is None:
        return None, None
    d_scale = [leading_sum(d * normalized.unit, dtype) for d, normalized in zip(d_activated, kept, strict=True)]
    return jnp.concatenate(d_scale), jnp.concatenate([leading_sum(d, dtype) for d in d_activated])


def _of_gate(parameter: Array, index: int, like: Array) -> Array:
    """One gate's `[H]` out of the `[G*H]` of all gates."""
    hidden = like.shape[-1]
    return parameter[index * hidden : (index + 1) * hidden]
