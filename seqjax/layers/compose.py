# SPDX-License-Identifier: Apache-2.0
"""Layers made of layers: one carry, one key, one mask and one set of resets thread through all of them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Key, Layer, Mask, Params, Resets, Shape
from seqjax.layers.batch_major import check_inner
from seqjax.layers.inner import fold_key, outputs_like
from seqjax.plan import Plan
from seqjax.sequences import hide


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
        require.key("Serial", key)
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
        require.key("Serial", key)
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
