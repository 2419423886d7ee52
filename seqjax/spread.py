# SPDX-License-Identifier: Apache-2.0
"""How arrays are spread over devices where their types say so: on a mesh with explicit axes, and in `jax.shard_map`.

There, JAX gives newly made arrays (zeros, random draws) the type of an array that is whole on every device. Loops,
selections and concatenations reject such an array next to ones that are spread.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from seqjax.base import Array


def explicit_mesh(tree: Any) -> AbstractMesh | None:
    """The mesh with explicit axes that `jax.set_mesh` has set or on which an array of `tree` lies, if there is one."""
    on = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree))
    meshes = (jax.sharding.get_abstract_mesh(), *on)
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def is_spread(array: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the type of `array` says that it is spread over the explicit axes of a mesh."""
    return any(axis is not None for axis in _spec(array))


def alike(tree: Any, like: Any) -> Any:
    """`tree` with its arrays spread like those of `like`, on a mesh with explicit axes."""
    mesh = explicit_mesh(like)
    return tree if mesh is None else _over(mesh, tree, jax.tree.map(_spec, like), like)


def batch_alike(carries: Any, x: Array) -> Any:
    """Carries `[..., H]`; on a mesh with explicit axes, spread like the batch of `x [T, ..., D]`. A loop requires it
    where that mesh is set, and elsewhere would gather the carry at every step."""
    mesh, batch = explicit_mesh(x), _spec(x)[1:-1]
    if mesh is None or all(axis is None for axis in batch):
        return carries
    specs = jax.tree.map(lambda leaf: PartitionSpec(*batch, *_spec(leaf)[len(batch) :]), carries)
    return _over(mesh, carries, specs, x)


def zeros(shapes: Any, beside: Any) -> Any:
    """Zeros of the shapes and dtypes of `shapes`, spread as these say, for a loop over the arrays `beside`."""
    arrays, mesh = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), explicit_mesh(beside)
    if mesh is not None:
        arrays = _over(mesh, arrays, jax.tree.map(_spec, shapes), beside)
    return varying_alike(arrays, beside)[0]


def step_alike(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> Any:
    """`carry` spread as `step` returns it, as `lax.scan(step, carry, xs)` requires on a mesh with explicit axes."""
    mesh = explicit_mesh(xs)
    if mesh is None:
        return carry
    first = jax.eval_shape(lambda carry, xs: step(carry, jax.tree.map(lambda a: a[0], xs))[0], carry, xs)
    return _over(mesh, carry, jax.tree.map(_spec, first), xs)


def constants(params: Any, x: Array) -> Any:
    """`params` as the body of a loop over `x` takes them. Of arrays that are whole on every device, JAX 0.11 would
    forget in the loop's transpose on which mesh they lie, unless that mesh is set."""
    mesh = explicit_mesh(x)
    if mesh is None or mesh == jax.sharding.get_abstract_mesh():
        return params
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, NamedSharding(mesh, _spec(leaf))), params)


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


def _spec(array: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
    """How `array` is spread: a mesh axis or `None` for each axis of its own."""
    return jax.typeof(array).sharding.spec


def _over(mesh: AbstractMesh, tree: Any, specs: Any, beside: Any) -> Any:
    """`tree` spread over `specs` of `mesh`. Where the mesh is not set and nothing is compiled, JAX finds its devices by
    the arrays `beside`, which lie on it."""
    leaves, structure = jax.tree.flatten(tree)
    shardings = tuple(NamedSharding(mesh, spec) for spec in jax.tree.leaves(specs))
    return jax.tree.unflatten(structure, _leaves_over(shardings, leaves, beside))


@functools.partial(jax.jit, static_argnums=0, keep_unused=True, inline=True)
def _leaves_over(shardings: tuple[NamedSharding, ...], leaves: list[Array], beside: Any) -> list[Array]:
    return [
        leaf if _spec(leaf) == sharding.spec else jax.sharding.reshard(leaf, sharding)
        for leaf, sharding in zip(leaves, shardings, strict=True)
    ]
