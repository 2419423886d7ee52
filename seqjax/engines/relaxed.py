# SPDX-License-Identifier: Apache-2.0
"""Any cell in parallel over time: relaxation of the carries at the boundaries between chunks."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.scan import Scan
from seqjax.engines.sharding.devices import on_automatic_axes, solution_specs
from seqjax.engines.solving.convergence import (
    Solution,
    check_options,
    check_solvable,
    enforce,
    finite,
    refuse_derivatives,
)
from seqjax.engines.solving.jacobians import Packing, batched_step, copies, packed_jacobians
from seqjax.engines.solving.relaxation import cut_chunks, idle_chunks, relax
from seqjax.engines.steps.cotangents import without_float0
from seqjax.engines.steps.pieces import join, near_divisor, split_steps
from seqjax.engines.steps.stepping import Steps, input_and_output_bytes, prepare
from seqjax.plan import Plan
from seqjax.trees import tree_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Relaxed(Engine):
    """Runs all chunks of a sequence at once, again and again, until their ends meet.

    The unknowns are the carries s_k at the K boundaries between chunks of L steps. A sweep runs all
    chunks as one batch from their starts to F_k(s_k), with the cell as a black box; then
    s_{k+1}^new = F_k(s_k^old) + P_k ⊗ (s_k^new - s_k^old), where P = 0 (`coupling="none"`), or P_k is the
    product over the chunk of the diagonals of the step Jacobians (`"diagonal"`). After n sweeps the
    first n chunks are exact, whatever the cell. The reverse pass is solved in the same way.

    It helps where a cell forgets: if what it remembers after L steps is below the tolerance, two sweeps
    suffice, and the sequential depth falls from T to 2 L steps. This is the case at initialization: GRU
    (recurrent gain 1 and 2) and LSTM need two sweeps at T = 1e5; a longer memory needs more (LSTM with
    chrono initialization of 1e3, L = 100: 90 sweeps at T = 1e4, 16 with `"diagonal"`; at T = 1e5 29 with it,
    and more than 100 without). It cannot help where a cell expands (GRU with recurrent gain 4): all K sweeps
    would be needed, so it gives up at `max_sweeps` and does what `on_failure` says. On a CPU the loop wins, as a
    sweep computes as much as the whole loop (a gradient takes 1.1 to 3.4 times the loop's time).

    Convergence is judged for each sequence by the true residual and finiteness alone, in the reverse pass
    too; a batch is swept until its slowest sequence is done. A gradient takes O(T) memory. Derivatives of
    the gradient, and forward mode, are refused.

    Args:
      chunk: L; `None`: about √T.
      coupling: P. The diagonals are computed once, on the first sweep's trajectory; for a cell whose
        Jacobian is dense that costs a product with each of its N columns.
      tol: largest residual, relative to the largest carry from the last reset up to that step; `None`: the carry
        dtype's default, 1e-6 for float32 and 1e-13 for float64.
      max_sweeps: `None`: a quarter of K, but at least 8, so that giving up costs a quarter of a loop's depth.
      on_failure: `"sequential"`: keep the chunks that have converged and run the rest with the loop;
        `"raise"`: raise a `FloatingPointError` (under `jit`, JAX's runtime error with its message);
        `"nan"`: make the whole answer NaN.

    Raises:
      ValueError: an unknown option; in training, a cell that mixes the sequences of a batch.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.GRU(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = Relaxed(chunk=10).run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((50, 2, 3)))
    >>> ys.shape
    (50, 2, 4)

    Source: multiple shooting by fixed-point iteration; with P, the parareal method of Lions, Maday and
    Turinici 2001 with a linear coarse propagator. Figures were measured in float32 with H = 32 and 64.
    """

    chunk: int | None = None
    coupling: str = "none"
    tol: float | None = None
    max_sweeps: int | None = None
    on_failure: str = "sequential"

    def __post_init__(self):
        check_options(self, self.tol, self.on_failure, chunk=self.chunk, max_sweeps=self.max_sweeps)
        require.one_of("Relaxed", coupling=(self.coupling, ("none", "diagonal")))

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
        solution = relaxed_solve(cell, params, carry, xs, engine=self, mask=mask, resets=resets, key=key)
        return solution.carry, solution.ys

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        check_solvable(self, cell, carry, None)
        T = xs.shape[0]
        size = self.size(T)
        count = -(-T // size)
        # sequences are held in the order of time and in that of the chunks; how often was counted in compiled programs
        moved = 2 * tree_bytes(carry) + 3 * input_and_output_bytes(cell, params, carry, xs)
        memory = T * (Scan().step_bytes(cell, params, carry, xs) + moved)
        why = f"{count} chunks of {size} steps at once; two sweeps, if the cell forgets within a chunk"
        return Plan(repr(cell), repr(self), why, memory, min(2 * size, T))

    def size(self, T: int) -> int:
        """Steps in a chunk: the divisor of T nearest to √T, if one is within a factor of 2, otherwise √T.

        >>> Relaxed().size(1_000_000), Relaxed().size(101), Relaxed(chunk=30).size(101)
        (1000, 10, 30)
        """
        return near_divisor(T, math.sqrt(T)) if self.chunk is None else min(self.chunk, T)


def relaxed_solve(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Array,
    *,
    engine: Relaxed = Relaxed(),
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> Solution:
    """Like `Relaxed.run`, but also returns the sweeps, residual and convergence of the forward pass.

    Args:
      cell, params, carry, xs, mask, resets, key: as for `Engine.run`.
      engine: the options.

    Returns:
      The solution; its carry and outputs can be differentiated.

    Raises:
      ValueError: a cell or a carry on which it cannot iterate, or inputs that no engine accepts.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.LSTM(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> solution = relaxed_solve(cell, params, cell.initial_carry(params, ()), jnp.ones((2500, 3)))
    >>> bool(solution.converged), bool(solution.fell_back)
    (True, False)
    """
    params, initial, carry, steps = prepare(cell, params, carry, xs, mask, resets, key)
    check_solvable(engine, cell, carry, key)
    run = functools.partial(_chunks, engine, cell)
    return on_automatic_axes(run, solution_specs, steps.x, params, initial, carry, steps)


def _chunks(engine: Relaxed, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps) -> Solution:
    """Solves for all chunks side by side."""
    T = steps.x.shape[0]
    pieces = split_steps(steps, engine.size(T))
    chunks = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), pieces)
    solution = _solve(engine, cell, params, initial, carry, chunks)
    return solution._replace(ys=join(jnp.swapaxes(solution.ys, 0, 1))[:T])


def run_chunks(cell: Cell, params: Params, initial: Carry | None, starts: Carry, steps: Steps) -> tuple[Carry, Array]:
    """Runs all chunks as one batch, from starts `[K, ...]` and steps `[L, K, ...]` to ends `[K, ...]` and ys
    `[L, K, ...]`."""
    if steps.key is not None:
        alone = functools.partial(Scan().run_steps, cell, params, initial)
        return jax.vmap(alone, (0, 1), (0, 1))(starts, steps)
    return Scan().run_steps(cell, params, copies(initial, steps.x.shape[1]), starts, steps)


def decay_products(cell: Cell, params: Params, initial: Carry | None, starts: Carry, steps: Steps) -> Carry:
    """The product over each chunk of the diagonals of its step Jacobians, clipped to magnitudes of at most 1."""
    packing = Packing.of(starts, steps.x.ndim - 2, "diagonal")

    def step(state: tuple[Carry, Array], step: Steps) -> tuple[tuple[Carry, Array], None]:
        carries, product = state
        product = product * packed_jacobians(packing, cell, params, initial, carries, step)
        return (batched_step(cell, params, initial, carries, step)[0], bounded(product)), None

    (_, product), _ = jax.lax.scan(step, (starts, jnp.ones_like(packing.pack(starts))), steps)
    return packing.unpack(jnp.nan_to_num(product))


def _chunk(tree: Any, k: Array, axis: int) -> Any:
    """Chunk k alone, with its axis kept."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, k, 1, axis), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(engine: Relaxed, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps) -> Solution:
    """The forward pass over steps `[L, K, ...]`; `ys [L, K, ...]`."""
    return _forward(engine, cell, params, initial, carry, steps)[0]


def _forward(engine: Relaxed, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps):
    params, initial, carry, steps = refuse_derivatives(repr(engine), (params, initial, carry, steps))
    batch_ndim = steps.x.ndim - 3
    guess = copies(carry, steps.x.shape[1])
    coupled = engine.coupling == "diagonal" and steps.x.shape[1] > 1
    products = decay_products(cell, params, initial, guess, steps) if coupled else None

    def advance(k: Array, start: Carry) -> Carry:
        ends, _ = run_chunks(cell, params, initial, copies(start, 1), _chunk(steps, k, 1))
        return jax.tree.map(lambda e: e[0], ends)

    sweep = functools.partial(run_chunks, cell, params, initial, steps=steps)
    found = relax(engine, sweep, advance, guess, products, idle_chunks(steps), cut_chunks(steps), batch_ndim)
    ys = found.outputs
    converged = found.converged & finite(join(ys), batch_ndim)
    last = jax.tree.map(lambda e: e[-1], found.ends)
    answer = last, ys, found.starts  # from which the reverse pass starts; it must not be reached unconverged either
    last, ys, starts = enforce(engine, cell, "forward pass", converged, found.residual, answer)
    fell_back = ~found.converged.all() & (engine.on_failure == "sequential")
    solution = Solution(last, ys, found.sweeps, found.residual, converged, fell_back)
    return solution, (params, initial, steps, starts, products)


def _reverse(engine: Relaxed, cell: Cell, kept: tuple, cotangents: Solution):
    """The same relaxation, on the cotangents at the boundaries, last chunk first."""
    params, initial, steps, starts, products = kept
    d_carry, d_ys = refuse_derivatives(repr(engine), (cotangents.carry, cotangents.ys))
    batch_ndim, count = steps.x.ndim - 3, steps.x.shape[1]

    def flip(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.flip(a, 0), tree)

    _, pull = jax.vjp(functools.partial(run_chunks, cell), params, initial, starts, steps)

    def sweep(d_ends: Carry) -> tuple[Carry, Any]:
        d_params, d_initial, d_starts, d_steps = pull((flip(d_ends), d_ys))
        return flip(d_starts), without_float0((d_params, d_initial, d_steps))

    def advance(k: Array, d_end: Carry) -> Carry:
        k = count - 1 - k
        alone = functools.partial(run_chunks, cell, params, initial, steps=_chunk(steps, k, 1))
        _, pull = jax.vjp(alone, _chunk(starts, k, 0))
        (d_start,) = pull((copies(d_end, 1), _chunk(d_ys, k, 1)))
        return jax.tree.map(lambda d: d[0], d_start)

    guess = jax.tree.map(lambda d: jnp.zeros_like(d, shape=(count, *d.shape)).at[0].set(d), d_carry)
    idle, cuts = flip((idle_chunks(steps), cut_chunks(steps)))
    found = relax(engine, sweep, advance, guess, flip(products), idle, cuts, batch_ndim)
    answer = (*found.outputs, jax.tree.map(lambda d: d[-1], found.ends))
    d_params, d_initial, d_steps, d_carry = enforce(
        engine, cell, "reverse pass", found.converged, found.residual, answer
    )
    return d_params, d_initial, d_carry, d_steps


_solve.defvjp(_forward, _reverse)


def bounded(product: Array) -> Array:
    """`product`, real or complex, with magnitudes above 1 reduced to 1."""
    return product / jnp.maximum(jnp.abs(product), 1).astype(product.dtype)
