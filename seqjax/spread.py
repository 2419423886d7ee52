# SPDX-License-Identifier: Apache-2.0
"""How arrays are spread over devices where their types say so: on a mesh with explicit axes, and in `jax.shard_map`.

There, JAX gives newly made arrays (zeros, random draws) the type of an array that is whole on every device. Loops,
selections and concatenations reject such an array next to ones that are spread.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from seqjax.base import Array


def in_explicit_mesh() -> bool:
    """Whether `jax.set_mesh` has set a mesh with explicit axes."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def is_spread(array: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the type of `array` says that it is spread over the explicit axes of a mesh."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def alike(tree: Any, like: Any) -> Any:
    """`tree` with its arrays spread like those of `like`, under a mesh with explicit axes."""
    if not in_explicit_mesh():
        return tree
    return jax.tree.map(lambda leaf, other: _over(leaf, jax.typeof(other).sharding.spec), tree, like)


def batch_alike(carries: Any, x: Array) -> Any:
    """Carries `[..., H]`; under a mesh with explicit axes, spread like the batch of `x [T, ..., D]`, as a loop
    requires."""
    batch = jax.typeof(x).sharding.spec[1:-1]
    if not in_explicit_mesh() or all(axis is None for axis in batch):
        return carries
    return jax.tree.map(lambda leaf: _over(leaf, (*batch, *jax.typeof(leaf).sharding.spec[len(batch) :])), carries)


def step_alike(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> Any:
    """`carry` spread as `step` returns it, as `lax.scan(step, carry, xs)` requires under a mesh with explicit axes."""
    if not in_explicit_mesh():
        return carry
    first = jax.eval_shape(lambda carry, xs: step(carry, jax.tree.map(lambda a: a[0], xs))[0], carry, xs)
    return alike(carry, first)


def varying_alike(*trees: Any) -> tuple:
    """The trees with the types that a loop's carry needs inside `jax.shard_map`: every array varies over all axes over
    which any of them does. A batch differs from device to device; an initial carry of zeros would not."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return trees

    def axes(leaf: Array) -> frozenset[str]:
        return jax.typeof(leaf).manual_axis_type.varying

    every = frozenset().union(*map(axes, jax.tree.leaves(trees)))

    def vary(leaf: Array) -> Array:
        missing = tuple(every - axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, trees)


def _over(array: Array, axes: tuple) -> Array:
    """`array` spread over `axes`: a mesh axis or `None` for each axis of its own."""
    spec = PartitionSpec(*axes)
    return array if jax.typeof(array).sharding.spec == spec else jax.sharding.reshard(array, spec)
