# SPDX-License-Identifier: Apache-2.0
"""Nonlinear cells in parallel over time: Newton's method on all steps at once."""

import dataclasses
import functools
import math

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
from seqjax.engines.solving.iteration import iterate
from seqjax.engines.solving.jacobians import TOGETHER, Packing, batched_step, packed_jacobians
from seqjax.engines.steps.cotangents import without_float0
from seqjax.engines.steps.pieces import delayed, join, split_steps
from seqjax.engines.steps.stepping import Steps, masked_step, prepare
from seqjax.plan import Plan
from seqjax.trees import tree_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Newton(Engine):
    """Solves h_t = f(h_{t-1}, x_t) for all t at once by Newton's method.

    With r_t = f(h_{t-1}, x_t) - h_t and the step Jacobians J_t, an iteration solves the linear recurrence
    δ_t = J_t δ_{t-1} + r_t (by an associative scan of depth log T, or a loop on CPU) and moves h by α δ,
    where α is halved, for each sequence, until the sum of r² falls; see `iteration.iterate` for what is
    done if it does not. The reverse pass solves the transposed recurrence with the exact Jacobians in one
    linear solve or, where only their diagonals are used, by iterating on the true residual, so that its
    gradients are exact too.

    It helps where the dynamics contract: there, the number of iterations to reach 1e-6 hardly depends on T
    (GRU with dense Jacobians: 3 to 4 at a recurrent gain of 1, 5 to 6 at 2; with only their diagonals: 14, and 43
    to 46). It cannot help where they expand: the linear recurrence grows without bound
    (GRU from a gain of 2.5 on), and it gives up after `max_iterations`. It is made for cells whose Jacobian
    is diagonal (`DiagonalGRU`, `DiagonalLSTM`, `IndRNN`): an iteration costs little more than the steps,
    and the first two need 4 and 5 of them at T = 1e5. Dense Jacobians take T x batch x N x N numbers
    (`window` bounds T) and N times the arithmetic. On a CPU the loop wins: a gradient takes 2 to 4 times
    the loop's time with diagonal Jacobians, and 17 times with dense ones.

    Convergence is judged for each sequence by the true residual and finiteness alone, in the reverse pass too.
    `jvp` of a run and `grad` of `grad` are refused. `jvp` of `grad`, a Hessian-vector product, works if the
    Jacobians used are exact and is refused if only their diagonals are used. Where the dynamics are chaotic, a
    small residual does not determine the answer, and neither does the loop: the float32 states of a GRU at a gain
    of 3 differ from those in float64 by 2e-3 after 500 steps and 0.6 after 2,000 with `Scan`, and by 2e-3 and 0.1
    with `Newton`, which gives up there and says so. Compute such runs in float64.

    Args:
      jacobian: `"auto"`: the cell's `jacobian_structure`, which is exact; `"dense"`: the full Jacobian;
        `"diagonal"`: only its diagonal, which is quasi-Newton for cells whose Jacobian has more.
      window: how many steps to solve at once, window after window; `None`: all.
      tol: largest residual, relative to the largest carry up to that step, from the last reset or the beginning of
        the window on; `None`: the carry dtype's default, 1e-6 for float32 and 1e-13 for float64.
      max_iterations: the most iterations in a window.
      on_failure: `"sequential"`: keep the steps before the first that has not converged and run the
        rest with the loop; `"raise"`: raise a `FloatingPointError` (under `jit`, JAX's runtime error with
        its message); `"nan"`: make the whole answer NaN.

    Raises:
      ValueError: an unknown option; in training, a cell that mixes the sequences of a batch; a
        complex carry.

    >>> import jax, jax.numpy as jnp
    >>> from seqjax.cells.diagonal import DiagonalGRU
    >>> cell = DiagonalGRU(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = Newton().run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((50, 2, 3)))
    >>> ys.shape
    (50, 2, 4)

    Source: Lim et al. 2024 (DEER); Gonzalez et al. 2024 for the diagonal form and for what goes wrong
    without damping; Danieli et al. 2025 (ParaRNN) for diagonal cells. Figures were measured in float32
    with H = 32 and 64.
    """

    jacobian: str = "auto"
    window: int | None = None
    tol: float | None = None
    max_iterations: int = 100
    on_failure: str = "sequential"

    def __post_init__(self):
        check_options(self, self.tol, self.on_failure, window=self.window)
        require.positive("Newton", max_iterations=self.max_iterations)
        require.one_of("Newton", jacobian=(self.jacobian, ("auto", "dense", "diagonal")))

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
        solution = newton_solve(cell, params, carry, xs, engine=self, mask=mask, resets=resets, key=key)
        return solution.carry, solution.ys

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        self.check(cell, carry)
        T = xs.shape[0]
        window = min(self.window or T, T)
        packing = self.packing(cell, carry, xs.ndim - 2)
        state, residuals = tree_bytes(carry), Scan().step_bytes(cell, params, carry, xs)
        diagonal = packing.structure == "diagonal"
        jacobian = state if diagonal else state * packing.width
        step = 4 * jacobian + 5 * state + 2 * residuals  # counted in compiled programs
        if diagonal and not packing.exact(cell):
            step += TOGETHER * (2 * state + residuals)
        memory = window * step + (T - window) * state  # of the other windows only states are kept
        depth = -(-T // window) * max(1, math.ceil(math.log2(window)))
        why = f"{packing.structure} Jacobians of {window} steps at once; depth of one iteration, on CPU a loop"
        return Plan(repr(cell), repr(self), why, memory, depth)

    def check(self, cell: Cell, carry: Carry, key: Key = None) -> None:
        """Rejects a cell or a carry on which it cannot iterate.

        Raises:
          ValueError: naming the engines that would work.
        """
        check_solvable(self, cell, carry, key)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(carry)):
            raise ValueError(f"{self!r} iterates on real carries; that of {cell!r} is complex; use Scan or Relaxed.")

    def packing(self, cell: Cell, carry: Carry, batch_ndim: int) -> Packing:
        """How carries are laid out for the Jacobians that are used."""
        structure = cell.jacobian_structure if self.jacobian == "auto" else self.jacobian
        return Packing.of(carry, batch_ndim, structure)


