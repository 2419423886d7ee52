# SPDX-License-Identifier: Apache-2.0
"""Layers made of layers: one carry, one key, one mask and one set of resets thread through all of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Key, Layer, Mask, Option, Params, Resets, Shape
from seqjax.plan import Plan
from seqjax.require import shown
from seqjax.sequences import check_sequence, hide, step_shape


def check_layers(owner: str, *layers: Layer) -> None:
    """Rejects anything that is not a layer.

    Raises:
      ValueError: naming what was given.
    """
    for layer in layers:
        if not isinstance(layer, Layer):
            how = "give them one by one" if isinstance(layer, list | tuple) else "a Cell becomes one as RNN(cell)"
            raise ValueError(f"{owner} takes seqjax Layers, got {shown(layer)}; {how}.")


def check_inner(owner: str, *layers: Layer) -> None:
    """Refuses what cannot be inside another layer: what is not a layer, or takes batches `[B, T, ..., D]`.

    Raises:
      ValueError: naming what was given.
    """
    check_layers(owner, *layers)
    for layer in layers:
        if isinstance(layer, BatchMajor):
            raise ValueError(f"{owner} takes time-major layers, got {layer!r}; put BatchMajor around the whole model.")


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


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class Serial(Layer):
    """Layers applied one after the other. Params and carry are tuples with one entry per layer.

    Each layer's `time_map` maps the mask and resets for the next layer.

    Args:
      *layers: at least one, from first to last; also as one tuple, `layers=(...)`.

    Raises:
      ValueError: no layers, an argument that is not a layer, or a `BatchMajor`, which goes around the whole model.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = Serial(seqjax.RNN(seqjax.GRU(20)), seqjax.Dense(10))
    >>> model
    Serial(RNN(GRU(20)), Dense(10))
    >>> params = model.init(jax.random.key(0), jax.ShapeDtypeStruct((50, 32, 1), jnp.float32))
    >>> carry, ys = model.apply(params, model.initial_carry(params, (32,)), jnp.ones((50, 32, 1)))
    >>> ys.shape
    (50, 32, 10)
    """

    layers: tuple[Layer, ...]

    def __init__(self, *args: Layer, layers: tuple[Layer, ...] = ()):
        layers = (*args, *layers)
        if not layers:
            raise ValueError("Serial needs at least one layer.")
        check_inner("Serial", *layers)
        object.__setattr__(self, "layers", layers)

    def __repr__(self) -> str:
        return f"Serial({', '.join(map(repr, self.layers))})"

    @property
    def streams(self) -> bool:
        return all(layer.streams for layer in self.layers)

    @property
    def stride(self) -> int:
        return math.prod(layer.stride for layer in self.layers)

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return self.layers[0].batch_shape(xs)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        params = []
        for i, layer in enumerate(self.layers):
            params.append(layer.init(jax.random.fold_in(key, i), xs))
            if i + 1 < len(self.layers):
                xs = outputs_like(layer, params[-1], xs)
        return tuple(params)

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        self.check(params=params)
        return tuple(layer.initial_carry(p, batch_shape) for layer, p in zip(self.layers, params, strict=True))

    def apply(
        self,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        self.check(params=params, carry=carry)
        carries = []
        for i, (layer, p, c) in enumerate(zip(self.layers, params, carry, strict=True)):
            after, xs = layer.apply(p, c, xs, mask=mask, resets=resets, key=fold_key(key, i))
            mask, resets = layer.time_map(mask, resets, c)
            carries.append(after)
        return (carries if isinstance(carry, list) else tuple(carries)), xs  # keeps a loop carry's structure

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        plans: list[Plan] = []
        for layer, p in zip(self.layers, params, strict=True):
            plans += layer.plan(p, xs)
            xs = outputs_like(layer, p, xs)
        return tuple(plans)

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        for layer, c in zip(self.layers, carry or (None,) * len(self.layers), strict=True):
            mask, resets = layer.time_map(mask, resets, c)
        return mask, resets

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        calibrated = []
        for layer, p, c in zip(self.layers, params, carry, strict=True):
            calibrated.append(layer.calibrate(p, c, xs, mask=mask, resets=resets))
            _, xs = layer.apply(calibrated[-1], c, xs, mask=mask, resets=resets)
            mask, resets = layer.time_map(mask, resets, c)
        return tuple(calibrated)

    def check(self, **trees: Any) -> None:
        """Rejects `params` or a `carry` with the wrong number of layers.

        Raises:
          ValueError: naming what was given.
        """
        for name, tree in trees.items():
            if not isinstance(tree, tuple | list) or len(tree) != len(self.layers):
                given = f"{type(tree).__name__} of {len(tree)}" if isinstance(tree, tuple | list) else repr(tree)
                made = "init" if name == "params" else "initial_carry(params, batch_shape)"
                raise ValueError(
                    f"{self!r} has {name} in a tuple of {len(self.layers)}, got {given}; take what {made} returns."
                )


@dataclasses.dataclass(frozen=True, repr=False)
class Residual(Layer):
    """y = x + layer(x), for a layer that keeps the shape and the time axis. Params and carry are the layer's.

    Args:
      layer: maps `[T, ..., D]` to `[T, ..., D]` of the same dtype.

    Raises:
      ValueError: not a layer, or a `BatchMajor`; in `init` or `apply`, a layer that changes the shape or the dtype.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = Residual(seqjax.RNN(seqjax.GRU(3)))
    >>> params = model.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> model.apply(params, model.initial_carry(params, ()), jnp.ones((5, 3)))[1].shape
    (5, 3)
    """

    layer: Layer

    def __post_init__(self):
        check_inner("Residual", self.layer)

    @property
    def streams(self) -> bool:
        return self.layer.streams

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return self.layer.batch_shape(xs)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        params = self.layer.init(key, xs)
        self._check(jax.eval_shape(jnp.asarray, xs), outputs_like(self.layer, params, xs))
        return params

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return self.layer.initial_carry(params, batch_shape)

    def apply(
        self,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        carry, ys = self.layer.apply(params, carry, xs, mask=mask, resets=resets, key=key)
        xs = jnp.asarray(xs)
        self._check(xs, ys)
        return carry, hide(xs, mask) + ys

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        return self.layer.plan(params, xs)

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        return self.layer.calibrate(params, carry, xs, mask=mask, resets=resets)

    def _check(self, xs: Array | jax.ShapeDtypeStruct, ys: Array | jax.ShapeDtypeStruct) -> None:
        if ys.shape != xs.shape or ys.dtype != xs.dtype:
            raise ValueError(
                f"Residual needs a layer that keeps shape and dtype; {self.layer!r} maps "
                f"{xs.dtype}{list(xs.shape)} to {ys.dtype}{list(ys.shape)}."
            )


@dataclasses.dataclass(frozen=True, repr=False)
class BatchMajor(Layer):
    """Runs a time-major model on batches `[B, T, ..., D]`: the one place where that layout enters.

    Inputs, mask, resets and outputs have the batch axis first; params and carry are the model's own.

    Args:
      layer: the whole model, time-major.

    Raises:
      ValueError: not a layer, or another `BatchMajor`; in `init` or `apply`, inputs without a batch axis.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = BatchMajor(seqjax.RNN(seqjax.GRU(4)))
    >>> params = model.init(jax.random.key(0), jnp.ones((32, 50, 1)))
    >>> model.apply(params, model.initial_carry(params, (32,)), jnp.ones((32, 50, 1)))[1].shape
    (32, 50, 4)
    """

    layer: Layer

    def __post_init__(self):
        check_inner("BatchMajor", self.layer)

    @property
    def streams(self) -> bool:
        return False  # its axis 0 is not time

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return self.layer.batch_shape(jax.eval_shape(_swap, xs))

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        self._check(xs)
        return self.layer.init(key, jax.eval_shape(_swap, xs))

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return self.layer.initial_carry(params, batch_shape)

    def apply(
        self,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        self._check(xs, mask=mask, resets=resets)
        carry, ys = self.layer.apply(params, carry, _swap(xs), mask=_swap(mask), resets=_swap(resets), key=key)
        return carry, _swap(ys)

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        mask, resets = self.layer.time_map(_swap(mask), _swap(resets), carry)
        return _swap(mask), _swap(resets)

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        return self.layer.plan(params, jax.eval_shape(_swap, xs))

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        self._check(xs, mask=mask, resets=resets)
        return self.layer.calibrate(params, carry, _swap(xs), mask=_swap(mask), resets=_swap(resets))

    def _check(self, xs: Array | jax.ShapeDtypeStruct, **flags: Mask) -> None:
        if len(step_shape(xs)) < 2:
            raise ValueError(f"BatchMajor needs xs [B, T, ..., D], got shape {xs.shape}.")
        steps = xs.shape[: 1 + len(self.batch_shape(xs))]
        for name, given in flags.items():
            if given is not None and jnp.shape(given) != steps:
                turned = jnp.shape(given) == (steps[1], steps[0], *steps[2:])
                advice = f"; {name} is time-major, swap its first two axes" if turned else ""
                raise ValueError(f"BatchMajor needs {name} [B, T, ...], {steps}, got {jnp.shape(given)}{advice}.")


def time_major(model: Layer, *inputs: Any) -> tuple[Any, ...]:
    """The model without a `BatchMajor` around it, and the inputs, with axes 0 and 1 swapped if there was one."""
    return (model.layer, *jax.tree.map(_swap, inputs)) if isinstance(model, BatchMajor) else (model, *inputs)


def _swap(xs: Option) -> Option:
    return None if xs is None else jnp.swapaxes(xs, 0, 1)
