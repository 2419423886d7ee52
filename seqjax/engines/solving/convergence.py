# SPDX-License-Identifier: Apache-2.0
"""When an iteration over time has converged, and what happens when it has not.

Both forward and in the adjoint, one question is asked: how far is each state from what the step makes
of the state before it, f(h_{t-1}, x_t)? How far an iteration still moves says nothing about that.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from seqjax import require
from seqjax.base import Array, Carry, Cell, Engine, Key
from seqjax.dtypes import at_least_float32, widest


class Solution(NamedTuple):
    """The answer of a parallel-in-time engine, and how it was reached.

    Attributes:
      carry: the carry after the last step.
      ys: `[T, ..., H]`.
      iterations: int32 `()`: sweeps, or Newton iterations (summed over all windows), for the whole batch.
      residual: `[...]`: for each sequence the largest |h_t - f(h_{t-1}, x_t)| before any fallback, relative to the
        largest |h| from the last reset up to step t: where states grow, so does the effect of an early error on them.
      converged: `[...]` bool: for each sequence, whether the residual is within tolerance and all numbers are finite.
      fell_back: bool `()`: whether the loop had to finish the batch, from the first step that had not converged.
    """

    carry: Carry
    ys: Array
    iterations: Array
    residual: Array
    converged: Array
    fell_back: Array


def check_options(engine: Engine, tol: float | None, on_failure: str, **limits: int | None) -> None:
    """Rejects options that no iteration could run with.

    Raises:
      ValueError: naming the field, what was given and what was expected.
    """
    owner = type(engine).__name__
    require.one_of(owner, on_failure=(on_failure, ("sequential", "raise", "nan")))
    check_tolerance(owner, tol)
    require.positive_if_given(owner, **limits)


def check_tolerance(owner: str, tol: float | None) -> None:
    """Rejects an invalid tolerance.

    Raises:
      ValueError: naming what was given.
    """
    if tol is not None and not (require.is_number(tol) and tol > 0):
        raise ValueError(f"{owner}: tol must be positive, or None for the carry dtype's default, got {tol!r}.")


def check_solvable(engine: Engine, cell: Cell, carry: Carry, key: Key) -> None:
    """Rejects cells that cannot be run on many steps at once.

    Raises:
      ValueError: naming the engines that would work.
    """
    if cell.couples_batch and key is not None:
        raise ValueError(
            f"{engine!r} runs many steps as one batch, and {cell!r} mixes the sequences of a batch in training; "
            "use Scan or Checkpointed."
        )
    if not jax.tree.leaves(carry):
        raise ValueError(f"{engine!r} iterates on a carry, and {cell!r} has none; use Scan or Checkpointed.")
    for leaf in jax.tree.leaves(carry):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"{engine!r} iterates on a floating-point carry, and that of {cell!r} has {leaf.dtype.name}; "
                "use Scan or Checkpointed."
            )


def default_tolerance(dtype: DTypeLike, floor: float = 1e-13) -> float:
    """Eight times the machine epsilon, but at least `floor`: 1e-6 for float32.

    >>> f"{default_tolerance('float32'):.1e} {default_tolerance('float64'):.1e}"
    '9.5e-07 1.0e-13'
    """
    return max(floor, 8 * float(jnp.finfo(dtype).eps))


def judge(
    defects: Any, states: Any, cuts: Array | None, tol: float | None, batch_ndim: int, floor: float = 1e-13
) -> tuple[Array, Array]:
    """Which states agree with the ones before them.

    Args:
      defects: pytree of `[T, *batch, ...]`: f(h_{t-1}, x_t) - h_t.
      states: pytree of the same shapes: h_t, finite or not.
      cuts: `[T, *batch]` bool: where a state does not depend on the one before, because of a reset.
      tol: relative to the largest state since the last cut, leaf by leaf; `None`: the default for the leaf's dtype.
      batch_ndim: number of batch axes.
      floor: lower bound of the default tolerance.

    Returns:
      `good [T, *batch]` and `residual [*batch]`, the largest relative defect (NaN if there is one).
    """
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(states)]
    wide = at_least_float32(widest(*dtypes))
    goods, residuals = [], []
    for defect, state in zip(jax.tree.leaves(defects), jax.tree.leaves(states), strict=True):
        features = tuple(range(1 + batch_ndim, state.ndim))
        limit = default_tolerance(state.dtype, floor) if tol is None else tol
        size, gap = (jnp.abs(a).astype(wide) for a in (state, defect))
        finite = jnp.isfinite(size)
        largest = _largest_since(jnp.where(finite, size, 0).max(features), cuts)
        gap = gap.max(features)
        relative = gap / jnp.where((gap == 0) & (largest == 0), 1, largest)
        goods.append((relative <= limit) & finite.all(features))
        residuals.append(relative.max(0))
    return functools.reduce(jnp.logical_and, goods), functools.reduce(jnp.maximum, residuals)


def _largest_since(sizes: Array, cuts: Array | None) -> Array:
    """The largest of the sizes `[T, *batch]` up to each step, from the last cut on."""
    if cuts is None:
        return jax.lax.cummax(sizes)

    def later(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return one[0] | two[0], jnp.where(two[0], two[1], jnp.maximum(one[1], two[1]))

    return jax.lax.associative_scan(later, (cuts, sizes))[1]


def first_inexact(defects: Any, states: Any, cuts: Array | None, batch_ndim: int) -> Array:
    """The first step at which any sequence misses agreement to within rounding, or the last step if none does: where
    a loop takes over. This is stricter than the tolerance, as an iteration that diverges may amplify early errors."""
    good, _ = judge(defects, states, cuts, None, batch_ndim, floor=0)
    fits = good.reshape(good.shape[0], -1).all(1)
    return jnp.where(fits.all(), good.shape[0] - 1, jnp.argmin(fits)).astype(jnp.int32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def refuse_derivatives(owner: str, tree: Any) -> Any:
    """`tree`, on its way into an iteration that JAX must not differentiate, because it ends when the answer has
    converged, whether or not the derivative has.

    Raises:
      ValueError: if JAX does differentiate it: in forward mode through the engine's gradient, or in a gradient of it.
    """
    return tree


@refuse_derivatives.defjvp
def _refuse(owner: str, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    raise ValueError(
        f"{owner} refuses derivatives of its gradient: its iteration ends when the answer has converged, whether or "
        "not the derivative has; use Scan or Checkpointed."
    )


def finite(ys: Array, batch_ndim: int) -> Array:
    """`[*batch]` bool: whether a sequence's outputs `[T, *batch, ...]` are all finite."""
    return jnp.isfinite(ys).all((0, *range(1 + batch_ndim, ys.ndim)))


def enforce(engine: Any, cell: Cell, what: str, converged: Array, residual: Array, answer: Any) -> Any:
    """The answer, unless it has not converged and `on_failure` is "raise" or "nan".

    Raises:
      FloatingPointError: with `on_failure="raise"`; under `jit`, it surfaces when the program runs, as
        JAX's runtime error with the same message.
    """
    if engine.on_failure == "sequential":
        return answer

    def check(converged: Array, residual: Array) -> np.ndarray:
        if not np.all(converged):
            raise FloatingPointError(
                f"{engine!r}: the {what} of {cell!r} did not converge, relative residual {np.max(residual):.1e}; "
                "use on_failure='sequential' or Scan."
            )
        return np.asarray(converged)

    passed = converged.all()
    if engine.on_failure == "raise":
        if isinstance(passed, jax.core.Tracer):
            shape = jax.ShapeDtypeStruct((), bool)
            largest = jax.lax.stop_gradient(residual.max())
            passed = jax.pure_callback(check, shape, passed, largest, vmap_method="expand_dims")
        else:
            check(passed, residual)
    # a factor, so that derivatives of an unconverged answer are NaN too
    return jax.tree.map(lambda a: a * jnp.where(passed, 1, jnp.nan).astype(a.dtype), answer)
