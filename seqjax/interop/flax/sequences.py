# SPDX-License-Identifier: Apache-2.0
"""Flax's conventions for a recurrent layer (batch first, lengths, reversal), around a seqjax engine."""

from typing import Any

import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Engine, Key, Params, Shape
from seqjax.engines.auto import Auto
from seqjax.engines.scan import Scan
from seqjax.sequences import mask_from_lengths


def time_axis(owner: str, inputs: Array, time_major: bool) -> int:
    """The time axis of `[..., T, D]`, or of `[T, ..., D]`.

    Raises:
      ValueError: fewer than two axes.
    """
    if inputs.ndim < 2:
        raise ValueError(f"{owner} needs inputs with at least a time and a feature axis, got shape {inputs.shape}.")
    return 0 if time_major else inputs.ndim - 2


def batch_shape(owner: str, inputs: Array, time_major: bool) -> Shape:
    """The axes of `inputs` that are neither time nor features."""
    axis = time_axis(owner, inputs, time_major)
    return inputs.shape[:axis] + inputs.shape[axis + 1 : -1]


def run_sequence(
    owner: str,
    engine: Engine,
    cell: Cell,
    params: Params,
    carry: Carry,
    inputs: Array,
    *,
    seq_lengths: Array | None,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
    key: Key = None,
) -> tuple[Carry, Array]:
    """Runs a cell over a padded batch as Flax lays it out.

    Args:
      owner: the name of the layer in messages.
      engine, cell, params, carry, key: as for `Engine.run`.
      inputs: `[..., T, D]`, or with `time_major` `[T, ..., D]`.
      seq_lengths: `[...]` int, the number of valid steps in each sequence, from 0 to T.
      time_major: whether time is axis 0.
      reverse: whether each sequence is run from its last valid step to its first; padding stays at the end.
      keep_order: whether outputs of a reversed run are put back into the order of the inputs.

    Returns:
      The carry after each sequence's last valid step (the initial one for a length of 0), and outputs laid
      out like `inputs`, with zeros in the padding.

    Raises:
      ValueError: lengths that are not integers with the batch's shape.
    """
    axis = time_axis(owner, inputs, time_major)
    xs = jnp.moveaxis(inputs, axis, 0)
    T, batch = xs.shape[0], xs.shape[1:-1]
    mask = lengths = None
    if seq_lengths is not None:
        lengths = jnp.asarray(seq_lengths)
        if lengths.shape != batch:
            raise ValueError(f"{owner}: seq_lengths must have the batch's shape {batch}, got {lengths.shape}.")
        if jnp.issubdtype(lengths.dtype, jnp.integer):
            lengths = lengths.astype(int)  # whatever their width, the comparison with steps is exact
        mask = mask_from_lengths(lengths, T)
    if reverse:
        xs = flip(xs, lengths)
    carry, ys = engine.run(cell, params, carry, xs, mask=mask, key=key)
    if reverse and keep_order:
        ys = flip(ys, lengths)
    return carry, jnp.moveaxis(ys, 0, axis)


def flip(xs: Array, lengths: Array | None) -> Array:
    """`xs [T, ..., D]` backwards in time, each sequence within its length; padding stays where it is.

    >>> flip(jnp.array([[1], [2], [0]]), jnp.array(2)).ravel().tolist()
    [2, 1, 0]
    """
    if lengths is None:
        return jnp.flip(xs, 0)
    T = xs.shape[0]
    steps = jnp.arange(T).reshape((T,) + (1,) * lengths.ndim)
    lengths = jnp.clip(lengths, 0, T)
    source = jnp.where(steps < lengths, lengths - 1 - steps, steps)
    return jnp.take_along_axis(xs, source[..., None], axis=0)


def engine_for(owner: str, engine: Engine, unroll: int) -> Engine:
    """The engine for Flax's `unroll`, which is an option of the loop here.

    Raises:
      ValueError: an unroll along with an engine, which may not be a loop at all.
    """
    if unroll == 1:
        return engine
    if engine != Auto():
        raise ValueError(
            f"{owner}: unroll={unroll} belongs to the engine, got engine={engine!r}; give Scan(unroll={unroll})."
        )
    return Scan(unroll=unroll)


def refuse_scan_options(owner: str, **options: tuple[Any, Any]) -> None:
    """Rejects options of `flax.linen.scan` and `flax.nnx.scan` that have no meaning under an engine.

    Raises:
      ValueError: naming the option, what was given and the default.
    """
    for name, (given, default) in options.items():
        if given != default:
            raise ValueError(
                f"{owner}: {name}={given!r} is an option of Flax's scan and means nothing to a seqjax engine; leave it "
                f"at {default!r}, or use Flax's RNN for cells with state of their own."
            )
