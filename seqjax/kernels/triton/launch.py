# SPDX-License-Identifier: Apache-2.0
"""How a kernel is launched, and where it can be: everything that depends on the backend."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl

from seqjax import machine
from seqjax.kernels.operands import varying_as

SMALLEST = 16
"""The fewest rows and columns of a product on the tensor cores."""
HOPPER = 227 * 2**10
"""Bytes of shared memory on a processor of a Hopper, on which limits on sizes were found."""


class Part(NamedTuple):
    """An operand or result of a kernel, and the block of it that a program sees."""

    array: Any  # or its `ShapeDtypeStruct`
    spec: pl.BlockSpec


def missing() -> str | None:
    """What these kernels need and do not have on the default device; `None` if they run there.

    >>> missing()
    "an NVIDIA GPU, and the device here is 'cpu'"
    """
    if machine.platform() not in ("cuda", "gpu"):
        return f"an NVIDIA GPU, and the device here is {machine.platform()!r}"
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError:
        return f"a jax whose Pallas has a Triton backend, as 0.10 has, and jax {jax.__version__} has none"
    return None


def room(on_hopper: int) -> int:
    """What a limit in bytes on a Hopper is on the default device, which may have less shared memory."""
    return on_hopper * getattr(machine.device(), "shared_memory_per_block_optin", HOPPER) // HOPPER


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
    """Runs `body(inputs, outputs)` at every point of the grid, with pytrees of `Part`s turned into refs."""

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


def _is_part(node: Any) -> bool:
    return isinstance(node, Part)


def _compiler_params(warps: int) -> Any:
    """Parameters that select the backend; a single stage, as each step waits for the one before."""
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=warps, num_stages=1)
