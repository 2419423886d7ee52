# SPDX-License-Identifier: Apache-2.0
"""Masks, resets and keys around a cell's step, which engines handle once for all cells."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Key, Mask, Params, Resets
from seqjax.engines.steps.checks import check_run
from seqjax.sequences import expand, hide
from seqjax.spread import batch_alike, varying_alike
from seqjax.trees import tree_bytes


class Steps(NamedTuple):
    """What varies over time: a single step inside a loop, all steps `[T, ...]` outside."""

    x: Any  # array; None where only the flags are needed
    mask: Mask
    reset: Resets
    key: Key


def prepare(
    cell: Cell, params: Params, carry: Carry, xs: Array, mask: Mask, resets: Resets, key: Key
) -> tuple[Params, Carry | None, Carry, Steps]:
    """The checked parts of a run: params, the initial carry (if there are resets), the carry and the steps.

    Raises:
      ValueError: a wrong rank, mask or resets; a carry for another batch; in training, a mask for a
        cell that mixes the sequences of a batch.
    """
    initial = check_run(cell, params, carry, xs, mask, resets)
    if cell.couples_batch and mask is not None and key is not None:
        raise ValueError(
            f"{cell!r} cannot be trained with a mask: the batch statistics of a step would mix in its padding; "
            "use normalize='layer', or batches of sequences of one length."
        )
    require.key(repr(cell), key)
    keys = jax.random.split(key, xs.shape[0]) if key is not None and cell.stochastic else None
    x, mask, resets = jax.tree.map(jnp.asarray, (xs, mask, resets))  # NumPy arrays cannot be indexed by tracers
    initial, carry = batch_alike((None if resets is None else initial, carry), x)
    return varying_alike(params, initial, carry, Steps(x, mask, resets, keys))


def input_and_output_bytes(cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> int:
    """Bytes of a step's input and output, estimated from shapes."""

    def step(params: Params, carry: Carry, x: Array) -> Array:
        return cell.step(params, carry, cell.project(params, x))[1]

    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    return tree_bytes((x, jax.eval_shape(step, params, carry, x)))


def select(flag: Array | None, on_true: Any, on_false: Any) -> Any:
    """`where` over pytrees, by a flag with the batch's shape; `on_true` if there is no flag."""
    if flag is None:
        return on_true
    return jax.tree.map(lambda a, b: jnp.where(expand(flag, a), a, b), on_true, on_false)


def reset(initial: Carry | None, carry: Carry, step: Steps) -> Carry:
    """The carry that a step sees: the initial one at a reset."""
    return carry if step.reset is None else select(step.reset, initial, carry)


def visible(steps: Steps) -> Array:
    """The inputs with padding replaced by zeros, so that NaN there cannot spread."""
    return hide(steps.x, steps.mask)


def leave(before: Carry, after: Carry, y: Array, step: Steps) -> tuple[Carry, Array]:
    """The carry and output of a step; where it is masked, the carry before it and zeros."""
    return select(step.mask, after, before), hide(y, step.mask)


def masked_step(cell: Cell, params: Params, initial: Carry | None, carry: Carry, step: Steps) -> tuple[Carry, Array]:
    """`cell.step` on one step of input, with its mask, reset and key."""
    before = reset(initial, carry, step)
    after, y = cell.step(params, before, cell.project(params, visible(step)), step.key)
    return leave(before, after, y, step)
