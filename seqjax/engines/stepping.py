# SPDX-License-Identifier: Apache-2.0
"""Masks, resets and keys around a cell's step: the engines' business, done once for all cells."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Array, Carry, Cell, Key, Mask, Params, Resets, Shape
from seqjax.dtypes import at_least_float32
from seqjax.sequences import check_sequence


class Steps(NamedTuple):
    """What varies over time: one step of it inside a loop, all steps `[T, ...]` outside."""

    x: Any  # array; None where only the flags go along
    mask: Mask
    reset: Resets
    key: Key


def prepare(
    cell: Cell, params: Params, carry: Carry, xs: Array, mask: Mask, resets: Resets, key: Key
) -> tuple[Params, Carry | None, Carry, Steps]:
    """What a run is made of, checked: params, the initial carry if there are resets to it, the carry, the steps.

    Raises:
      ValueError: a wrong rank, mask or resets; a carry of another batch; a training mask for a
        cell that mixes the sequences of a batch.
    """
    initial = check_run(cell, params, carry, xs, mask, resets)
    if cell.couples_batch and mask is not None and key is not None:
        raise ValueError(
            f"{cell!r} cannot be trained with a mask: the batch statistics of a step would mix in its padding; "
            "use normalize='layer', or batches of sequences of one length."
        )
    keys = jax.random.split(key, xs.shape[0]) if key is not None and cell.stochastic else None
    x, mask, resets = jax.tree.map(jnp.asarray, (xs, mask, resets))  # NumPy's arrays have no traced indices
    return varying_alike(params, None if resets is None else initial, carry, Steps(x, mask, resets, keys))


def varying_alike(*trees: Any) -> tuple:
    """The trees, inside `jax.shard_map` with the types that a loop's carry needs: all arrays vary over the axes over
    which any does. A batch differs from device to device; an initial carry of zeros would not."""

    def axes(leaf: Array) -> frozenset[str]:
        return jax.typeof(leaf).manual_axis_type.varying

    every = frozenset().union(*map(axes, jax.tree.leaves(trees)))

    def vary(leaf: Array) -> Array:
        missing = tuple(every - axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, trees)


def check_run(cell: Cell, params: Params, carry: Carry, xs: Array, mask: Mask, resets: Resets) -> Carry:
    """Refuses what `cell` cannot be run on, and returns its initial carry.

    Raises:
      ValueError: a wrong rank, mask or resets; another cell's params; a carry of another batch.
    """
    check_sequence(xs, mask, resets, features=True)
    check_params(cell, params, xs.shape[-1])
    batch_shape = xs.shape[1:-1]
    initial = cell.initial_carry(params, batch_shape)
    check_carry(carry, initial, batch_shape)
    return initial


def check_params(cell: Cell, params: Params, in_dim: int) -> None:
    """Refuses params that a cell of other options or sizes has: what they lack, or have beside, would be left out
    silently.

    Params that are no NamedTuple are not looked at: other cells may not be able to draw any.

    Raises:
      ValueError: naming what was given and what was expected.
    """
    if not hasattr(params, "_fields"):
        return
    expected = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_dim))
    if not hasattr(expected, "_fields"):
        return
    if type(params) is not type(expected):
        raise ValueError(
            f"{cell!r} has params {type(expected).__name__}, got {type(params).__name__}; "
            "take those of its init, or of an importer."
        )
    for name, given, wanted in zip(expected._fields, params, expected, strict=True):
        if (given is None) != (wanted is None):
            raise ValueError(
                f"{cell!r} has {'no ' if wanted is None else ''}{name} with these options, and the params have "
                f"{'none' if given is None else 'one'}; give the cell the options that the params were drawn with."
            )
        shape, size = jax.tree.map(jnp.shape, given), jax.tree.map(lambda a: a.shape, wanted)
        if shape != size:
            raise ValueError(
                f"{cell!r} has, for inputs of {in_dim} features (axis -1 of xs), {name} of shape {size}, got {shape}; "
                "params, cell and inputs must be of the sizes that the params were drawn with."
            )


def check_carry(carry: Carry, expected: Carry, batch_shape: Shape) -> None:
    """Refuses a carry of another structure, shape or dtype than a run starts from.

    Raises:
      ValueError: naming both.
    """
    given, wanted = (jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a).name), c) for c in (carry, expected))
    if jax.tree.structure(carry) != jax.tree.structure(expected) or given != wanted:  # type: ignore[operator]
        raise ValueError(
            f"the carry does not fit xs with batch shape {batch_shape}: expected {wanted}, got {given}; "
            "start from initial_carry(params, batch_shape)."
        )


def expand(flag: Array, like: Array) -> Array:
    """`flag [...]` with trailing axes, to select between arrays `[..., ...]` like `like`."""
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def select(flag: Array | None, on_true: Any, on_false: Any) -> Any:
    """`where` over pytrees, by a flag of batch shape; `on_true` if there is no flag."""
    if flag is None:
        return on_true
    return jax.tree.map(lambda a, b: jnp.where(expand(flag, a), a, b), on_true, on_false)


def zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def no_cotangents(tree: Any) -> Any:
    """Cotangents of zero, to be added to; those of what is not differentiable are JAX's float0."""

    def zero(leaf: Array) -> Any:
        differentiable = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.zeros_like(leaf) if differentiable else np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.map(zero, tree)


