# SPDX-License-Identifier: Apache-2.0
"""What engines and layers on the devices of a mesh share: how things lie on them, and checks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqjax.base import Carry, Cell, Key, Params, Shape, code
from seqjax.engines.convergence import Solution
from seqjax.engines.stepping import Steps
from seqjax.spread import in_explicit_mesh

Spec = Any
"""A `PartitionSpec`, in the place of an array or of a pytree of arrays."""


class Layout(NamedTuple):
    """A mesh, the axis of it that the work is split over, and the one for the batch, if any."""

    mesh: Mesh
    axis: str
    batch_axis: str | None

    @property
    def devices(self) -> int:
        """Devices on the axis."""
        return self.mesh.shape[self.axis]

    @property
    def batch_devices(self) -> int:
        """Devices that the batch is split over."""
        return 1 if self.batch_axis is None else self.mesh.shape[self.batch_axis]

    def spec(self, *leading: str | None) -> Spec:
        """The spec of arrays whose first axes are split over `leading`, and the next is the batch."""
        return PartitionSpec(*leading) if self.batch_axis is None else PartitionSpec(*leading, self.batch_axis)

    @property
    def split(self) -> Spec:
        """The spec of `[T, B, ...]`, or of whatever has an entry for each device of the axis."""
        return self.spec(self.axis)

    @property
    def batch(self) -> Spec:
        """The spec of `[B, ...]`, on all devices of the axis."""
        return self.spec()

    @property
    def everywhere(self) -> Spec:
        """The spec of what all devices have."""
        return PartitionSpec()

    @property
    def steps(self) -> Spec:
        """The specs of `Steps` that are split over time."""
        keys: Spec = PartitionSpec(self.axis)
        return Steps(self.split, self.split, self.split, keys)

    def admit(self, tree: Any, spec: Spec) -> Any:
        """Arrays that lie on a mesh with explicit axes, moved to `spec` on this one; others as they are.

        `map` would take them unmoved, but their cotangents must have the type that they have, which the transpose of
        `device_put` gives back.
        """

        def leaf(array: jax.Array) -> jax.Array:
            explicit = AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types
            return jax.device_put(array, NamedSharding(self.mesh, spec)) if explicit else array

        return jax.tree.map(leaf, tree)

    def map(self, fn: Callable, in_specs: Spec, out_specs: Spec) -> Callable:
        """`fn` run on each device with its part of the arguments.

        JAX's check of what is replicated is off: it refuses loops that start from constants, and a
        cell may hold any.
        """
        return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def sum(self, tree: Any) -> Any:
        """The sum over all devices of what each has computed from its part."""
        names = (self.axis,) if self.batch_axis is None else (self.axis, self.batch_axis)
        return jax.tree.map(lambda a: jax.lax.psum(a, names), tree)


def automatic(owner: str, mesh: Mesh, axis: str, batch_axis: str | None) -> Mesh:
    """`mesh` with automatic axes, if it has the axes that are named.

    Raises:
      ValueError: naming the axis and those of the mesh.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"{owner}: mesh must be a jax.sharding.Mesh, as jax.make_mesh makes it, got {mesh!r}.")
    for name, given in (("axis", axis), ("batch_axis", batch_axis)):
        if given not in mesh.axis_names and not (given is None and name == "batch_axis"):
            raise ValueError(f"{owner}: {name} must be one of the mesh's axes {list(mesh.axis_names)}, got {given!r}.")
    if axis == batch_axis:
        raise ValueError(f"{owner}: axis and batch_axis must be two axes of the mesh, both are {axis!r}.")
    return Mesh(mesh.devices, mesh.axis_names)


def code_with_mesh(value: Any) -> str:
    """`base.code`, the mesh written by its axes.

    >>> import jax
    >>> from seqjax.engines.sharded import Sharded
    >>> Sharded(jax.make_mesh((1,), ("time",)), "time")
    Sharded(Mesh(time=1), 'time')
    """
    axes = ", ".join(f"{name}={size}" for name, size in value.mesh.shape.items())
    return code(value).replace(repr(value.mesh), f"Mesh({axes})")


def check_split(owner: Any, layout: Layout, cell: Cell, batch_shape: Shape, key: Key) -> None:
    """Refuses what cannot be run on the devices of a layout.

    Raises:
      ValueError: inside `jax.set_mesh` of a mesh with explicit axes; with the batch split, no batch axis, or one that
        does not divide; a cell that draws noise for, or mixes, the sequences of a whole batch, in training.
    """
    if in_explicit_mesh():
        raise ValueError(
            f"{owner!r} takes the axes of its mesh as automatic, and is inside jax.set_mesh of a mesh with explicit "
            "axes; leave set_mesh out, or make its mesh with axis_types=(jax.sharding.AxisType.Auto, ...)."
        )
    if layout.batch_axis is None:
        return
    if not batch_shape or batch_shape[0] % layout.batch_devices:
        raise ValueError(
            f"{owner!r} splits axis 1 of xs over the {layout.batch_devices} devices of {layout.batch_axis!r}, "
            f"which batch shape {batch_shape} does not allow; pad the batch, or leave batch_axis out."
        )
    if key is not None and (cell.stochastic or cell.couples_batch):
        does = "draws noise for" if cell.stochastic else "mixes"
        raise ValueError(
            f"{owner!r} cannot train {cell!r} with its batch split: the cell {does} the whole batch, and would give "
            "other numbers; leave batch_axis out."
        )


def on_automatic_axes(
    solve: Callable[..., Solution], params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> Solution:
    """`solve(params, initial, carry, steps)`, which leaves it to XLA how arrays inside are spread over devices.

    On a mesh with explicit axes every array would have to say it. The solution is spread as the batch is.
    """
    sharding = jax.typeof(steps.x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return solve(params, initial, carry, steps)
    batch = sharding.spec[1:-1]

    def over(*axes: Any) -> Any:
        return NamedSharding(sharding.mesh, PartitionSpec(*axes))

    spread = Solution(
        carry=jax.tree.map(lambda _: over(*batch, None), carry),
        ys=over(None, *batch, None),
        iterations=over(),
        residual=over(*batch),
        converged=over(*batch),
        fell_back=over(),
    )
    return jax.sharding.auto_axes(solve, out_sharding=spread)(params, initial, carry, steps)
