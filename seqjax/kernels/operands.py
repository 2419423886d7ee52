# SPDX-License-Identifier: Apache-2.0
"""What the kernels of a recurrence take and return, and how arrays are made to fit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.kernels.equations import States

MASKED, RESET = 1, 2
"""Bits of a step's flags."""


class Given(NamedTuple):
    """What a recurrence starts from."""

    w_rec: Array  # [H, G*H]
    bias_rec: Array | None  # [G*H], added to the recurrent products
    states: States  # [B, H] each, before the first step; h comes first
    initial: States | None  # what resets go back to, if there are any
    flags: Array | None  # [T, B] int8, bits `MASKED` and `RESET`


class Left(NamedTuple):
    """What the forward kernel returns."""

    sequences: States  # [T, B, H] each, the states after every step: h and, if its kernel's reverse reads them, others
    kept: Any  # [T, B, K, H], or another form of it that a kernel prefers; `None` if there is nothing
    last: States  # [B, H] each


class Cotangents(NamedTuple):
    d_z: Array  # [T, B, G*H]
    d_states: States
    d_initial: States | None


def pick(flag: Array, on_true: Sequence[Array], on_false: Sequence[Array]) -> States:
    return tuple(jnp.where(flag, a, b) for a, b in zip(on_true, on_false, strict=True))


def pad(array: Array, axis: int, size: int) -> Array:
    """`array`, padded with zeros at the end of `axis` to `size`.

    >>> pad(jnp.ones(2), 0, 3).tolist()
    [1.0, 1.0, 0.0]
    """
    missing = size - array.shape[axis]
    widths = [(0, missing if i == axis % array.ndim else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths) if missing else array


def varying_as(arrays: Any, shapes: Any) -> Any:
    """`shapes` of results which, inside `jax.shard_map`, vary over the same devices as the operand that varies most."""
    most = max((jax.typeof(a).manual_axis_type for a in jax.tree.leaves(arrays)), key=lambda kind: len(kind.varying))
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, manual_axis_type=most), shapes)
