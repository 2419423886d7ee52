# SPDX-License-Identifier: Apache-2.0
"""Layers that act on each step separately: `Dense`, `LayerNorm`, `Embed`, `Activation`.

They ignore resets and their carry is `()`, so they stream in pieces of any length. Where `mask`
is False the output is zeros, and whatever the input holds there reaches no value and no gradient.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from seqjax import activations, require
from seqjax.base import Array, Carry, Key, Layer, Mask, Resets
from seqjax.dtypes import DTypes, add_bias, widen
from seqjax.initializers import Initializer, resolve
from seqjax.sequences import as_sequence, check_sequence, hide
from seqjax.spread import is_spread


def activate(activation: activations.Activation | None, xs: Array, mask: Mask) -> Array:
    """φ(xs), with zeros in masked steps.

    The operand is hidden as well as the result: otherwise a function whose slope at a masked step
    is infinite would send 0 x inf = NaN into the gradient.
    """
    if activation is None:
        return hide(xs, mask)
    return hide(activations.activation_function(activation)(hide(xs, mask)), mask)


def check_floating(owner: Layer, xs: Array | jax.ShapeDtypeStruct) -> None:
    """Rejects inputs that are not floating point, on behalf of layers without a dtype of their own.

    Raises:
      ValueError: naming the layer and the dtype.
    """
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(f"{owner!r} needs floating-point inputs, got {xs.dtype}; cast them, or Embed ids first.")


class DenseParams(NamedTuple):
    """Weights of `Dense`."""

    kernel: Array  # [D, F]
    bias: Array | None  # [F]


@dataclasses.dataclass(frozen=True, repr=False)
class Dense(Layer):
    """An affine map at every step, like Keras' `TimeDistributed(Dense)`: y_t = φ(W x_t + b).

    Args:
      features: F, the size of the output.
      activation: φ, a name or an elementwise function; `None` for the affine map alone.
      use_bias: whether b exists.
      kernel_init: draws W `[D, F]`.
      bias_init: draws b `[F]`.
      dtypes: of params and computation; outputs have the compute dtype.

    Raises:
      ValueError: `features` is not a positive integer, or `activation` is unknown.

    >>> import jax, jax.numpy as jnp
    >>> layer, xs = Dense(10, activation="relu"), jnp.ones((50, 32, 20))
    >>> params = layer.init(jax.random.key(0), xs)
    >>> layer.apply(params, (), xs)[1].shape
    (50, 32, 10)
    """

    features: int
    activation: activations.Activation | None = None
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("Dense", features=self.features)
        require.dtypes("Dense", self.dtypes)
        require.boolean("Dense", use_bias=self.use_bias)
        require.initializers("Dense", kernel_init=self.kernel_init, bias_init=self.bias_init)
        require.activations("Dense", activation=self.activation or "identity")

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> DenseParams:
        check_sequence(xs)
        require.positive("Dense", in_dim=xs.shape[-1])
        kernel_key, bias_key = jax.random.split(key)
        kernel = resolve(self.kernel_init)(kernel_key, (xs.shape[-1], self.features), self.dtypes.params)
        if not self.use_bias:
            return DenseParams(kernel, None)
        return DenseParams(kernel, resolve(self.bias_init)(bias_key, (self.features,), self.dtypes.params))

    def apply(
        self,
        params: DenseParams,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        bias = (self.features,) if self.use_bias else None
        require.params(self, params, DenseParams, kernel=("D", self.features), bias=bias)
        xs = as_sequence(xs, mask, resets)
        xs = self.dtypes.cast(self, xs, params.kernel)
        ys = hide(xs, mask) @ params.kernel.astype(xs.dtype)
        if params.bias is not None:
            ys = add_bias(ys, params.bias)
        return carry, activate(self.activation, ys, mask)


class LayerNormParams(NamedTuple):
    """Gain and bias of `LayerNorm`."""

    scale: Array | None  # [D]
    offset: Array | None  # [D]


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(Layer):
    """Normalization over the features of each step.

    y = scale ⊗ (x - mean(x)) / sqrt(var(x) + ε) + offset, where mean and (biased) variance are
    taken over the last axis in at least float32. Source: Ba, Kiros and Hinton 2016, equation 4.

    Args:
      epsilon: ε > 0. The default is that of PyTorch and of the normalized cells here (Keras: 1e-3).
      use_scale: whether there is a scale; it starts at one.
      use_offset: whether there is an offset; it starts at zero.
      dtypes: of params and computation; outputs have the compute dtype.

    Raises:
      ValueError: `epsilon` is not positive.

    >>> import jax, jax.numpy as jnp
    >>> layer, xs = LayerNorm(), jnp.array([[1.0, 3.0], [-2.0, 2.0]])
    >>> params = layer.init(jax.random.key(0), xs)
    >>> layer.apply(params, (), xs)[1].round(3).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_offset: bool = True
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive_number("LayerNorm", epsilon=self.epsilon)
        require.dtypes("LayerNorm", self.dtypes)
        require.boolean("LayerNorm", use_scale=self.use_scale, use_offset=self.use_offset)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> LayerNormParams:
        check_sequence(xs)
        return LayerNormParams(
            jnp.ones(xs.shape[-1], self.dtypes.params) if self.use_scale else None,
            jnp.zeros(xs.shape[-1], self.dtypes.params) if self.use_offset else None,
        )

    def apply(
        self,
        params: LayerNormParams,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        scale, offset = ("D",) if self.use_scale else None, ("D",) if self.use_offset else None
        require.params(self, params, LayerNormParams, scale=scale, offset=offset)
        xs = as_sequence(xs, mask, resets)
        xs = self._cast(params, xs)
        wide = widen(hide(xs, mask))
        centred = wide - wide.mean(-1, keepdims=True)
        ys = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if params.scale is not None:
            ys = ys * params.scale.astype(ys.dtype)
        if params.offset is not None:
            ys = add_bias(ys, params.offset)
        return carry, hide(ys.astype(xs.dtype), mask)

    def _cast(self, params: LayerNormParams, xs: Array) -> Array:
        weight = params.offset if params.scale is None else params.scale
        if weight is not None:
            return self.dtypes.cast(self, xs, weight[:, None])
        check_floating(self, xs)
        return xs.astype(self.dtypes.compute or xs.dtype)


class EmbedParams(NamedTuple):
    """Weights of `Embed`."""

    table: Array  # [num, F]


@dataclasses.dataclass(frozen=True, repr=False)
class Embed(Layer):
    """A learned vector for each id: y_t = table[x_t].

    Ids are integers `[T, ...]` *without* a feature axis, and `ys` are `[T, ..., F]`; the mask has the
    shape of the ids. An id outside `[0, num)` is never wrapped or clipped: outside `jit` it raises a
    ValueError; inside, where values cannot be inspected, its vector is NaN. Ids in masked steps can
    have any value.

    Args:
      num: how many ids there are.
      features: F, the size of a vector.
      table_init: draws the table `[num, F]`; by default from a normal with standard deviation 0.01.
      dtypes: of params and computation; outputs have the compute dtype.

    Raises:
      ValueError: `num` or `features` is not a positive integer.

    >>> import jax, jax.numpy as jnp
    >>> layer, ids = Embed(256, 8), jnp.array([104, 105])
    >>> params = layer.init(jax.random.key(0), ids)
    >>> layer.apply(params, (), ids)[1].shape
    (2, 8)
    """

    num: int
    features: int
    table_init: Initializer = "normal"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("Embed", num=self.num, features=self.features)
        require.dtypes("Embed", self.dtypes)
        require.initializers("Embed", table_init=self.table_init)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> EmbedParams:
        self._check_ids(xs)
        return EmbedParams(resolve(self.table_init)(key, (self.num, self.features), self.dtypes.params))

    def apply(
        self,
        params: EmbedParams,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        require.params(self, params, EmbedParams, table=(self.num, self.features))
        self._check_ids(xs)
        xs = as_sequence(xs, mask, resets)
        ids = hide(xs, mask)
        if not isinstance(ids, jax.core.Tracer):
            self._check_range(np.asarray(ids))
        table = params.table.astype(self.dtypes.of_compute(params.table))
        spread = PartitionSpec(*jax.typeof(ids).sharding.spec, None) if is_spread(ids) else None
        ys = table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=spread)
        return carry, hide(ys, mask)

    def _check_ids(self, xs: Array | jax.ShapeDtypeStruct) -> None:
        if not jnp.issubdtype(xs.dtype, jnp.integer) or xs.ndim == 0:
            raise ValueError(
                f"{self!r} takes integer ids [T, ...] without a feature axis, got {xs.dtype} of shape {xs.shape}."
            )

    def _check_range(self, ids: np.ndarray) -> None:
        outside = ids[(ids < 0) | (ids >= self.num)]
        if outside.size:
            raise ValueError(
                f"{self!r} takes ids in [0, {self.num}), got {outside[0]} (and {outside.size - 1} more outside); "
                "mask padding, or raise num."
            )


@dataclasses.dataclass(frozen=True, repr=False)
class Activation(Layer):
    """An elementwise function as a layer: y_t = φ(x_t).

    Args:
      function: φ, a name or an elementwise function.

    Raises:
      ValueError: an unknown name; the message lists the known ones.

    >>> import jax.numpy as jnp
    >>> Activation("relu").apply((), (), jnp.array([[-1.0, 2.0]]))[1].tolist()
    [[0.0, 2.0]]
    """

    function: activations.Activation

    def __post_init__(self):
        require.activations("Activation", function=self.function)

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
        return carry, activate(self.function, xs, mask)