def add(tree: Any, other: Any) -> Any:
    """The sum of two pytrees of cotangents; what is not differentiable has none, and stays as it is."""
    return jax.tree.map(lambda a, b: a if b.dtype == jax.dtypes.float0 else a + b, tree, other)


def without_float0(tree: Any) -> Any:
    """`None` for the cotangents of what is not differentiable."""
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, tree)


def reset(initial: Carry | None, carry: Carry, step: Steps) -> Carry:
    """The carry that a step sees: the initial one at a reset."""
    return carry if step.reset is None else select(step.reset, initial, carry)


def visible(steps: Steps) -> Array:
    """The inputs with padding replaced by zeros, so that it poisons nothing."""
    return select(steps.mask, steps.x, zeros_like(steps.x))


def leave(before: Carry, after: Carry, y: Array, step: Steps) -> tuple[Carry, Array]:
    """The carry kept and the output zero where the step is masked."""
    return select(step.mask, after, before), select(step.mask, y, zeros_like(y))


def masked_step(cell: Cell, params: Params, initial: Carry | None, carry: Carry, step: Steps) -> tuple[Carry, Array]:
    """`cell.step` on one step of input, with its mask, reset and key."""
    before = reset(initial, carry, step)
    after, y = cell.step(params, before, cell.project(params, visible(step)), step.key)
    return leave(before, after, y, step)


def cut(tree: Any, T: int) -> tuple[Any, Any]:
    """The first `T` steps of every array, and those after them."""
    return jax.tree.map(lambda a: a[:T], tree), jax.tree.map(lambda a: a[T:], tree)


def delayed(ys: Array, first: Array) -> Array:
    """`ys` one step later: `first`, then all but the last."""
    return jnp.concatenate([first[None], ys[:-1]])


def join(pieces: Array) -> Array:
    """Pieces `[count, size, ...]` as one sequence."""
    return pieces.reshape(pieces.shape[0] * pieces.shape[1], *pieces.shape[2:])  # -1 is no size for an empty batch


def loop(step: Callable[..., tuple[Any, Any]], carry: Any, xs: Any, **options: Any) -> tuple[Any, Any]:
    """`lax.scan`. On CPU it stacks narrow floats as float32 and rounds them back, which loses nothing: XLA there knows
    no bfloat16, and would convert the whole stack to float32 and back at every step."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(step, carry, xs, **options)
    dtypes: list[Any] = []

    def widened(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = step(carry, x)
        dtypes[:] = [jax.tree.map(lambda a: a.dtype, y)]
        return carry, jax.tree.map(_wide, y)

    carry, ys = jax.lax.scan(widened, carry, xs, **options)
    return carry, jax.tree.map(lambda a, dtype: a if a.dtype == dtype else a.astype(dtype), ys, dtypes[0])


def _wide(a: Array) -> Array:
    return a.astype(at_least_float32(a.dtype)) if jnp.issubdtype(a.dtype, jnp.floating) else a


def scan_pieces(
    body: Callable[..., tuple[Any, tuple[Any, Any]]],
    carry: Any,
    steps: Any,
    size: int,
    beside: Any = None,
    *,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, Any]]:
    """`lax.scan` over pieces of a sequence.

    Pieces enter and leave the loop without axes of size 1: XLA may give pieces with one, a batch of one say,
    a layout that is no view of the whole, and copy it.

    Args:
      body: `body(carry, piece, beside) -> (carry, (outputs, kept))`.
      carry: what goes from piece to piece.
      steps: pytree of `[T, ...]`.
      size: steps in a piece; it divides T.
      beside: pytree of `[T / size, ...]`, an entry for each piece.
      reverse: last piece first.

    Returns:
      The carry, the outputs of all steps `[T, ...]`, and what is kept of each piece `[T / size, ...]`.
    """
    shapes: list[Any] = []

    def piece(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        flat, beside = inputs
        shaped = jax.tree.map(lambda a, like: a.reshape(size, *like.shape[1:]), flat, steps)
        carry, (outputs, kept) = body(carry, shaped, beside)
        shapes[:] = [jax.tree.map(lambda a: a.shape[1:], outputs)]
        return carry, (jax.tree.map(lambda a: a.reshape(size, *_long(a)), outputs), kept)

    flat = jax.tree.map(lambda a: a.reshape(a.shape[0] // size, size, *_long(a)), steps)
    carry, (outputs, kept) = loop(piece, carry, (flat, beside), reverse=reverse)
    return carry, (jax.tree.map(lambda a, shape: a.reshape(a.shape[0] * size, *shape), outputs, shapes[0]), kept)


def _long(a: Array) -> list[int]:
    """The sizes of all axes but the first, without ones."""
    return [size for size in a.shape[1:] if size != 1]
