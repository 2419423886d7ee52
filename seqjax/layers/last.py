# SPDX-License-Identifier: Apache-2.0
"""A sequence reduced to its last step."""

import dataclasses

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Key, Layer, Mask, Resets
from seqjax.layers.pointwise import check_floating
from seqjax.sequences import as_sequence, check_sequence, hide, last_step


@dataclasses.dataclass(frozen=True, repr=False)
class Last(Layer):
    """The last unmasked step of each sequence, as a sequence of one step: Keras' `return_sequences=False`.

    y_0 = x_t, where t is the last step whose mask is True; zeros for a sequence that is all padding. The
    output `[1, ..., D]` is still a sequence, so `Dense` and losses work as before. The output's mask
    says which sequences have an unmasked step, and its reset whether any step had one.

    After a `Bidirectional` layer this is the output *at* the last step, where the backward
    direction has seen only that step. Keras and most classifiers take the last step that each
    direction reaches instead: `Bidirectional(Serial(RNN(cell), Last()))`.

    It does not stream: the last step of a piece is not the last of the whole.

    Raises:
      ValueError: in `init` or `apply`, inputs that are not floating-point or not `[T, ..., D]`.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.GRU(4)), Last(), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 32, 3)))
    >>> model.apply(params, model.initial_carry(params, (32,)), jnp.ones((50, 32, 3)))[1].shape
    (1, 32, 1)
    """

    @property
    def streams(self) -> bool:
        return False

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> tuple[()]:
        check_sequence(xs)
        check_floating(self, xs)
        return ()

    def apply(
        self,
        params: tuple[()],
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        xs = as_sequence(xs, mask, resets)
        check_floating(self, xs)
        if mask is None:
            return carry, xs[-1:]
        ys = jnp.take_along_axis(xs, last_step(mask)[None, ..., None], axis=0)
        return carry, hide(ys, mask.any(0, keepdims=True))

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        def any_step(flags: Mask) -> Mask:
            return None if flags is None else flags.any(0, keepdims=True)

        return any_step(mask), any_step(resets)
