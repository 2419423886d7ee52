# SPDX-License-Identifier: Apache-2.0
"""The reference that every engine must match, and checks that hold a user's own cell to seqjax's laws."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import CAPABILITIES, Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.dtypes import widest
from seqjax.engines.scan import Scan
from seqjax.engines.steps.cotangents import without_float0

__all__ = ["assert_close", "check_cell", "example", "jitter", "reference_loop", "value_and_gradients"]


def reference_loop(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Array,
    *,
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> tuple[Carry, Array]:
    """Runs a cell over time in a Python `for` loop: what every engine must compute.

    Args:
      cell, params, carry, xs, mask, resets, key: as for `Engine.run`.

    Returns:
      The carry after the last step and `ys [T, ..., H]`.

    Raises:
      ValueError: no steps, or inputs that the cell refuses; the checks that engines make first are not made here.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.Simple(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = reference_loop(cell, params, cell.initial_carry(params, ()), jnp.ones((5, 3)))
    >>> ys.shape
    (5, 4)
    """

    T = xs.shape[0]
    keys = jax.random.split(key, T) if key is not None and cell.stochastic else [None] * T
    initial = None if resets is None else cell.initial_carry(params, xs.shape[1:-1])
    ys = []
    for t in range(T):
        m, r = (None if flag is None else flag[t] for flag in (mask, resets))
        carry, y = reference_step(cell, params, initial, carry, xs[t], m, r, keys[t])
        ys.append(y)
    return carry, jnp.stack(ys)


@functools.partial(jax.jit, static_argnums=0)
def reference_step(
    cell: Cell, params: Params, initial: Carry, carry: Carry, x: Array, mask: Mask, reset: Resets, key: Key
) -> tuple[Carry, Array]:
    """One step of the loop, with the mask and reset of that step; compiled once per cell, for speed."""

    def pick(flag, on_true, on_false):
        def where(a, b):
            return jnp.where(flag.reshape(flag.shape + (1,) * (a.ndim - flag.ndim)), a, b)

        return jax.tree.map(where, on_true, on_false)

    if reset is not None:
        carry = pick(reset, initial, carry)
    if mask is not None:
        x = pick(mask, x, jnp.zeros_like(x))
    after, y = cell.step(params, carry, cell.project(params, x), key)
    if mask is None:
        return after, y
    return pick(mask, after, carry), pick(mask, y, jnp.zeros_like(y))


def example(
    cell: Cell,
    *,
    T: int = 7,
    batch_shape: Sequence[int] = (3,),
    in_dim: int = 2,
    masked: bool = False,
    with_resets: bool = False,
    seed: int = 0,
) -> tuple[Params, Carry, Array, Mask, Resets]:
    """Random params, carry, xs, mask and resets for a check; xs have the params' dtype (the carry's without params).

    Args:
      cell: the cell.
      T, batch_shape, in_dim: xs are `[T, *batch_shape, in_dim]`.
      masked: whether there is a mask; masked steps contain NaN, which no engine may let through.
      with_resets: whether there are resets.
      seed: for everything that is drawn.

    Returns:
      params, carry, xs, mask, resets; the last two are `[T, *batch_shape]` bool, or None.

    >>> import seqjax
    >>> params, carry, xs, mask, resets = example(seqjax.GRU(4), masked=True)
    >>> xs.shape, mask.shape, resets
    ((7, 3, 2), (7, 3), None)
    """
    random = np.random.default_rng(seed)
    batch_shape = tuple(batch_shape)
    params = jitter(cell.init(jax.random.key(seed), in_dim), random)
    carry = jitter(cell.initial_carry(params, batch_shape), random)
    floating = (leaf.dtype for leaf in jax.tree.leaves((params, carry)) if jnp.issubdtype(leaf.dtype, jnp.floating))
    dtype = next(floating, jnp.dtype("float32"))
    xs = random.normal(size=(T, *batch_shape, in_dim))
    mask = random.random((T, *batch_shape)) < 0.7 if masked else None
    resets = random.random((T, *batch_shape)) < 0.3 if with_resets else None
    if mask is not None:
        xs[~mask] = np.nan
    return params, carry, *(None if a is None else jnp.asarray(a) for a in (xs.astype(dtype), mask, resets))


def jitter(tree: Params, random: np.random.Generator) -> Params:
    """`tree` with noise added to every inexact leaf, so that zeros and ones hide no error.

    Args:
      tree: a pytree of arrays.
      random: what the noise is drawn from, U(0, 0.3).

    Returns:
      A tree with the same shapes and dtypes.

    >>> float(jitter(jnp.zeros(()), np.random.default_rng(0))) != 0
    True
    """

    def add_noise(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        noise = random.uniform(0, 0.3, leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            noise = noise + 1j * random.uniform(0, 0.3, leaf.shape)
        return leaf + jnp.asarray(noise.astype(leaf.dtype))

    return jax.tree.map(add_noise, tree)


def value_and_gradients(run, cell: Cell, params: Params, carry: Carry, xs: Array, **flags):
    """Outputs of a run, and the gradients of a randomly weighted sum of them with respect to params, carry and xs.

    Args:
      run: `run(cell, params, carry, xs, **flags) -> (carry, ys)`, such as `reference_loop` or an engine's `run`.
      cell, params, carry, xs: as for `Engine.run`.
      **flags: mask, resets and key.

    Returns:
      `(carry, ys)`, and the gradients `(params, carry, xs)`, in which leaves that are not differentiable, such as a
      count of steps in the carry, are `None`.
    """

    def loss(inputs, flags):
        out = run(cell, *inputs, **flags)
        random = np.random.default_rng(0)
        terms = []
        for leaf in jax.tree.leaves(out):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            for part in (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,):
                terms.append(jnp.sum(part * random.normal(size=part.shape).astype(part.dtype)))
        dtype = widest(*(term.dtype for term in terms))
        return sum(term.astype(dtype) for term in terms), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True, allow_int=True)((params, carry, xs), flags)
    return out, without_float0(gradients)


def assert_close(actual, expected, tolerance: float) -> None:
    """Raises `AssertionError` unless two pytrees agree to `tolerance`, relative to the entries and to each leaf's peak.

    The absolute tolerance is `tolerance` times the leaf's largest magnitude, or times 1 if that is larger. NaN
    agrees with nothing.

    Args:
      actual, expected: pytrees of arrays; structures and dtypes must be equal.
      tolerance: relative.

    Raises:
      AssertionError: saying what differs.
    """
    if jax.tree.structure(actual) != jax.tree.structure(expected):  # type: ignore[operator]
        raise AssertionError(f"structures differ: {jax.tree.structure(actual)} and {jax.tree.structure(expected)}")
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if a.dtype != b.dtype:
            raise AssertionError(f"dtypes differ: {a.dtype} and {b.dtype}")
        wide = np.complex128 if jnp.iscomplexobj(b) else np.float64
        a, b = np.asarray(a, wide), np.asarray(b, wide)
        atol = tolerance * max(1.0, float(np.abs(b).max(initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=atol, equal_nan=False)


def check_cell(cell: Cell, *, in_dim: int = 2, engine: Engine = Scan(), tolerance: float | None = None) -> None:
    """Checks that a cell of your own, run by an engine, obeys seqjax's laws.

    Checked: capabilities are known, and implemented; `init` works under `eval_shape`; a step keeps the carry's
    structure, shapes and dtypes, and gives outputs `[..., H]`; values and gradients are finite; the engine matches
    `reference_loop` in both, with and without mask, resets and batch axes, with NaN in masked steps; two pieces
    match the whole; `vmap` matches batched. Not checked: whether a step's derivative is the true one where it has a
    custom rule or stops a gradient, and what a step draws at random.

    Args:
      cell: the cell, with params in float32 or float64.
      in_dim: number of input features to test with.
      engine: the engine to run it under.
      tolerance: that of `assert_close`; by default 1e-5, or 1e-10 for float64 params.

    Raises:
      AssertionError: a law does not hold; the message shows what differs.

    >>> import seqjax
    >>> check_cell(seqjax.Simple(3))
    """
    check_capabilities(cell)
    shapes = jax.eval_shape(lambda key: cell.init(key, in_dim), jax.random.key(0))
    widths = [leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)]
    if tolerance is None:
        tolerance = 1e-10 if min(widths, default=4) == 8 else 1e-5
    for batch_shape, masked, with_resets in (((), False, False), ((3,), True, False), ((2, 3), True, True)):
        params, carry, xs, mask, resets = example(
            cell, batch_shape=batch_shape, in_dim=in_dim, masked=masked, with_resets=with_resets
        )
        check_step(cell, params, carry, jnp.nan_to_num(xs[0]))
        flags = {"mask": mask, "resets": resets}
        expected = value_and_gradients(reference_loop, cell, params, carry, xs, **flags)
        check_finite(cell, expected, masked)
        actual = jax.jit(functools.partial(value_and_gradients, engine.run, cell))(params, carry, xs, **flags)
        assert_close(actual, expected, tolerance)
        check_pieces(cell, params, carry, xs, engine=engine, tolerance=tolerance, **flags)
    params, carry, xs, *_ = example(cell, in_dim=in_dim)
    run = functools.partial(engine.run, cell, params)
    whole = jax.jit(run)(carry, xs)
    mapped = jax.jit(jax.vmap(run, (0, 1), (0, 1)))(carry, xs)
    assert_close(mapped, whole, tolerance)


def check_capabilities(cell: Cell) -> None:
    """Raises `AssertionError` unless the capabilities that a cell names are known, and it has their methods."""
    for name in sorted(cell.capabilities):
        if name not in CAPABILITIES:
            raise AssertionError(f"{cell!r} names {name!r} in its capabilities; known are {sorted(CAPABILITIES)}")
        lacking = [method for method in CAPABILITIES[name] if getattr(type(cell), method) is getattr(Cell, method)]
        if lacking:
            raise AssertionError(f"{cell!r} names {name!r} in its capabilities, but does not implement {lacking}")


def check_step(cell: Cell, params: Params, carry: Carry, x: Array) -> None:
    """Raises `AssertionError` unless a step keeps the carry's structure, shapes and dtypes and returns `[..., H]`."""
    for leaf in jax.tree.leaves(carry):
        if leaf.shape[: x.ndim - 1] != x.shape[:-1]:
            raise AssertionError(f"initial_carry of {cell!r} has {leaf.shape} where the batch is {x.shape[:-1]}")
    found = cell.step(params, carry, cell.project(params, x))
    if not isinstance(found, tuple) or len(found) != 2 or not hasattr(found[1], "shape"):
        raise AssertionError(f"step of {cell!r} gives {found!r}, expected the new carry and an output [..., H]")
    after, y = found
    before_type, after_type = (jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (carry, after))
    if jax.tree.structure(carry) != jax.tree.structure(after) or before_type != after_type:  # type: ignore[operator]
        raise AssertionError(f"step of {cell!r} changes the carry from {before_type} to {after_type}")
    if y.shape[:-1] != x.shape[:-1]:
        raise AssertionError(f"step of {cell!r} gives {y.shape}, expected [..., H] with the batch {x.shape[:-1]}")


