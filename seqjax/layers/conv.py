# SPDX-License-Identifier: Apache-2.0
"""One-dimensional convolution over time, which respects masks and resets, and streams if it is causal."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import activations, require
from seqjax.base import Array, Key, Layer, Mask, Resets, Shape
from seqjax.dtypes import DTypes, at_least_float32
from seqjax.engines.steps.checks import check_carry
from seqjax.initializers import Initializer, resolve
from seqjax.layers.pointwise import activate
from seqjax.sequences import as_sequence, check_sequence, hide
from seqjax.spread import alike


class ConvParams(NamedTuple):
    """Weights of `Conv1D`."""

    kernel: Array  # [width, D, F]
    bias: Array | None  # [F]


class ConvCarry(NamedTuple):
    """What a causal `Conv1D` remembers of earlier pieces."""

    window: Array | None
    """`[..., (width - 1) * dilation, D]`, the most recent inputs, oldest first. Inputs that are masked or belong
    to an earlier sequence count as padding and are zeros. `None` for a width of 1."""
    pending: Array | None
    """`[...]` bool, whether a reset occurred after the last output. `None` for a stride of 1."""


@dataclasses.dataclass(frozen=True, repr=False)
class Conv1D(Layer):
    """Convolution over time: y_o = φ(b + Σ_k W_k x[o * stride + k * dilation - left]).

    As in Keras and PyTorch, the kernel is not flipped. With reach = (width - 1) * dilation, `padding`
    determines how many zeros are put before (`left`) and after `xs`, and hence how many outputs there
    are and which input each output belongs to, its *anchor*:

    | padding    | left       | outputs                             | anchor of output o |
    |------------|------------|-------------------------------------|--------------------|
    | `"causal"` | reach      | ceil(T / stride)                    | o * stride         |
    | `"same"`   | total // 2 | ceil(T / stride)                    | o * stride         |
    | `"valid"`  | 0          | floor((T - reach - 1) / stride) + 1 | o * stride + reach |

    where total = max((ceil(T / stride) - 1) * stride + reach + 1 - T, 0), as in TensorFlow; with a stride, the
    alignment of `"same"` therefore depends on T. Keras' default is `"valid"`.

    Masked inputs count as zeros, and so do inputs that a reset separates from the anchor. An output is
    valid where its anchor is; with `"valid"` padding, only where all of its inputs are, with no reset among
    them. `time_map` returns the mask and the resets of the outputs: a reset belongs to the first
    output whose anchor is at or after it.

    A causal convolution streams in pieces whose lengths are multiples of the stride (the last piece may
    have any length, even shorter than the window). If a piece comes without mask and resets, `time_map` has
    no shape from which to tell the next layer about a reset left over from the previous piece; so in a
    strided stream with resets, pass them with every piece.

    Args:
      features: F, the size of the output.
      width: how many inputs an output sees.
      stride: steps from one output to the next.
      padding: `"causal"`, `"same"` or `"valid"`.
      dilation: steps from one input of an output to the next.
      activation: φ, a name or an elementwise function; `None` for none.
      use_bias: whether b exists.
      kernel_init: draws the kernel `[width, D, F]`.
      bias_init: draws b `[F]`.
      dtypes: of params, computation and the carried window; outputs have the compute dtype. Products
        are summed in at least float32.

    Raises:
      ValueError: a size that is not a positive integer, or an unknown padding or activation.

    >>> import jax, jax.numpy as jnp
    >>> layer, xs = Conv1D(20, 4, stride=2, padding="valid"), jnp.ones((50, 32, 1))
    >>> params = layer.init(jax.random.key(0), xs)
    >>> layer.apply(params, layer.initial_carry(params, (32,)), xs)[1].shape
    (24, 32, 20)
    """

    features: int
    width: int
    stride: int = 1
    padding: Literal["causal", "same", "valid"] = "causal"
    dilation: int = 1
    activation: activations.Activation | None = None
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    bias_init: Initializer = "zeros"
    dtypes: DTypes = DTypes()

    def __post_init__(self):
        require.positive("Conv1D", features=self.features, width=self.width, stride=self.stride, dilation=self.dilation)
        require.one_of("Conv1D", padding=(self.padding, ("causal", "same", "valid")))
        require.dtypes("Conv1D", self.dtypes)
        require.boolean("Conv1D", use_bias=self.use_bias)
        require.initializers("Conv1D", kernel_init=self.kernel_init, bias_init=self.bias_init)
        require.activations("Conv1D", activation=self.activation or "identity")

    @property
    def streams(self) -> bool:
        return self.padding == "causal"

    @property
    def reach(self) -> int:
        """Steps from an output's oldest input to its newest."""
        return (self.width - 1) * self.dilation

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> ConvParams:
        check_sequence(xs)
        require.positive("Conv1D", in_dim=xs.shape[-1])
        kernel_key, bias_key = jax.random.split(key)
        shape = (self.width, xs.shape[-1], self.features)
        kernel = resolve(self.kernel_init)(kernel_key, shape, self.dtypes.params)
        if not self.use_bias:
            return ConvParams(kernel, None)
        return ConvParams(kernel, resolve(self.bias_init)(bias_key, (self.features,), self.dtypes.params))

    def initial_carry(self, params: ConvParams, batch_shape: Shape) -> ConvCarry | tuple[()]:
        """A window of zeros, which amounts to causal padding; `()` if the layer does not stream."""
        require.batch_shape(batch_shape)
        if not self.streams:
            return ()
        window = (*batch_shape, self.reach, params.kernel.shape[1])
        return ConvCarry(
            jnp.zeros(window, self.dtypes.of_carry(params.kernel)) if self.reach else None,
            jnp.zeros(batch_shape, bool) if self.stride > 1 else None,
        )

    def apply(
        self,
        params: ConvParams,
        carry: ConvCarry | tuple[()],
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[ConvCarry | tuple[()], Array]:
        bias = (self.features,) if self.use_bias else None
        require.params(self, params, ConvParams, kernel=(self.width, "D", self.features), bias=bias)
        xs = as_sequence(xs, mask, resets)
        xs = hide(self.dtypes.cast(self, xs, params.kernel), mask)
        if self.streams:
            check_carry(carry, self.initial_carry(params, xs.shape[1:-1]), xs.shape[1:-1])
        left, right = self._padding(xs.shape[0])
        padded = self._after_window(carry, xs) if self.streams else _pad(xs, left, right)
        sequence = None if resets is None else _pad(_sequence_number(resets), left, right)
        ys = self._convolve(params, padded, sequence, xs.shape[0])
        ys = activate(self.activation, ys, self.time_map(mask, resets)[0])
        return self._after(carry, padded, sequence, xs.shape[0]), ys

    def time_map(self, mask: Mask, resets: Resets, carry: ConvCarry | tuple[()] | None = None) -> tuple[Mask, Resets]:
        given = resets if mask is None else mask
        if given is None or (self.stride == 1 and self.padding != "valid"):
            return mask, resets
        anchors = self._every(self._first_anchor, given.shape[0])
        out_mask = mask if mask is None else mask[anchors]
        out_resets = resets
        if resets is not None:
            out_resets = jnp.diff(_pad(_sequence_number(resets)[anchors], 1, 0), axis=0) > 0
        if self.padding == "valid":
            out_mask = self._whole_windows(mask, resets)
        if isinstance(carry, ConvCarry) and carry.pending is not None:
            out_resets = jnp.zeros_like(given[anchors]) if out_resets is None else out_resets
            out_resets = out_resets.at[0].set(out_resets[0] | carry.pending)
        return out_mask, out_resets

    # -- where things are on the time axis ---------------------------------------------------

    @property
    def _first_anchor(self) -> int:
        return self.reach if self.padding == "valid" else 0

    def _outputs(self, steps: int) -> int:
        if self.padding != "valid":
            return -(-steps // self.stride)
        if steps <= self.reach:
            raise ValueError(
                f"{self!r} needs at least {self.reach + 1} steps for one output, got {steps}; "
                "pad the input, or use padding='causal'."
            )
        return (steps - self.reach - 1) // self.stride + 1

    def _padding(self, steps: int) -> tuple[int, int]:
        if self.padding == "valid":
            return 0, 0
        if self.padding == "causal":
            return self.reach, 0
        total = max((self._outputs(steps) - 1) * self.stride + self.reach + 1 - steps, 0)
        return total // 2, total - total // 2

    def _every(self, first: int, steps: int) -> slice:
        """One position per output, starting at `first`, for an input of `steps` steps."""
        return slice(first, first + (self._outputs(steps) - 1) * self.stride + 1, self.stride)

    def _whole_windows(self, mask: Mask, resets: Resets) -> Mask:
        """Which windows are unmasked throughout and lie within one sequence."""
        whole = None
        if resets is not None:
            sequence = _sequence_number(resets)
            whole = sequence[self._every(0, resets.shape[0])] == sequence[self._every(self.reach, resets.shape[0])]
        if mask is not None:
            for k in range(self.width):
                tap = mask[self._every(k * self.dilation, mask.shape[0])]
                whole = tap if whole is None else whole & tap
        return whole

    # -- the convolution ---------------------------------------------------------------------

    def _convolve(self, params: ConvParams, padded: Array, sequence: Array | None, steps: int) -> Array:
        """The affine part: one product per tap of the kernel."""
        wide = at_least_float32(padded.dtype)
        anchors = self._every(self._padding(steps)[0] + self._first_anchor, steps)
        ys = jnp.zeros((), wide) if params.bias is None else params.bias.astype(wide)
        for k in range(self.width):
            inputs = self._every(k * self.dilation, steps)
            tap = padded[inputs]
            if sequence is not None:
                tap = hide(tap, sequence[inputs] == sequence[anchors])
            ys = ys + jnp.matmul(tap, params.kernel[k].astype(tap.dtype), preferred_element_type=wide)
        return ys.astype(padded.dtype)

    def _after_window(self, carry: ConvCarry | tuple[()], xs: Array) -> Array:
        """`xs` preceded by the carried window."""
        if not isinstance(carry, ConvCarry) or carry.window is None:
            return xs
        return jnp.concatenate([alike(jnp.moveaxis(carry.window, -2, 0).astype(xs.dtype), xs), xs])

    def _after(
        self, carry: ConvCarry | tuple[()], padded: Array, sequence: Array | None, steps: int
    ) -> ConvCarry | tuple[()]:
        """The carry of a causal convolution after `padded`, of which the last `steps` steps are new."""
        if not isinstance(carry, ConvCarry):
            return carry
        window, pending = carry
        last = self._every(self.reach, steps).stop - 1
        if window is not None:
            newest = padded[-self.reach :]
            if sequence is not None:
                newest = hide(newest, sequence[-self.reach :] == sequence[-1])
            window = jnp.moveaxis(newest, 0, -2).astype(window.dtype)
        if pending is not None:  # an earlier pending reset went to the first output
            pending = jnp.zeros_like(pending) if sequence is None else sequence[-1] != sequence[last : last + 1][0]
        return ConvCarry(window, pending)


def _sequence_number(resets: Array) -> Array:
    """How many sequences have begun so far; steps with equal numbers belong to the same sequence."""
    return jnp.cumsum(resets, axis=0, dtype=jnp.int32)


def _pad(steps: Array, left: int, right: int) -> Array:
    """Steps `[T, ...]` padded with zeros. As a sequence number, zero means the sequence continued from the carry."""
    return jnp.pad(steps, [(left, right)] + [(0, 0)] * (steps.ndim - 1))
