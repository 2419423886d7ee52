# SPDX-License-Identifier: Apache-2.0
"""Layers that act differently in training: `Dropout` and `BatchNorm`; and `calibrate`, for use after training.

A key means training, `None` means evaluation. In evaluation both layers act on each step
separately, and stream. In training they do not see beyond the piece that they are given: dropout
draws anew for each piece, and batch normalization uses each piece's own statistics.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Key, Layer, Mask, Params, Resets
from seqjax.dtypes import DTypes, widen
from seqjax.layers.batch_major import time_major
from seqjax.layers.inner import check_inputs
from seqjax.layers.pointwise import check_floating
from seqjax.sequences import as_sequence, check_sequence, hide


@dataclasses.dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Sets features to zero at random: y = x ⊗ m / (1 - rate), m ~ Bernoulli(1 - rate); y = x without a key.

    Source: Srivastava et al. 2014; for `variational`, on the inputs and outputs of a recurrent layer, Gal and
    Ghahramani 2016 (their recurrent dropout is a wrapper around a cell).

    Args:
      rate: probability of dropping, 0 <= rate < 1.
      variational: use a single m `[..., D]` for the whole of `xs`, held over time, instead of one for each step.
        It is also held across resets, and drawn again for each piece of a stream unless the key is the same.

    Raises:
      ValueError: `rate` is outside [0, 1).

    >>> import jax, jax.numpy as jnp
    >>> layer, xs = Dropout(0.5, variational=True), jnp.ones((3, 4))
    >>> layer.apply((), (), xs)[1].tolist() == xs.tolist()
    True
    >>> ys = layer.apply((), (), xs, key=jax.random.key(0))[1]
    >>> sorted(set(ys.ravel().tolist())), bool((ys == ys[0]).all())
    ([0.0, 2.0], True)
    """

    rate: float
    variational: bool = False

    def __post_init__(self):
        require.rate("Dropout", rate=self.rate)
        require.boolean("Dropout", variational=self.variational)

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
        require.key("Dropout", key)
        xs = as_sequence(xs, mask, resets)
        check_floating(self, xs)
        ys = hide(xs, mask)
        if key is None or self.rate == 0:
            return carry, ys
        kept = float(1 - self.rate)  # a NumPy scalar would promote
        keep = jax.random.bernoulli(key, kept, xs.shape[1:] if self.variational else xs.shape)
        return carry, jnp.where(keep, ys / kept, 0)


class BatchNormParams(NamedTuple):
    """Gain, bias and population statistics of `BatchNorm`."""

    scale: Array  # [D]
    offset: Array  # [D]
    mean: Array  # [D], of the population: no gradient
    var: Array  # [D], of the population: no gradient


