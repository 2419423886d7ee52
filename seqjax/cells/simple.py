# SPDX-License-Identifier: Apache-2.0
"""The simple recurrent network (Elman), plain or normalized."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.activations import Activation, activation_function, has_slopes, slopes
from seqjax.base import Array, Cell, Key, Option, Shape
from seqjax.cells import gates, normalization
from seqjax.dtypes import DTypes, widen
from seqjax.initializers import Initializer


class SimpleParams(NamedTuple):
    """Params of `Simple`: H units, D inputs; `None` where an option is off.

    Attributes:
      w_in: `[D, H]`.
      w_rec: `[H, H]`.
      bias: `[H]`.
      scale, offset: `[H]`, with normalization.
      mean, var: `[H]`, with batch normalization: the population's statistics, set by `calibrate`.
    """

    w_in: Array
    w_rec: Array
    bias: Option
    scale: Option = None
    offset: Option = None
    mean: Option = None
    var: Option = None


class SimpleCarry(NamedTuple):
    """h `[..., H]`, the output of the step before."""

    h: Array


class SimpleResiduals(NamedTuple):
    h_before: Array
    h: Array
    normalized: Option  # of the single gate, with layer normalization


def simple_residuals(
    params: SimpleParams,
    carry: SimpleCarry,
    z: Array,
    h: Array | None = None,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    epsilon: float = normalization.EPSILON,
) -> tuple[SimpleCarry, Array, SimpleResiduals]:
    """One step, plain or layer-normalized, with everything its transpose needs."""
    a = z + gates.recur(carry.h if h is None else h, params.w_rec, z.dtype)
    y, kept = normalization.activate(params, epsilon, 0, activation, a)
    normalized = None if kept is None else (kept,)
    return SimpleCarry(y.astype(carry.h.dtype)), y, SimpleResiduals(carry.h.astype(z.dtype), y, normalized)


def simple_step(
    params: SimpleParams,
    carry: SimpleCarry,
    z: Array,
    h: Array | None = None,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    epsilon: float = normalization.EPSILON,
) -> tuple[SimpleCarry, Array]:
    """One step from `z = W_x x + b`, plain or layer-normalized; see `Simple` for the recurrence and its sources.

    Args:
      params: as returned by `Simple.init`.
      carry: h `[..., H]`.
      z: `[..., H]`.
      h: what the recurrent product sees in place of `carry.h`.
      activation: φ, a function of arrays.
      epsilon: for layer normalization.

    Returns:
      The new carry and y = h `[..., H]`, in the dtype of z.

    Raises:
      TypeError: by JAX, shapes that do not fit; only the cell and the engines say what they expected.

    >>> cell = Simple(4)
    >>> params, x = cell.init(jax.random.key(0), 3), jnp.ones((2, 3))
    >>> carry, y = simple_step(params, cell.initial_carry(params, (2,)), x @ params.w_in + params.bias)
    >>> y.shape
    (2, 4)
    """
    carry, y, _ = simple_residuals(params, carry, z, h, activation=activation, epsilon=epsilon)
    return carry, y


def batch_moments(a: Array) -> tuple[Array, Array]:
    """Mean and variance of `a [..., H]` over its batch axes, in at least float32.

    Raises:
      ValueError: fewer than two sequences.
    """
    axes = tuple(range(a.ndim - 1))
    if a.size // a.shape[-1] < 2:
        raise ValueError(
            f"batch normalization in training needs at least two sequences, got a batch of {a.shape[:-1]}."
        )
    wide = widen(a)
    return wide.mean(axes), wide.var(axes)


def batch_normalized_step(
    params: SimpleParams,
    carry: SimpleCarry,
    z: Array,
    *,
    training: bool,
    activation: Callable[[Array], Array] = jnp.tanh,
    epsilon: float = normalization.EPSILON,
) -> tuple[SimpleCarry, Array]:
    """One step, normalized over the batch (`training`) or by the population statistics."""
    a = z + gates.recur(carry.h, params.w_rec, z.dtype)
    wide = widen(a)
    moments = batch_moments(a) if training else jax.lax.stop_gradient((params.mean, params.var))
    mean, var = (m.astype(wide.dtype) for m in moments)
    unit = ((wide - mean) * jax.lax.rsqrt(var + float(epsilon))).astype(a.dtype)
    y = activation(params.scale.astype(a.dtype) * unit + params.offset.astype(a.dtype))
    return SimpleCarry(y.astype(carry.h.dtype)), y


def simple_transpose(
    params: SimpleParams,
    kept: SimpleResiduals,
    d_carry: SimpleCarry,
    d_y: Array,
    *,
    slope: Callable[[Array], Array],
) -> tuple[SimpleCarry, Array, Array | None]:
    """The transpose of one step: `(d_carry, d_z, d_activated)`."""
    d_h = d_carry.h.astype(d_y.dtype) + d_y
    d_z, d_activated = normalization.activate_transpose(params, kept.normalized, 0, slope(kept.h), d_h)
    d_before = gates.recur_transpose(d_z, params.w_rec)
    return SimpleCarry(d_before.astype(d_carry.h.dtype)), d_z, None if kept.normalized is None else d_activated


def simple_accumulate(params: SimpleParams, kept: SimpleResiduals, d_zs: Array, d_activated: Array | None):
    """The params' cotangent from the residuals and cotangents of all steps, with one contraction for each param."""
    d_rec = gates.outer_sum(kept.h_before, d_zs, params.w_rec)
    d_scale, d_offset = normalization.accumulate(kept.normalized, (d_activated,), params.w_rec.dtype)
    return jax.tree.map(jnp.zeros_like, params)._replace(w_rec=d_rec, scale=d_scale, offset=d_offset)


