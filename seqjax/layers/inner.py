# SPDX-License-Identifier: Apache-2.0
"""Layers inside layers: what is checked of them, and what is done to each."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from seqjax.base import Array, Key, Layer, Mask, Params, Resets
from seqjax.require import shown
from seqjax.sequences import check_sequence


def check_layers(owner: str, *layers: Layer) -> None:
    """Rejects anything that is not a layer.

    Raises:
      ValueError: naming what was given.
    """
    for layer in layers:
        if not isinstance(layer, Layer):
            how = "give them one by one" if isinstance(layer, list | tuple) else "a Cell becomes one as RNN(cell)"
            raise ValueError(f"{owner} takes seqjax Layers, got {shown(layer)}; {how}.")


def check_inputs(layer: Layer, xs: Array, mask: Mask, resets: Resets) -> None:
    """`check_sequence`, where integers are ids or features as the layer has it."""
    check_sequence(xs)
    check_sequence(xs, mask, resets, features=len(layer.batch_shape(xs)) < xs.ndim - 1)


def outputs_like(layer: Layer, params: Params, xs: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a layer's outputs, without computing them."""

    def outputs(params: Params, xs: Array) -> Array:
        return layer.apply(params, layer.initial_carry(params, layer.batch_shape(xs)), xs)[1]

    return jax.eval_shape(outputs, params, xs)


def map_layers(fn: Callable[[Layer], Layer], layer: Layer) -> Layer:
    """`layer` with `fn` applied to each of the layers directly inside it."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Layer):
            return fn(value)
        return tuple(map(mapped, value)) if type(value) is tuple else value

    fields: Any = dataclasses.fields(layer)  # type: ignore[arg-type]
    return dataclasses.replace(layer, **{f.name: mapped(getattr(layer, f.name)) for f in fields})  # type: ignore[type-var]


def fold_key(key: Key, index: int) -> Key:
    """The key of one of several layers."""
    return None if key is None else jax.random.fold_in(key, index)