@dataclasses.dataclass(frozen=True, repr=False)
class BatchNorm(Layer):
    """Normalization of each feature over steps and sequences.

    y = scale ⊗ (x - mean) / sqrt(var + ε) + offset. With a key, mean and (biased) variance are those of
    the unmasked steps of this batch, over time and batch axes; without one, they are the population
    statistics in `params`, which start at 0 and 1 and which `calibrate` sets after training. There is no
    running average. Statistics are computed in at least float32. Source: Ioffe and Szegedy 2015,
    algorithms 1 and 2.

    If a mask leaves fewer than two steps, which cannot be detected under `jit`, their variance is zero.

    Args:
      epsilon: ε > 0. The default is that of PyTorch (Keras: 1e-3).
      dtypes: of params and computation; outputs have the compute dtype.

    Raises:
      ValueError: `epsilon` is not positive; in training, a batch of a single step.

    >>> import jax, jax.numpy as jnp
    >>> layer, xs = BatchNorm(), jnp.array([[1.0], [3.0]])
    >>> params = layer.init(jax.random.key(0), xs)
    >>> layer.apply(params, (), xs, key=jax.random.key(1))[1].round(3).tolist()
    [[-1.0], [1.0]]
    >>> params = calibrate(layer, params, [xs])
    >>> params.mean.tolist(), params.var.tolist()
    ([2.0], [1.0])
    """

    epsilon: float = 1e-5
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive_number("BatchNorm", epsilon=self.epsilon)
        require.dtypes("BatchNorm", self.dtypes)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> BatchNormParams:
        check_sequence(xs)

        def filled(value: int) -> Array:  # a new array each time: params that share a buffer cannot be donated
            return jnp.full(xs.shape[-1], value, self.dtypes.params)

        return BatchNormParams(scale=filled(1), offset=filled(0), mean=filled(0), var=filled(1))

    def apply(
        self,
        params: BatchNormParams,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        xs, wide = self._operands(params, xs, mask, resets)
        scale, offset, mean, var = (param.astype(wide.dtype) for param in params)
        if key is None:
            mean, var = jax.lax.stop_gradient((mean, var))
        else:
            mean, var = self._statistics(wide, mask)
        ys = (wide - mean) * (scale * jax.lax.rsqrt(var + self.epsilon)) + offset
        return carry, hide(ys.astype(xs.dtype), mask)

    def calibrate(
        self, params: BatchNormParams, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None
    ) -> BatchNormParams:
        """Params whose population statistics are those of the unmasked steps of `xs`.

        Raises:
          ValueError: fewer than two such steps (with a mask, only if its values can be inspected).
        """
        _, wide = self._operands(params, xs, mask, resets)
        if mask is not None and not isinstance(mask, jax.core.Tracer) and mask.sum() < 2:
            raise ValueError(f"{self!r} needs at least 2 steps for a variance; the mask leaves {mask.sum()}.")
        mean, var = self._statistics(wide, mask)
        return params._replace(mean=mean.astype(params.mean.dtype), var=var.astype(params.var.dtype))

    def _operands(self, params: BatchNormParams, xs: Array, mask: Mask, resets: Resets) -> tuple[Array, Array]:
        """`xs` in the compute dtype, and `xs` in the dtype of the statistics with masked steps hidden."""
        require.params(self, params, BatchNormParams, scale=("D",), offset=("D",), mean=("D",), var=("D",))
        xs = as_sequence(xs, mask, resets)
        xs = self.dtypes.cast(self, xs, params.scale[:, None])
        return xs, widen(hide(xs, mask))

    def _statistics(self, xs: Array, mask: Mask) -> tuple[Array, Array]:
        """Mean and biased variance `[D]` of the unmasked steps of `xs`, which must be zero elsewhere."""
        samples = math.prod(xs.shape[:-1])
        if samples < 2:
            raise ValueError(
                f"{self!r} needs at least 2 steps or sequences for a variance, got xs of shape {xs.shape}; "
                "for single steps apply it without a key."
            )
        axes = tuple(range(xs.ndim - 1))
        count = samples if mask is None else jnp.maximum(mask.sum(), 1).astype(xs.dtype)
        mean = xs.sum(axes) / count
        return mean, jnp.square(hide(xs - mean, mask)).sum(axes) / count


def calibrate(model: Layer, params: Params, batches: Iterable[Array | tuple[Array, Mask]]) -> Params:
    """Sets the population statistics of every batch normalization in `model`, after training.

    The batches are put side by side, short ones padded, and go through the model once, in evaluation mode:
    each layer's statistics are those of all batches together, given the calibrated layers before it.
    Everything is in memory at once; a sample of the training data is enough.

    Args:
      model: any layer, including `Serial` and the like; for a `BatchMajor`, batches have the batch axis first.
      params: of `model`; they are not modified.
      batches: arrays `[T, ..., D]` (integer ids `[T, ...]`), or pairs of such an array and its mask
        `[T, ...]` or `None`. T and the batch axes may differ between batches; but if the model does not stream, T
        only by multiples of its stride, as the alignment of a strided convolution may depend on T.

    Returns:
      Params like `params`.

    Raises:
      ValueError: no batches, or batches that differ in features, in dtype or, beyond what is said above, in T.

    >>> import jax, jax.numpy as jnp
    >>> layer, batches = BatchNorm(), [jnp.array([[0.0], [1.0]]), jnp.array([[5.0]])]
    >>> params = layer.init(jax.random.key(0), batches[0])
    >>> calibrate(layer, params, batches).mean.tolist()
    [2.0]
    """
    pairs = [batch if isinstance(batch, tuple) else (batch, None) for batch in batches]
    if not pairs:
        raise ValueError("calibrate needs at least one batch, got none; a generator can be walked only once.")
    turned = [time_major(model, xs, mask, None) for xs, mask in pairs]
    model = turned[0][0]
    flat = [_flat(model, xs, mask) for _, xs, mask, _ in turned]
    kinds = {(xs.shape[2:], xs.dtype.name) for xs, _ in flat}
    if len(kinds) > 1:
        raise ValueError(f"calibrate needs batches of one feature size and dtype, got {sorted(kinds)}.")
    lengths = sorted({len(xs) for xs, _ in flat})
    T = lengths[-1]
    if not model.streams and any((T - length) % model.stride for length in lengths):
        raise ValueError(
            f"calibrate pads batches of {lengths} steps to {T}, and {model!r}, of stride {model.stride}, would look at "
            "other windows than in each batch alone; cut them to lengths that differ by multiples of the stride."
        )
    together, mask = (jnp.concatenate([_pad_end(x, T) for x in side], axis=1) for side in zip(*flat, strict=True))
    masked = any(given is not None for _, given in pairs) or any(len(xs) < T for xs, _ in flat)
    carry = model.initial_carry(params, together.shape[1:2])
    return model.calibrate(params, carry, together, mask=mask if masked else None)


def _flat(model: Layer, xs: Array, mask: Mask) -> tuple[Array, Array]:
    """A batch with exactly one batch axis, `[T, B, ...]`, and its mask `[T, B]`."""
    check_inputs(model, xs, mask, None)
    batch = model.batch_shape(xs)
    mask = jnp.ones((len(xs), *batch), bool) if mask is None else mask
    return xs.reshape(len(xs), math.prod(batch), *xs.shape[1 + len(batch) :]), mask.reshape(len(xs), math.prod(batch))


def _pad_end(x: Array, T: int) -> Array:
    """`x` padded at the end with zeros, or False, to T steps."""
    return jnp.pad(x, [(0, T - len(x))] + [(0, 0)] * (x.ndim - 1))
