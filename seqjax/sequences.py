# SPDX-License-Identifier: Apache-2.0
"""What counts as a sequence: `xs [T, ..., D]`, or ids `[T, ...]`, with a mask and resets `[T, ...]`."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array


def mask_from_lengths(lengths: Array, T: int) -> Array:
    """The mask of sequences that are padded at the end.

    Args:
      lengths: `[...]` int, the number of valid steps in each sequence; 0 for a sequence that is all padding.
      T: number of steps in the padded batch.

    Returns:
      `[T, ...]` bool, True where `t < lengths`.

    Raises:
      ValueError: `lengths` are not integers, or `T` is not a number of steps.

    >>> import jax.numpy as jnp
    >>> mask_from_lengths(jnp.array([0, 2]), 3).astype(int).tolist()
    [[0, 1], [0, 1], [0, 0]]
    """
    lengths = jnp.asarray(lengths)
    counts = isinstance(T, int | np.integer) or jax.export.is_symbolic_dim(T)
    if not counts or isinstance(T, bool) or T < 0:
        raise ValueError(f"T must be a number of steps, got {T!r}.")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}.")
    steps = jnp.arange(T).reshape((T,) + (1,) * lengths.ndim)
    return steps < lengths.astype(steps.dtype)


def expand(flag: Array, like: Array) -> Array:
    """`flag` with trailing axes of size 1 up to the rank of `like`, to select between arrays like it."""
    return flag.reshape(flag.shape + (1,) * (like.ndim - flag.ndim))


def hide(xs: Array, mask: Array | None) -> Array:
    """`xs [T, ...]` or `[T, ..., D]` with zeros in the steps where `mask [T, ...]` is False; also for a single step.

    >>> import jax.numpy as jnp
    >>> hide(jnp.array([[1.0], [jnp.nan]]), jnp.array([True, False])).tolist()
    [[1.0], [0.0]]
    """
    return xs if mask is None else jnp.where(expand(mask, xs), xs, jnp.zeros_like(xs))


def last_step(mask: Array) -> Array:
    """The last step of each sequence where `mask [T, ...]` is True, `[...]` int; T - 1 if there is none.

    >>> import jax.numpy as jnp
    >>> last_step(jnp.array([[True, False], [True, False], [False, False]])).tolist()
    [1, 2]
    """
    return mask.shape[0] - 1 - jnp.argmax(jnp.flip(mask, 0), axis=0)


def step_shape(xs: Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """`(T, ...)`, the time and batch axes of a sequence. Integer ids have no feature axis.

    >>> import jax.numpy as jnp
    >>> step_shape(jnp.ones((5, 2, 3))), step_shape(jnp.ones((5, 2), int))
    ((5, 2), (5, 2))
    """
    return xs.shape if jnp.issubdtype(xs.dtype, jnp.integer) else xs.shape[:-1]


def as_sequence(xs: Array, mask: Array | None = None, resets: Array | None = None) -> Array:
    """`xs`, checked by `check_sequence`, as a JAX array; without x64, NumPy's float64 becomes float32."""
    check_sequence(xs, mask, resets)
    return jnp.asarray(xs)


def check_sequence(
    xs: Array | jax.ShapeDtypeStruct, mask: Array | None = None, resets: Array | None = None, *, features: bool = False
) -> None:
    """Rejects anything that is not a sequence `[T, ..., D]` with `mask` and `resets` `[T, ...]`.

    With `features`, integers are not ids: they have a feature axis too.

    Raises:
      ValueError: saying what was given, what was expected and what to do.
    """
    for name, given in (("xs", xs), ("mask", mask), ("resets", resets)):
        if given is None and name != "xs":
            continue
        if not (hasattr(given, "shape") and hasattr(given, "dtype")):
            raise ValueError(
                f"{name} must be an array, got {type(given).__name__}; "
                "use jnp.asarray for numbers, or jax.ShapeDtypeStruct where only the shape is known."
            )
    steps = xs.shape[:-1] if features else step_shape(xs)
    if not steps:
        raise ValueError(
            f"xs must be [T, ..., D] with at least a time and a feature axis, got shape {xs.shape}; "
            "for scalar series use xs[..., None]."
        )
    if xs.shape[0] == 0:
        raise ValueError(f"xs has no steps (shape {xs.shape}); axis 0 is time and needs T >= 1.")
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is None:
            continue
        if flags.shape != steps:
            raise ValueError(f"{name} must have the shape [T, ...] of xs without features, {steps}, got {flags.shape}.")
        if flags.dtype != bool:
            raise ValueError(f"{name} must be bool, got {flags.dtype}; write {name}.astype(bool) if 1 means True.")
