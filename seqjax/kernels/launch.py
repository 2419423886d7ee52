# SPDX-License-Identifier: Apache-2.0
"""How a kernel is launched: the only file that depends on which Pallas backend it is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from seqjax.base import Array

SMALLEST = 16
"""Rows and columns that a product on the tensor cores has at least."""


class Part(NamedTuple):
    """A kernel's operand or result, and the block of it that a program sees."""

    array: Any  # or its `ShapeDtypeStruct`
    spec: pl.BlockSpec


def available(platform: str | None = None) -> bool:
    """Whether this JAX can compile these kernels for `platform`, by default that of the default backend.

    >>> available("cpu")
    False
    """
    if (platform or jax.default_backend()) not in ("cuda", "gpu"):
        return False
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError:
        return False
    return True


def launch(
    body: Callable[[Any, Any], None],
    inputs: Any,
    outputs: Any,
    *,
    grid: tuple[int, ...],
    warps: int,
    interpret: bool,
    name: str,
) -> Any:
    """Runs `body(inputs, outputs)`, pytrees of `Part`s turned into refs, on every point of the grid.

    Raises:
      ValueError: this JAX has no Triton backend for Pallas.
    """

    def split(parts: Any) -> tuple[Any, Any]:
        return tuple(jax.tree.map(lambda part, f=f: part[f], parts, is_leaf=_is_part) for f in (0, 1))

    arrays, in_specs = split(inputs)
    shapes, out_specs = split(outputs)
    call = pl.pallas_call(
        body,
        out_shape=[varying_as(arrays, shapes)],
        grid=grid,
        in_specs=[in_specs],
        out_specs=[out_specs],
        interpret=interpret,
        compiler_params=None if interpret else _compiler_params(warps),
        name=name,
    )
    return call(arrays)[0]


def varying_as(arrays: Any, shapes: Any) -> Any:
    """`shapes` of results, inside `jax.shard_map` over the same devices as the operands `arrays` that vary most."""
    most = max((jax.typeof(a).manual_axis_type for a in jax.tree.leaves(arrays)), key=lambda kind: len(kind.varying))
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, manual_axis_type=most), shapes)


def _is_part(node: Any) -> bool:
    return isinstance(node, Part)


def _compiler_params(warps: int) -> Any:
    """What picks the backend; one stage, as each step waits for the one before."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        raise ValueError(
            f"jax {jax.__version__} has no Triton backend for Pallas, which these kernels are written for; "
            "use a jax that has it (0.10 does), or another engine: Scan, Checkpointed or Associative."
        ) from None
    return triton.CompilerParams(num_warps=warps, num_stages=1)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and `least`.

    >>> power_of_two(20), power_of_two(3, 16)
    (32, 16)
    """
    return max(least, 1 << (n - 1).bit_length())


def pad(array: Array, axis: int, size: int) -> Array:
    """`array` with zeros after it on `axis`, up to `size`.

    >>> pad(jnp.ones(2), 0, 3).tolist()
    [1.0, 1.0, 0.0]
    """
    missing = size - array.shape[axis]
    widths = [(0, missing if i == axis % array.ndim else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths) if missing else array
