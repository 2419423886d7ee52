# SPDX-License-Identifier: Apache-2.0
"""The diagonal linear recurrence h_t = a_t ⊗ h_{t-1} + b_t, with its reverse pass written by hand.

The recurrence solves a bidiagonal linear system, (I - a S) h = b, where S shifts by one step.
So its derivative is the same solve, and its transpose is the solve with the transposed matrix:
the recurrence run backwards, λ_t = d_t + a_{t+1} ⊗ λ_{t+1}, with d_b = λ and d_a_t = λ_t ⊗ h_{t-1}.
(JAX transposes without conjugation, so this holds for complex numbers too.) Once told so, JAX
derives forward mode, reverse mode and all higher orders, each as another such recurrence.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.engines.steps.loops import loop
from seqjax.engines.steps.pieces import delayed
from seqjax.kernels.triton import linear as kernel
from seqjax.kernels.triton.launch import missing
from seqjax.sequences import expand

METHODS = ("scan", "tree", "kernel", "interpreter")


def linear_recurrence(
    decay: Array, drive: Array, initial: Array | None = None, *, cut: Array | None = None, method: str = "scan"
) -> Array:
    """All states of h_t = a_t ⊗ h_{t-1} + b_t.

    Args:
      decay: a, broadcastable to `drive`: `[T, ..., N]`, or constant in time, `[..., N]` or `[1, ..., N]`.
      drive: b `[T, ..., N]`, real or complex.
      initial: h_0 `[..., N]`; `None`: zeros.
      cut: `[T, ...]` bool; where it is True, h_t = b_t and nothing from before, not even NaN, passes on.
      method: `"scan"`: a loop at memory speed; `"tree"`: `lax.associative_scan`, of depth log T; `"kernel"`: a
        kernel for NVIDIA GPUs that runs chunks of time at once; `"interpreter"`: that kernel run by Pallas'
        interpreter, on any device; slow, for tests.

    Returns:
      h_1 ... h_T, `[T, ..., N]`.

    Raises:
      ValueError: shapes or dtypes that do not fit, an unknown method, or `"kernel"` without a GPU.

    >>> linear_recurrence(jnp.array([[2.0], [3.0]]), jnp.array([[1.0], [1.0]])).tolist()
    [[1.0], [4.0]]

    Source: Blelloch 1990, section 1.4, for the tree; Martin and Cundy 2018 for the reverse pass.
    """
    decay, drive, initial, cut = jax.tree.map(jnp.asarray, (decay, drive, initial, cut))
    decay = check(decay, drive, initial, cut, method)
    if initial is not None:
        first = decay[0] * keep(None if cut is None else cut[0], initial)
        drive = drive.at[0].add(first)
    return solved(functools.partial(solver(method), decay, cut), decay, cut, drive)


def solved(
    solve: Callable[..., Array],
    decay: Array,
    cut: Array | None,
    drive: Array,
    arriving: Callable[[Array], Array] = jnp.zeros_like,
) -> Array:
    """The states that `solve(drive, reverse=False)` returns, as the solution of (I - a S) h = b.

    `solve(drive, reverse=True)` solves the transposed system. `arriving` maps the last state to what S puts before
    the first.
    """

    def residual(states: Array) -> Array:
        return states - decay * keep(cut, delayed(states, arriving(states[-1])))

    return jax.lax.custom_linear_solve(
        residual,
        drive,
        solve=lambda _, b: solve(b, reverse=False),
        transpose_solve=lambda _, d: solve(d, reverse=True),
    )


def check(decay: Array, drive: Array, initial: Array | None, cut: Array | None, method: str) -> Array:
    """`decay` with as many axes as `drive`, if everything fits."""
    if method not in METHODS:
        raise ValueError(f"linear_recurrence: method must be one of {list(METHODS)}, got {method!r}.")
    arrays = {"decay": decay, "initial": drive[0] if initial is None else initial}
    for name, array in arrays.items():
        if array.dtype != drive.dtype:
            raise ValueError(f"linear_recurrence: {name} is {array.dtype}, drive is {drive.dtype}; cast one of them.")
    shape = (1,) * (drive.ndim - decay.ndim) + decay.shape
    if len(shape) != drive.ndim or any(n not in (1, m) for n, m in zip(shape, drive.shape, strict=True)):
        raise ValueError(f"linear_recurrence: decay {decay.shape} does not broadcast to drive {drive.shape}.")
    if arrays["initial"].shape != drive.shape[1:]:
        raise ValueError(f"linear_recurrence: initial must be {drive.shape[1:]}, got {arrays['initial'].shape}.")
    if cut is not None and cut.shape != drive.shape[: cut.ndim]:
        raise ValueError(f"linear_recurrence: cut {cut.shape} does not lead drive's shape {drive.shape}.")
    return decay.reshape(shape)


def keep(cut: Array | None, state: Array) -> Array:
    """`state`, with zeros where it is cut off."""
    return state if cut is None else jnp.where(expand(cut, state), jnp.zeros_like(state), state)


def depth(method: str, T: int) -> int:
    """The number of sequential steps that a recurrence of `T` steps takes.

    >>> depth("scan", 1000), depth("tree", 1000), depth("kernel", 2**20)
    (1000, 20, 2052)
    """
    if method == "scan" or T == 1:
        return T
    if method == "tree":
        return 2 * math.ceil(math.log2(T))
    count = -(-T // kernel.CHUNK)
    return T if count == 1 else 2 * kernel.CHUNK + depth(method, count)


def check_kernel() -> None:
    """Rejects a machine on which the kernel does not run.

    Raises:
      ValueError: naming the methods that would work.
    """
    what = missing()
    if what is not None:
        raise ValueError(f"method 'kernel' needs {what}; use 'scan' or 'tree', or 'interpreter' to try it.")


def solver(method: str) -> Callable[..., Array]:
    """The function `(decay, cut, drive, *, reverse) -> states` of a method.

    Raises:
      ValueError: the kernel, on a machine where it does not run.
    """
    if method == "kernel":
        check_kernel()
    if method in ("kernel", "interpreter"):
        return functools.partial(solve_kernel, interpret=method == "interpreter")
    return solve_scan if method == "scan" else solve_tree


def solve_scan(decay: Array, cut: Array | None, drive: Array, *, reverse: bool = False) -> Array:
    """The states, or with `reverse` the adjoint states λ, for `drive`, by a loop.

    The reverse loop carries a_{t+1} ⊗ λ_{t+1}, so that no shifted copy of the decays is made.
    """
    constant = decay.shape[0] == 1

    def step(state: Array, inputs: tuple[Array | None, Array, Array | None]) -> tuple[Array, Array]:
        a, b, c = inputs
        a = decay[0] if a is None else a
        if reverse:
            state = b + state
            return keep(c, a * state), state
        state = a * keep(c, state) + b
        return state, state

    inputs = (None if constant else decay, drive, cut)
    return loop(step, jnp.zeros_like(drive[0]), inputs, reverse=reverse)[1]


def solve_tree(decay: Array, cut: Array | None, drive: Array, *, reverse: bool = False) -> Array:
    """Like `solve_scan`, by composing the maps h -> a ⊗ h + b in a tree; at a cut, the map is constant."""
    decay = jnp.broadcast_to(decay, drive.shape)
    constant = None if cut is None else expand(cut, drive)
    if reverse:  # λ_t decays by a_{t+1}; what is rolled around to the last step acts on nothing
        decay, constant = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), (decay, constant))

    def compose(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
        (a1, b1, c1), (a2, b2, c2) = first, second
        if c2 is None:
            return a2 * a1, a2 * b1 + b2, None
        return jnp.where(c2, a2, a2 * a1), jnp.where(c2, b2, a2 * b1 + b2), c1 | c2

    return jax.lax.associative_scan(compose, (decay, drive, constant), reverse=reverse)[1]


def solve_kernel(
    decay: Array, cut: Array | None, drive: Array, *, reverse: bool = False, interpret: bool = False
) -> Array:
    """Like `solve_scan`, by a kernel that treats a decay of 0 as a cut."""
    if cut is not None:
        decay = jnp.where(expand(cut, drive), jnp.zeros_like(decay), decay)
    return kernel.solve(decay, drive, reverse=reverse, interpret=interpret)