def check_finite(cell: Cell, found: tuple, masked: bool) -> None:
    """Raises `AssertionError` unless everything that `value_and_gradients` returned is finite."""
    for what, tree in zip(("values", "gradients"), found, strict=True):
        for leaf in jax.tree.leaves(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
                why = "; in masked steps x is 0, where its derivative must be finite too" if masked else ""
                raise AssertionError(f"{what} of {cell!r} are not finite{why}")


def check_pieces(
    cell: Cell, params: Params, carry: Carry, xs: Array, *, engine: Engine, tolerance: float, mask: Mask, resets: Resets
) -> None:
    """Raises `AssertionError` unless running `[0:k]`, then `[k:T]` from its carry, matches the whole."""
    run = jax.jit(functools.partial(engine.run, cell))
    whole = run(params, carry, xs, mask=mask, resets=resets)
    outputs, cuts = [], (0, xs.shape[0] // 2, xs.shape[0])
    for start, stop in itertools.pairwise(cuts):
        flags = {
            name: None if flag is None else flag[start:stop] for name, flag in (("mask", mask), ("resets", resets))
        }
        carry, ys = run(params, carry, xs[start:stop], **flags)
        outputs.append(ys)
    assert_close((carry, jnp.concatenate(outputs)), whole, tolerance)
