# SPDX-License-Identifier: Apache-2.0
"""Sequences of any length: a streaming model run segment by segment, with its outputs reduced along the way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Key, Layer, Mask, Params, Resets
from seqjax.engines.steps.loops import flat_pieces
from seqjax.layers.inner import check_inputs, check_layers
from seqjax.spread import step_alike, varying_alike


def fold(
    model: Layer,
    params: Params,
    carry: Carry,
    xs: Array,
    fn: Callable[..., Any],
    init: Any,
    *,
    segment: int,
    extras: Any = None,
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> tuple[Carry, Any]:
    """Reduces a model's outputs over time without ever holding all of them.

    total_{s+1} = fn(total_s, ys of segment s), starting from total_0 = `init`. Each segment is recomputed
    in the reverse pass, so a gradient holds only the carries between segments and the activations of one.
    Memory beyond the inputs is about (T / segment) carries plus one segment's activations, smallest for
    segments of about √T steps; the price is one more forward pass.
    Where segments do not divide T, inputs and extras are copied once to split off the rest, and memory grows by as
    much: choose a segment that divides T, or pad with masked steps.

    Args:
      model: any layer that streams.
      params, carry: its params and the carry to start from.
      xs: `[T, ..., D]`.
      fn: `fn(total, ys)`, or `fn(total, ys, extras)` if `extras` are given; it must keep the
        structure, shapes and dtypes of `total`.
      init: the total before the first segment.
      segment: steps in a segment, a multiple of the model's stride; the last one may be shorter (see above).
      extras: a pytree of arrays to slice along with the outputs (targets, weights, the outputs'
        mask); axis 0 has one entry per output step, or per step of `xs`.
      mask, resets: `[T, ...]`, as for `Layer.apply`.
      key: for training; each segment gets its own key, so a variational dropout mask lasts for one segment.

    Returns:
      The carry after the last step, and the total.

    Raises:
      ValueError: a `model` that is not a layer or does not stream, a symbolic T, a segment that is not a positive
        multiple of the stride, or extras of the wrong length.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1))
    >>> xs, targets = jnp.ones((1000, 2, 3)), jnp.zeros((1000, 2, 1))
    >>> params = model.init(jax.random.key(0), xs)
    >>> def add_error(total, ys, targets):
    ...     return total + jnp.sum((ys - targets) ** 2)
    >>> def loss(params):
    ...     carry = model.initial_carry(params, (2,))
    ...     return fold(model, params, carry, xs, add_error, jnp.zeros(()), segment=32, extras=targets)[1]
    >>> bool(jnp.isfinite(jax.grad(loss)(params)[1].bias).all())
    True

    Source: Chen et al. 2016, section 4 (segments); Gruslys et al. 2016.
    """
    check_layers("fold", model)
    check_inputs(model, xs, mask, resets)
    T = xs.shape[0]
    if not isinstance(T, int):
        raise ValueError(f"fold cuts a sequence whose length it knows, got T = {T}; export apply, or one length.")
    if not model.streams:
        raise ValueError(f"fold needs a model that streams; {model!r} does not: run it whole with apply.")
    require.positive("fold", segment=segment)
    if segment % model.stride:
        raise ValueError(f"fold: segment must be a multiple of the model's stride {model.stride}, got {segment!r}.")
    segment = min(int(segment), -(-T // model.stride) * model.stride)
    count, rest = divmod(T, segment)
    out_steps = [_output_steps(model, params, carry, xs, steps) for steps in (segment, rest)]
    _check_extras(extras, T, count * out_steps[0] + out_steps[1])

    def piece(state: tuple[Carry, Any], inputs: tuple) -> tuple[tuple[Carry, Any], None]:
        (carry, total), (index, *flat) = state, inputs
        xs, mask, resets, extras = jax.tree.map(
            lambda a, like: a.reshape(a.shape[0], *like.shape[1:]), tuple(flat), sliced
        )
        piece_key = None if key is None else jax.random.fold_in(key, index)
        carry, ys = model.apply(params, carry, xs, mask=mask, resets=resets, key=piece_key)
        return (carry, fn(total, ys) if extras is None else fn(total, ys, extras)), None

    def whole(array: Array) -> Array:
        steps = _steps_of(array, T, segment, out_steps[0])
        return flat_pieces(array[: count * steps], steps)

    def remainder(array: Array) -> Array:
        return array[count * _steps_of(array, T, segment, out_steps[0]) :]

    params, state, sliced = varying_alike(params, (carry, init), (xs, mask, resets, extras))
    if count:
        # inside a scan, the loop itself keeps XLA from merging the two forward passes
        body = jax.checkpoint(piece, prevent_cse=False)
        pieces = (jnp.arange(count), *jax.tree.map(whole, sliced))
        state, _ = jax.lax.scan(body, step_alike(piece, state, pieces), pieces)
    if rest:
        state, _ = jax.checkpoint(piece)(state, (jnp.asarray(count), *jax.tree.map(remainder, sliced)))
    return state


def _steps_of(array: Array, T: int, segment: int, output_segment: int) -> int:
    """Entries of `array` in a segment: as many as those of `xs`, or of the outputs."""
    return segment if array.shape[0] == T else output_segment


def _output_steps(model: Layer, params: Params, carry: Carry, xs: Array, steps: int) -> int:
    """The number of outputs for `steps` inputs, without computing them."""
    if steps == 0:
        return 0
    _, ys = jax.eval_shape(lambda params, carry, xs: model.apply(params, carry, xs[:steps]), params, carry, xs)
    return ys.shape[0]


def _check_extras(extras: Any, T: int, outputs: int) -> None:
    for leaf in jax.tree.leaves(extras):
        if jnp.ndim(leaf) < 1 or leaf.shape[0] not in (T, outputs):
            raise ValueError(
                f"extras are sliced along axis 0 with the outputs: expected {outputs} steps"
                f"{'' if outputs == T else f' (or {T}, as xs)'}, got shape {jnp.shape(leaf)}."
            )
