# SPDX-License-Identifier: Apache-2.0
"""What engines and layers on the devices of a mesh share: the layout of arrays, and checks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seqjax.base import Array, Cell, Key, Shape, code
from seqjax.engines.solving.convergence import Solution
from seqjax.engines.steps.stepping import Steps
from seqjax.spread import explicit_mesh

Spec = Any
"""A `PartitionSpec`, in place of an array or of a pytree of arrays."""


class Layout(NamedTuple):
    """A mesh, the axis over which the work is split, and the axis for the batch, if any."""

    mesh: Mesh
    axis: str
    batch_axis: str | None

    @property
    def devices(self) -> int:
        """The number of devices on the axis."""
        return self.mesh.shape[self.axis]

    @property
    def batch_devices(self) -> int:
        """The number of devices over which the batch is split."""
        return 1 if self.batch_axis is None else self.mesh.shape[self.batch_axis]

    def spec(self, *leading: str | None) -> Spec:
        """The spec of arrays whose first axes are split over `leading` and whose next axis is the batch."""
        return PartitionSpec(*leading) if self.batch_axis is None else PartitionSpec(*leading, self.batch_axis)

    @property
    def split(self) -> Spec:
        """The spec of `[T, B, ...]`, or of anything with one entry per device of the axis."""
        return self.spec(self.axis)

    @property
    def batch(self) -> Spec:
        """The spec of `[B, ...]`, on all devices of the axis."""
        return self.spec()

    @property
    def everywhere(self) -> Spec:
        """The spec of what every device has in full."""
        return PartitionSpec()

    @property
    def steps(self) -> Spec:
        """The specs of `Steps` that are split over time."""
        keys: Spec = PartitionSpec(self.axis)
        return Steps(self.split, self.split, self.split, keys)

    def map(self, fn: Callable, in_specs: Spec, out_specs: Spec) -> Callable:
        """`fn` run on each device with its part of the arguments.

        JAX's replication check is off: it rejects loops that start from constants, which any cell may
        contain.
        """
        return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def sum(self, tree: Any) -> Any:
        """The sum over all devices of what each of them has computed from its part."""
        names = (self.axis,) if self.batch_axis is None else (self.axis, self.batch_axis)
        return jax.tree.map(lambda a: jax.lax.psum(a, names), tree)


def automatic(owner: str, mesh: Mesh, axis: str, batch_axis: str | None) -> Mesh:
    """`mesh` with automatic axes, if it has the named axes.

    Raises:
      ValueError: naming the axis and those of the mesh.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"{owner}: mesh must be a jax.sharding.Mesh, as jax.make_mesh makes it, got {mesh!r}.")
    for name, given in (("axis", axis), ("batch_axis", batch_axis)):
        if given not in mesh.axis_names and not (given is None and name == "batch_axis"):
            raise ValueError(f"{owner}: {name} must be one of the mesh's axes {list(mesh.axis_names)}, got {given!r}.")
    if axis == batch_axis:
        raise ValueError(f"{owner}: axis and batch_axis must be different axes of the mesh, both are {axis!r}.")
    return Mesh(mesh.devices, mesh.axis_names)


def code_with_mesh(value: Any) -> str:
    """`base.code`, with the mesh written as its axes.

    >>> import jax
    >>> from seqjax.engines.sharded import Sharded
    >>> Sharded(jax.make_mesh((1,), ("time",)), "time")
    Sharded(Mesh(time=1), 'time')
    """
    axes = ", ".join(f"{name}={size}" for name, size in value.mesh.shape.items())
    return code(value).replace(repr(value.mesh), f"Mesh({axes})")


def check_split(owner: Any, layout: Layout, cell: Cell, batch_shape: Shape, key: Key, arguments: Any) -> None:
    """Rejects runs that are impossible on the devices of a layout.

    Raises:
      ValueError: a different mesh with explicit axes, set or of the arguments; with the batch split, no batch axis or
        one that does not divide, or, in training, a cell that draws noise for, or mixes, the whole batch.
    """
    mesh = explicit_mesh(arguments)
    if mesh is not None and mesh.shape != layout.mesh.shape:
        raise ValueError(
            f"{owner!r} got another mesh with explicit axes, {dict(mesh.shape)}, from its inputs or jax.set_mesh; use "
            f"one of {dict(layout.mesh.shape)}, or make it with axis_types=(jax.sharding.AxisType.Auto, ...)."
        )
    if layout.batch_axis is None:
        return
    if not batch_shape or batch_shape[0] % layout.batch_devices:
        raise ValueError(
            f"{owner!r} splits axis 1 of xs over the {layout.batch_devices} devices of {layout.batch_axis!r}, "
            f"which batch shape {batch_shape} does not allow; pad the batch, or leave batch_axis out."
        )
    if key is not None and (cell.stochastic or cell.couples_batch):
        does = "mixes" if cell.couples_batch else "draws noise for"
        raise ValueError(
            f"{owner!r} cannot train {cell!r} with its batch split: the cell {does} the whole batch, and would give "
            "other numbers; leave batch_axis out."
        )


def on_automatic_axes(run: Callable, out_specs: Callable[[Spec, Spec], Any], x: Array, *arguments: Any) -> Any:
    """`run(*arguments)`, with XLA deciding how the arrays inside are spread over devices.

    On a mesh with explicit axes every array would otherwise have to say so. Results are spread like the inputs.

    Args:
      run: the function to run.
      out_specs: `out_specs(batch, steps)` returns the specs of the results, given those of `[...]` and `[T, ...]`.
      x: the inputs, `[T, ..., D]`.
      arguments: the arguments of `run`.
    """
    mesh = explicit_mesh(arguments)
    if mesh is None:
        return run(*arguments)
    time, *batch = jax.typeof(x).sharding.spec[:-1]
    specs = out_specs(PartitionSpec(*batch), PartitionSpec(time, *batch))
    spread = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.sharding.auto_axes(run, out_sharding=spread)(*arguments)


def solution_specs(batch: Spec, steps: Spec) -> Solution:
    """The specs of a `Solution`."""
    everywhere: Spec = PartitionSpec()
    return Solution(batch, steps, everywhere, batch, batch, everywhere)
