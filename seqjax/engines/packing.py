# SPDX-License-Identifier: Apache-2.0
"""What a loop stores of a step, in few arrays: off the CPU each array is a launch at every step."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array


class Group(NamedTuple):
    """Arrays that are alike but for their last axis: which, and where each but the last ends on it."""

    members: tuple[int, ...]
    ends: tuple[int, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure", "groups"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """A pytree whose arrays lie side by side. Axes may be added in front, as loops do, and are left by `unpack`."""

    arrays: tuple[Array, ...]
    structure: Any
    groups: tuple[Group, ...]


def pack(tree: Any) -> Packed:
    """Puts arrays of one dtype, whose axes are the same but for the last, side by side on it.

    On CPU every array stays by itself: slices of an array that a loop reads are not vectorized there.

    >>> packed = pack({"gates": jnp.ones((2, 3)), "h": jnp.zeros((2, 4))})
    >>> len(packed.arrays) == (2 if jax.default_backend() == "cpu" else 1)
    True
    """
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[Any, list[int]] = {}
    for k, leaf in enumerate(leaves):
        alike.setdefault(_kind(leaf) or k, []).append(k)
    groups, arrays = [], []
    for members in alike.values():
        pieces = [leaves[k] for k in members]
        ends = itertools.accumulate(piece.shape[-1] for piece in pieces[:-1])
        groups.append(Group(tuple(members), tuple(ends)))
        arrays.append(jnp.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])
    return Packed(tuple(arrays), structure, tuple(groups))


def _kind(leaf: Array) -> tuple[Any, ...] | None:
    """What arrays must have in common to lie side by side; `None` where `leaf` stays alone."""
    spread = jax.typeof(leaf).sharding.spec
    if jax.default_backend() == "cpu" or not leaf.ndim or spread[-1] is not None:
        return None
    return leaf.shape[:-1], leaf.dtype, spread


def unpack(packed: Packed) -> Any:
    """The tree that was packed.

    >>> unpack(pack({"gates": jnp.ones((2, 3)), "h": jnp.zeros((2, 4))}))["h"].shape
    (2, 4)
    """
    leaves: dict[int, Array] = {}
    for array, group in zip(packed.arrays, packed.groups, strict=True):
        pieces = jnp.split(array, group.ends, axis=-1) if group.ends else [array]
        leaves.update(zip(group.members, pieces, strict=True))
    return jax.tree.unflatten(packed.structure, [leaves[k] for k in sorted(leaves)])
