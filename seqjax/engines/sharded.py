# SPDX-License-Identifier: Apache-2.0
"""Time split over the devices of a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.associative import Associative, check_affine
from seqjax.engines.auto import Auto
from seqjax.engines.sharding import devices
from seqjax.engines.sharding.affine import run_affine_on_devices
from seqjax.engines.sharding.relaxed import run_relaxed
from seqjax.engines.solving.convergence import Solution, check_solvable, check_tolerance, finite
from seqjax.engines.steps.pieces import pad_steps
from seqjax.engines.steps.stepping import Steps, prepare
from seqjax.engines.truncated import Truncated
from seqjax.plan import Plan
from seqjax.trees import tree_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Sharded(Engine):
    """Runs a sequence on K devices, each with a piece of consecutive steps.

    Inputs, outputs and what a gradient keeps are split over time; params are on every device. Only the
    carries at the K boundaries move between devices.

    Affine cells: each device reduces its piece to an affine map of the carry that enters it; the maps are
    exchanged, and each device runs its piece from the actual carry. This takes two local runs, is exact
    to rounding, and can be differentiated to any order.

    Other cells are relaxed: all devices run their pieces at once, each from where the previous device
    ended in the previous sweep, until every piece starts where the one before it ended. After n sweeps
    the first n pieces are exact whatever the cell, so K sweeps always suffice and there is no failure
    to handle. A cell that forgets within T / K steps takes two sweeps; one that expands, or NaN that no
    reset clears, takes K, which is the time of the loop. The reverse pass is relaxed in the same way,
    and recomputes the pieces. Forward mode, and derivatives of the gradient, are refused.

    If K does not divide T, masked steps are added at the end and dropped again. Arrays may be on the host
    or already sharded; outputs are left split as P(axis, batch_axis) and the carry as P(batch_axis) or, if
    arrays lie on a mesh with explicit axes, like the inputs.

    Args:
      mesh: a `jax.sharding.Mesh`. Unlike all other engines' fields it is not a plain hyperparameter: it
        names this machine's devices. A model that contains it compares and hashes, but must be saved
        without it (e.g. with `Auto`: the params are the same).
      axis: the mesh axis over which time is split.
      inner: the engine on each device; `Auto()`: `Associative` for an affine cell, `Scan` or
        `Checkpointed` for others. With one of the latter two, an affine cell is relaxed too.
      batch_axis: the mesh axis over which axis 1 of `xs`, the first batch axis, is split.
      tol: the largest distance from the end of a piece to the start of the next, relative to the largest carry
        at a boundary so far; `None`: the carry dtype's default, 1e-6 for float32 and 1e-13 for float64.

    Raises:
      ValueError: an axis that the mesh does not have, or an inner engine that does not give the loop's gradient;
        in `run`, a batch that does not divide, or arrays on another mesh with explicit axes; with `batch_axis`,
        in training, a cell that draws noise for, or mixes, a whole batch.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
    >>> model = seqjax.RNN(seqjax.GRU(4), Sharded(mesh, "time"))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 3)))
    >>> carry, ys = model.apply(params, model.initial_carry(params, (2,)), jnp.ones((50, 2, 3)))
    >>> ys.shape
    (50, 2, 4)

    Source: for affine cells, Blelloch 1990, section 1.4; for others, multiple shooting by fixed-point
    iteration, as in `Relaxed`, with one piece per device.
    """

    mesh: Mesh
    axis: str
    inner: Engine = Auto()
    batch_axis: str | None = None
    tol: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "mesh", devices.automatic("Sharded", self.mesh, self.axis, self.batch_axis))
        whole = isinstance(self.inner, Associative) and self.inner.segment is not None
        if not isinstance(self.inner, Engine) or isinstance(self.inner, Sharded | Truncated) or whole:
            raise ValueError(
                f"Sharded: inner must be an engine that runs a whole piece on one device, with the gradient of the "
                f"loop, got {self.inner!r}; use Auto, Scan, Checkpointed, or Associative without a segment."
            )
        check_tolerance("Sharded", self.tol)

    def __repr__(self) -> str:
        return devices.code_with_mesh(self)

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        solution = sharded_solve(cell, params, carry, xs, engine=self, mask=mask, resets=resets, key=key)
        return solution.carry, solution.ys

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        """What one device would do, assuming two sweeps if the cell is relaxed."""
        count, length, parts = self.layout.devices, self.piece(xs.shape[0]), self.layout.batch_devices
        inner = self.inner_engine(cell, params, carry, xs)

        def part(a: Any, batch: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*a.shape[:batch], a.shape[batch] // parts, *a.shape[batch + 1 :]), a.dtype)

        if parts > 1:
            carry, xs = jax.tree.map(lambda a: part(a, 0), carry), part(xs, 1)
        whole = Associative(inner.method, length) if isinstance(inner, Associative) else inner
        plan = whole.plan(cell, params, carry, jax.ShapeDtypeStruct((length, *xs.shape[1:]), xs.dtype))
        how = "exact" if isinstance(inner, Associative) else f"2 sweeps assumed, {count} at most"
        why = f"{count} pieces of {length} steps by {inner!r}, {how}; memory of one device"
        return Plan(repr(cell), repr(self), why, plan.memory + count * tree_bytes(carry), 2 * plan.depth)

    @property
    def layout(self) -> devices.Layout:
        """How sequences are laid out on the devices."""
        return devices.Layout(self.mesh, self.axis, self.batch_axis)

    def piece(self, T: int) -> int:
        """The number of steps on each device, out of `T`."""
        return -(-T // self.layout.devices)

    def inner_engine(self, cell: Cell, params: Params, carry: Carry, xs: Array | jax.ShapeDtypeStruct) -> Engine:
        """The engine on each device, given all of `xs`."""
        piece = jax.ShapeDtypeStruct((self.piece(xs.shape[0]), *xs.shape[1:]), xs.dtype)
        return self.inner.choose(cell, params, carry, piece)[0] if isinstance(self.inner, Auto) else self.inner


def sharded_solve(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Array,
    *,
    engine: Sharded,
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> Solution:
    """Like `Sharded.run`, but also returns the sweeps and the residual of the forward pass.

    Args:
      cell, params, carry, xs, mask, resets, key: as for `Engine.run`.
      engine: the options.

    Returns:
      The solution; its carry and outputs can be differentiated. They are exact even if the relaxation has
      not converged, as it never does with numbers that are not finite: then all K sweeps were made. An
      affine cell is not relaxed and takes no sweeps.

    Raises:
      ValueError: as for `Sharded`.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell, engine = seqjax.GRU(4), Sharded(jax.make_mesh((1,), ("time",)), "time")
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry = cell.initial_carry(params, (2,))
    >>> int(sharded_solve(cell, params, carry, jnp.ones((50, 2, 3)), engine=engine).iterations)
    1
    """
    params, initial, carry, steps = prepare(cell, params, carry, xs, mask, resets, key)
    arguments = params, initial, carry, steps
    devices.check_split(engine, engine.layout, cell, xs.shape[1:-1], key, arguments)
    inner = engine.inner_engine(cell, params, carry, steps.x)
    if isinstance(inner, Associative):
        check_affine(inner, cell, key)
    else:
        check_solvable(engine, cell, carry, None)
    run = functools.partial(_solve, engine, cell)
    return devices.on_automatic_axes(run, devices.solution_specs, steps.x, *arguments)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(engine: Sharded, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps) -> Solution:
    inner, T = engine.inner_engine(cell, params, carry, steps.x), steps.x.shape[0]
    steps = pad_steps(steps, engine.layout.devices * engine.piece(T))
    if not isinstance(inner, Associative):
        solution = run_relaxed(engine, inner, cell, params, initial, carry, steps)
        return solution._replace(ys=solution.ys[:T])
    method, _ = inner.choose(engine.piece(T))
    carry, ys = run_affine_on_devices(engine.layout, method, cell, params, initial, carry, steps)
    fits = finite(ys, steps.x.ndim - 2)
    return Solution(carry, ys[:T], jnp.int32(0), jnp.zeros(fits.shape), fits, jnp.bool(False))