def newton_solve(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Array,
    *,
    engine: Newton = Newton(),
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> Solution:
    """Like `Newton.run`, but also returns the iterations, residual and convergence of the forward pass.

    Args:
      cell, params, carry, xs, mask, resets, key: as for `Engine.run`.
      engine: the options.

    Returns:
      The solution; its carry and outputs can be differentiated.

    Raises:
      ValueError: a cell or a carry on which it cannot iterate, or inputs that no engine accepts.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.GRU(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> solution = newton_solve(cell, params, cell.initial_carry(params, ()), jnp.ones((100, 3)))
    >>> bool(solution.converged), bool(solution.fell_back), int(solution.iterations) < 10
    (True, False, True)
    """
    params, initial, carry, steps = prepare(cell, params, carry, xs, mask, resets, key)
    engine.check(cell, carry, key)
    run = functools.partial(_windows, engine, cell)
    return on_automatic_axes(run, solution_specs, steps.x, params, initial, carry, steps)


def _windows(engine: Newton, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps) -> Solution:
    """Solves window after window."""
    T = steps.x.shape[0]
    if engine.window is None or engine.window >= T:
        return _solve(engine, cell, params, initial, carry, steps)

    def window(carry: Carry, steps: Steps) -> tuple[Carry, tuple]:
        carry, ys, *account = _solve(engine, cell, params, initial, carry, steps)
        return carry, (ys, account)

    carry, (ys, account) = jax.lax.scan(window, carry, split_steps(steps, engine.window))
    iterations, residual, converged, fell_back = jax.lax.stop_gradient(account)
    return Solution(
        carry, join(ys)[:T], iterations.sum(dtype=jnp.int32), residual.max(0), converged.all(0), fell_back.any()
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(engine: Newton, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps) -> Solution:
    """Solves one window."""
    return _forward(engine, cell, params, initial, carry, steps)[0]


def _forward(engine: Newton, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps):
    batch_ndim = steps.x.ndim - 2
    packing = engine.packing(cell, carry, batch_ndim)
    if not packing.exact(cell):
        params, initial, carry, steps = refuse_derivatives(repr(engine), (params, initial, carry, steps))

    def evaluate(packed: Array) -> Array:
        return packing.pack(batched_step(cell, params, initial, packing.unpack(packed), steps)[0])

    def jacobians(packed: Array) -> Array:
        return packed_jacobians(packing, cell, params, initial, packing.unpack(packed), steps)

    def advance(t: Array, packed: Array) -> Array:
        step = jax.tree.map(lambda a: a[t], steps)
        return packing.pack(masked_step(cell, params, initial, packing.unpack(packed), step)[0])

    start = packing.pack(carry)
    guess = evaluate(jnp.broadcast_to(start, (steps.x.shape[0], *start.shape)))
    found = iterate(engine, packing, evaluate, jacobians, advance, start, guess, steps.reset)
    before = packing.unpack(delayed(found.states, start))
    _, ys = batched_step(cell, params, initial, before, steps)
    converged = found.converged & finite(ys, batch_ndim)
    last = packing.unpack(found.states[-1])
    answer = last, ys, before  # the reverse pass, which starts from `before`, must not be reached unconverged either
    last, ys, before = enforce(engine, cell, "forward pass", converged, found.residual, answer)
    fell_back = ~found.converged.all() & (engine.on_failure == "sequential")
    solution = Solution(last, ys, found.iterations, found.residual, converged, fell_back)
    return solution, (params, initial, before, steps)


def _reverse(engine: Newton, cell: Cell, kept: tuple, cotangents: Solution):
    """λ_{t-1} = J_tᵀ λ_t + (∂y_t/∂h_{t-1})ᵀ d_y_t for all t at once, then all other gradients in one transpose."""
    params, initial, before, steps = kept
    d_carry, d_ys = cotangents.carry, cotangents.ys
    T = steps.x.shape[0]
    packing = engine.packing(cell, d_carry, steps.x.ndim - 2)
    if not packing.exact(cell):
        d_carry, d_ys = refuse_derivatives(repr(engine), (d_carry, d_ys))

    run = functools.partial(batched_step, cell)
    _, pull = jax.vjp(lambda before: run(params, initial, before, steps), before)

    def evaluate(packed: Array) -> Array:
        (d_before,) = pull((packing.unpack(jnp.flip(packed, 0)), d_ys))
        return jnp.flip(packing.pack(d_before), 0)

    matrices = jnp.flip(packed_jacobians(packing, cell, params, initial, before, steps), 0)
    transposed = matrices if packing.structure == "diagonal" else jnp.swapaxes(matrices, -1, -2)

    def advance(t: Array, packed: Array) -> Array:
        t = T - 1 - t
        step, carry, d_y = jax.tree.map(lambda a: a[t], (steps, before, d_ys))
        _, pull = jax.vjp(lambda carry: masked_step(cell, params, initial, carry, step), carry)
        (d_before,) = pull((packing.unpack(packed), d_y))
        return packing.pack(d_before)

    start = packing.pack(d_carry)
    guess = jnp.zeros_like(start, shape=(T, *start.shape))
    cuts = None if steps.reset is None else jnp.flip(steps.reset, 0)
    found = iterate(engine, packing, evaluate, lambda _: transposed, advance, start, guess, cuts, linear=True)
    d_after = packing.unpack(jnp.flip(delayed(found.states, start), 0))
    _, pull_all = jax.vjp(run, params, initial, before, steps)
    d_params, d_initial, _, d_steps = pull_all((d_after, d_ys))
    answer = without_float0((d_params, d_initial, packing.unpack(found.states[-1]), d_steps))
    return enforce(engine, cell, "reverse pass", found.converged, found.residual, answer)


_solve.defvjp(_forward, _reverse)
