# SPDX-License-Identifier: Apache-2.0
"""Batches `[B, T, ..., D]`: the one place where that layout enters."""

import dataclasses

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Key, Layer, Mask, Option, Params, Resets, Shape
from seqjax.layers.inner import check_layers
from seqjax.plan import Plan
from seqjax.sequences import step_shape


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
        return self.layer.batch_shape(jax.eval_shape(swap, xs))

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        self.check(xs)
        return self.layer.init(key, jax.eval_shape(swap, xs))

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
        self.check(xs, mask=mask, resets=resets)
        carry, ys = self.layer.apply(params, carry, swap(xs), mask=swap(mask), resets=swap(resets), key=key)
        return carry, swap(ys)

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        mask, resets = self.layer.time_map(swap(mask), swap(resets), carry)
        return swap(mask), swap(resets)

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        return self.layer.plan(params, jax.eval_shape(swap, xs))

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        self.check(xs, mask=mask, resets=resets)
        return self.layer.calibrate(params, carry, swap(xs), mask=swap(mask), resets=swap(resets))

    def check(self, xs: Array | jax.ShapeDtypeStruct, **flags: Mask) -> None:
        """Rejects inputs without both axes, and a mask or resets of another shape.

        Raises:
          ValueError: naming them, in the layout in which they were given.
        """
        if len(step_shape(xs)) < 2:
            raise ValueError(f"BatchMajor needs xs [B, T, ..., D], got shape {xs.shape}.")
        steps = xs.shape[: 1 + len(self.batch_shape(xs))]
        for name, given in flags.items():
            if given is not None and jnp.shape(given) != steps:
                turned = jnp.shape(given) == (steps[1], steps[0], *steps[2:])
                advice = f"; {name} is time-major, swap its first two axes" if turned else ""
                raise ValueError(f"BatchMajor needs {name} [B, T, ...], {steps}, got {jnp.shape(given)}{advice}.")


def time_major(model: Layer, xs: Array, mask: Mask, resets: Resets) -> tuple[Layer, Array, Mask, Resets]:
    """The model without a `BatchMajor` around it, and its inputs, with axes 0 and 1 swapped if there was one."""
    if not isinstance(model, BatchMajor):
        return model, xs, mask, resets
    model.check(xs, mask=mask, resets=resets)
    return model.layer, swap(xs), swap(mask), swap(resets)


def swap(xs: Option) -> Option:
    return None if xs is None else jnp.swapaxes(xs, 0, 1)


def check_inner(owner: str, *layers: Layer) -> None:
    """Refuses what cannot be inside another layer: what is not a layer, or takes batches `[B, T, ..., D]`.

    Raises:
      ValueError: naming what was given.
    """
    check_layers(owner, *layers)
    for layer in layers:
        if isinstance(layer, BatchMajor):
            raise ValueError(f"{owner} takes time-major layers, got {layer!r}; put BatchMajor around the whole model.")
