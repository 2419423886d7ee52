# SPDX-License-Identifier: Apache-2.0
"""What a loop stores of a step for its transpose: in few arrays, and nothing that is stored as an output anyway."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry
from seqjax.machine import platform


class Group(NamedTuple):
    """Arrays that differ only in their last axis: which ones, and where on it each of them but the last ends."""

    members: tuple[int, ...]
    ends: tuple[int, ...]


class Place(NamedTuple):
    """Which of a step's residuals are stored elsewhere."""

    output: tuple[int, ...]  # those that are the step's output
    previous: tuple[int, ...]  # those that are the previous step's output
    carried: int | None  # the leaf of the carry that passes that output on


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure", "groups", "place"]
)
@dataclasses.dataclass(frozen=True)
class Stored:
    """The residuals of one step or, with leading axes as loops add them, of many."""

    arrays: tuple[Array, ...]
    structure: Any
    groups: tuple[Group, ...]
    place: Place

    @property
    def all_here(self) -> bool:
        """Whether `recall` needs no outputs."""
        return not self.place.output and not self.place.previous


def store(residuals: Any, before: Carry, after: Carry, y: Array) -> Stored:
    """What has to be stored of a step's residuals, given that its output is stored anyway.

    An array is left out if it is the output itself, or the part of the carry before the step that was the previous
    step's output: the same object, not an equal one. Other arrays with the same dtype and the same axes except the
    last are put side by side on it. On CPU, though, every array is kept separate, as operations on slices of an array
    that a loop reads are not vectorized there.

    Args:
      residuals: a pytree.
      before, after: the carry that the loop hands to the step, and the one it continues with.
      y: the output that the loop stores.

    >>> h, y = jnp.zeros((2, 4)), jnp.ones((2, 4))
    >>> [array.shape for array in store((y, h, h + 1), (h,), (y,), y).arrays]
    [(2, 4)]
    """
    leaves, structure = jax.tree.flatten(residuals)
    carries = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    carried = next((k for k, (_, next_leaf) in enumerate(carries) if next_leaf is y), None)
    previous_y = None if carried is None else jax.tree.leaves(before)[carried]
    output = tuple(k for k, leaf in enumerate(leaves) if leaf is y)
    previous = tuple(k for k, leaf in enumerate(leaves) if leaf is previous_y)
    alike: dict[Any, list[int]] = {}
    for k, leaf in enumerate(leaves):
        if k not in output + previous:
            alike.setdefault(_kind(leaf) or k, []).append(k)
    groups, arrays = [], []
    for members in alike.values():
        pieces = [leaves[k] for k in members]
        ends = itertools.accumulate(piece.shape[-1] for piece in pieces[:-1])
        groups.append(Group(tuple(members), tuple(ends)))
        arrays.append(jnp.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])
    return Stored(tuple(arrays), structure, tuple(groups), Place(output, previous, carried))


def _kind(leaf: Array) -> tuple[Any, ...] | None:
    """What arrays must have in common to be put side by side; `None` if `leaf` is kept separate."""
    spread = jax.typeof(leaf).sharding.spec
    if platform() == "cpu" or not leaf.ndim or spread[-1] is not None:
        return None
    return leaf.shape[:-1], leaf.dtype, spread


def recall(stored: Stored, y: Array | None, previous_y: Array | None) -> Any:
    """The residuals of as many steps as there are outputs; `y` and `previous_y` may be `None` if `all_here`.

    >>> h, y = jnp.zeros((2, 4)), jnp.ones((2, 4))
    >>> [float(a[0, 0]) for a in recall(store((y, h, h + 2), (h,), (y,), y), y, h)]
    [1.0, 0.0, 2.0]
    """
    leaves: dict[int, Any] = dict.fromkeys(stored.place.output, y) | dict.fromkeys(stored.place.previous, previous_y)
    for array, group in zip(stored.arrays, stored.groups, strict=True):
        pieces = jnp.split(array, group.ends, axis=-1) if group.ends else [array]
        leaves.update(zip(group.members, pieces, strict=True))
    return jax.tree.unflatten(stored.structure, [leaves[k] for k in sorted(leaves)])
