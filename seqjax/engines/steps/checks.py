# SPDX-License-Identifier: Apache-2.0
"""Checks that every run must pass, whatever the engine."""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Mask, Params, Resets, Shape
from seqjax.sequences import check_sequence


def check_run(cell: Cell, params: Params, carry: Carry, xs: Array, mask: Mask, resets: Resets) -> Carry:
    """Rejects arguments that `cell` cannot be run on, and returns its initial carry.

    Raises:
      ValueError: a wrong rank, mask or resets; another cell's params; a carry for another batch.
    """
    check_sequence(xs, mask, resets, features=True)
    check_params(cell, params, xs.shape[-1])
    batch_shape = xs.shape[1:-1]
    initial = cell.initial_carry(params, batch_shape)
    check_carry(carry, initial, batch_shape)
    return initial


def check_params(cell: Cell, params: Params, in_dim: int) -> None:
    """Rejects params drawn by a cell with other options or sizes, as missing or extra arrays would otherwise be ignored
    silently.

    Not checked: params that are not a tuple, list or dict, and those of cells that cannot draw any or that draw
    something other than a NamedTuple.

    Raises:
      ValueError: naming what was given and what was expected.
    """
    if not isinstance(params, (tuple, list, dict)) or not isinstance(in_dim, int):
        return
    expected: Any
    try:
        expected = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_dim))
    except NotImplementedError:
        return
    except ValueError:
        if hasattr(params, "_fields"):
            raise
        return
    names = getattr(expected, "_fields", None)
    if names is None:
        return
    if type(params) is not type(expected):
        raise ValueError(
            f"{cell!r} has params {type(expected).__name__}, got {type(params).__name__}; "
            "take those of its init, or of an importer."
        )
    for name, given, wanted in zip(names, params, expected, strict=True):
        if (given is None) != (wanted is None):
            raise ValueError(
                f"{cell!r} has {'no ' if wanted is None else ''}{name} with these options, and the params have "
                f"{'none' if given is None else 'one'}; give the cell the options that the params were drawn with."
            )
        if jax.tree.structure(given) != jax.tree.structure(wanted):  # type: ignore[operator]  # e.g. sparse
            continue
        shape, size = jax.tree.map(jnp.shape, given), jax.tree.map(lambda a: a.shape, wanted)
        if shape != size:
            raise ValueError(
                f"{cell!r} has, for inputs of {in_dim} features (axis -1 of xs), {name} of shape {size}, got {shape}; "
                "params, cell and inputs must have the sizes that the params were drawn with."
            )


def check_carry(carry: Carry, expected: Carry, batch_shape: Shape) -> None:
    """Rejects a carry whose structure, shapes or dtypes differ from those of the initial carry.

    Raises:
      ValueError: naming both.
    """
    given, wanted = (jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a).name), c) for c in (carry, expected))
    if jax.tree.structure(carry) != jax.tree.structure(expected) or given != wanted:  # type: ignore[operator]
        raise ValueError(
            f"the carry does not fit xs with batch shape {batch_shape}: expected {wanted}, got {given}; "
            "start from initial_carry(params, batch_shape)."
        )