@dataclasses.dataclass(frozen=True, repr=False)
class Simple(Cell):
    """Simple recurrent network.

    y_t = h_t = φ(N(W_x x_t + W_h h_{t-1} + b)), where N is the identity, layer or batch normalization.

    In training (with a key), batch normalization takes its statistics over the batch at each step;
    in evaluation, from the params, where `seqjax.layers.calibrate` sets them after training.
    It is here for comparison with layer normalization.

    Args:
      hidden_dim: H.
      activation: φ.
      use_bias: whether b exists.
      normalize: `None`, `"layer"` or `"batch"`.
      epsilon: added to the variance in the normalization.
      w_in_init, w_rec_init, bias_init: initializers.
      dtypes: params, compute and carry.

    Its params (`SimpleParams`) are w_in `[D, H]`, w_rec `[H, H]`, bias `[H]`, and for a normalization scale and
    offset `[H]`.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax
    >>> Simple(4, normalize="layer").init(jax.random.key(0), 3).scale.tolist()
    [1.0, 1.0, 1.0, 1.0]

    Source: Elman 1990; Ba, Kiros and Hinton 2016, equation 4; Laurent et al. 2016 for batch
    statistics at each step (here over the whole linear combination).
    """

    hidden_dim: int
    activation: Activation = "tanh"
    use_bias: bool = True
    normalize: str | None = None
    epsilon: float = normalization.EPSILON
    w_in_init: Initializer = "glorot_uniform"
    w_rec_init: Initializer = "orthogonal"
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("Simple", hidden_dim=self.hidden_dim)
        require.one_of("Simple", normalize=(self.normalize, (None, "layer", "batch")))
        require.positive_number("Simple", epsilon=self.epsilon)
        require.dtypes("Simple", self.dtypes)
        require.boolean("Simple", use_bias=self.use_bias)
        require.activations("Simple", activation=self.activation)
        require.initializers("Simple", w_in_init=self.w_in_init, w_rec_init=self.w_rec_init, bias_init=self.bias_init)

    def _options(self) -> dict[str, Any]:
        return {"activation": activation_function(self.activation), "epsilon": self.epsilon}

    @property
    def capabilities(self) -> frozenset[str]:
        if self.normalize == "batch":
            return frozenset()
        return frozenset({"adjoint", "seen"} if has_slopes(self.activation) else {"seen"})

    @property
    def stochastic(self) -> bool:
        return self.couples_batch  # the key tells its step that this is training

    @property
    def couples_batch(self) -> bool:
        return self.normalize == "batch"

    def init(self, key: Array, in_dim: int) -> SimpleParams:
        require.positive("Simple", in_dim=in_dim)
        in_key, rec_key, bias_key = jax.random.split(key, 3)
        hidden, dtype = self.hidden_dim, self.dtypes.params
        normalized, batch = self.normalize is not None, self.normalize == "batch"
        return SimpleParams(
            w_in=gates.init_gates(in_key, self.w_in_init, in_dim, hidden, 1, self.dtypes),
            w_rec=gates.init_gates(rec_key, self.w_rec_init, hidden, hidden, 1, self.dtypes),
            bias=gates.init_bias(bias_key, self.bias_init, hidden, 1, self.dtypes) if self.use_bias else None,
            scale=jnp.ones(hidden, dtype) if normalized else None,
            offset=jnp.zeros(hidden, dtype) if normalized else None,
            mean=jnp.zeros(hidden, dtype) if batch else None,
            var=jnp.ones(hidden, dtype) if batch else None,
        )

    def initial_carry(self, params: SimpleParams, batch_shape: Shape) -> SimpleCarry:
        return SimpleCarry(jnp.zeros((*batch_shape, params.w_rec.shape[0]), self.dtypes.of_carry(params.w_in)))

    def project(self, params: SimpleParams, x: Array) -> Array:
        return gates.project_input(self, params, x)

    def step(self, params: SimpleParams, carry: SimpleCarry, z: Array, key: Key = None) -> tuple[SimpleCarry, Array]:
        if self.normalize == "batch":
            return batch_normalized_step(params, carry, z, training=key is not None, **self._options())
        return simple_step(params, carry, z, **self._options())

    def gate_values(self, params: SimpleParams, carry: SimpleCarry, z: Array) -> dict[str, tuple[Array, Activation]]:
        return {"h": (self.step(params, carry, z)[1], self.activation)}

    def step_seen(self, params: SimpleParams, carry: SimpleCarry, h: Array, z: Array) -> tuple[SimpleCarry, Array]:
        if self.normalize == "batch":
            raise self.not_offered("seen")
        return simple_step(params, carry, z, h, **self._options())

    def step_residuals(
        self, params: SimpleParams, carry: SimpleCarry, z: Array
    ) -> tuple[SimpleCarry, Array, SimpleResiduals]:
        return simple_residuals(params, carry, z, **self._options())

    def step_transpose(
        self, params: SimpleParams, residuals: SimpleResiduals, d_carry: SimpleCarry, d_y: Array
    ) -> tuple[SimpleCarry, Array, Array | None]:
        (slope,) = slopes(self, "adjoint", self.activation)
        return simple_transpose(params, residuals, d_carry, d_y, slope=slope)

    def project_transpose(self, params: SimpleParams, x: Array, d_z: Array) -> tuple[SimpleParams, Array]:
        return gates.project_transpose(params, x, d_z)

    def accumulate(
        self, params: SimpleParams, residuals: SimpleResiduals, d_zs: Array, extras: Array | None
    ) -> SimpleParams:
        return simple_accumulate(params, residuals, d_zs, extras)

    def calibrate(self, params: SimpleParams, carry: SimpleCarry, xs: Array) -> SimpleParams:
        if self.normalize != "batch":
            return params

        def step(carry: SimpleCarry, x: Array) -> tuple[SimpleCarry, tuple[Array, Array]]:
            z = self.project(params, x)
            mean, var = batch_moments(z + gates.recur(carry.h, params.w_rec, z.dtype))
            carry, _ = batch_normalized_step(params, carry, z, training=True, **self._options())
            return carry, (mean, var)

        _, (means, variances) = jax.lax.scan(step, carry, xs)
        mean = means.mean(0)
        var = (variances + (means - mean) ** 2).mean(0)  # over steps and sequences together
        return params._replace(mean=mean.astype(params.mean.dtype), var=var.astype(params.var.dtype))
