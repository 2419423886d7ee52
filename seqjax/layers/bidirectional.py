# SPDX-License-Identifier: Apache-2.0
"""A layer that runs in both directions of time."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Key, Layer, Mask, Params, Resets, Shape
from seqjax.layers.batch_major import check_inner
from seqjax.layers.inner import check_inputs, fold_key, outputs_like
from seqjax.plan import Plan

_MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda f, b: jnp.concatenate([f, b], axis=-1),
    "sum": lambda f, b: f + b,
    "mean": lambda f, b: (f + b) / 2,
    "mul": lambda f, b: f * b,
}


def reversed_in_time(mask: Mask, resets: Resets) -> tuple[Mask, Resets]:
    """Mask and resets for the backward direction, where a reset before t becomes a reset before t - 1."""
    if resets is not None:
        resets = jnp.flip(jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])]), 0)
    return None if mask is None else jnp.flip(mask, 0), resets


@dataclasses.dataclass(frozen=True, repr=False)
class Bidirectional(Layer):
    """One layer run forward in time and one run backward, with their outputs merged.

    The backward direction reverses within each sequence, so padding stays where it is. Params and
    carry are pairs (forward, backward). It does not stream, because its outputs depend on the future.

    Args:
      forward: a layer that keeps the time axis, or one that ends in `Last`.
      backward: the layer for the other direction; `None`: one like `forward`, with its own params.
      merge: `"concat"`, `"sum"`, `"mean"` or `"mul"`.

    Raises:
      ValueError: an unknown merge, or one that does not fit the sizes of the outputs; a layer that changes the
        time axis, or whose axis 0 is not time.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = Bidirectional(seqjax.RNN(seqjax.GRU(4)))
    >>> params = model.init(jax.random.key(0), jnp.ones((5, 2)))
    >>> model.apply(params, model.initial_carry(params, ()), jnp.ones((5, 2)))[1].shape
    (5, 8)

    Source: Schuster and Paliwal 1997.
    """

    forward: Layer
    backward: Layer | None = None
    merge: str = "concat"

    def __post_init__(self):
        check_inner("Bidirectional", *self.layers)
        require.one_of("Bidirectional", merge=(self.merge, tuple(sorted(_MERGES))))

    @property
    def layers(self) -> tuple[Layer, Layer]:
        """The forward and the backward layer."""
        return self.forward, self.forward if self.backward is None else self.backward

    @property
    def streams(self) -> bool:
        return False

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return self.forward.batch_shape(xs)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        params = tuple(layer.init(k, xs) for layer, k in zip(self.layers, jax.random.split(key), strict=True))
        outputs = [outputs_like(layer, p, xs) for layer, p in zip(self.layers, params, strict=True)]
        self._check_steps(xs, *outputs)
        features = tuple(ys.shape[-1] for ys in outputs)
        if self.merge != "concat" and features[0] != features[1]:
            raise ValueError(
                f"Bidirectional: merge={self.merge!r} needs as many features in both directions, got {features}; "
                "use merge='concat', or layers of one size."
            )
        return params

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
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
        check_inputs(self, xs, mask, resets)
        require.key("Bidirectional", key)
        forward, backward = self.layers
        ahead, ys = forward.apply(params[0], carry[0], xs, mask=mask, resets=resets, key=fold_key(key, 0))
        back_mask, back_resets = reversed_in_time(mask, resets)
        behind, back_ys = backward.apply(
            params[1], carry[1], jnp.flip(xs, 0), mask=back_mask, resets=back_resets, key=fold_key(key, 1)
        )
        self._check_steps(xs, ys, back_ys)
        return (ahead, behind), _MERGES[self.merge](ys, jnp.flip(back_ys, 0))

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        return self.forward.time_map(mask, resets, None if carry is None else carry[0])

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        return tuple(plan for layer, p in zip(self.layers, params, strict=True) for plan in layer.plan(p, xs))

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        forward, backward = self.layers
        back_mask, back_resets = reversed_in_time(mask, resets)
        return (
            forward.calibrate(params[0], carry[0], xs, mask=mask, resets=resets),
            backward.calibrate(params[1], carry[1], jnp.flip(xs, 0), mask=back_mask, resets=back_resets),
        )

    def _check_steps(self, xs: Array | jax.ShapeDtypeStruct, *outputs: Array | jax.ShapeDtypeStruct) -> None:
        steps = tuple(ys.shape[0] for ys in outputs)
        if steps not in ((xs.shape[0],) * 2, (1, 1)):
            raise ValueError(
                "Bidirectional needs layers that keep time, or that both end in Last; "
                f"{self.layers} map {xs.shape[0]} steps to {steps}."
            )
