# SPDX-License-Identifier: Apache-2.0
"""Which cells have kernels, which of them, and where."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.activations import Activation, activation_function, bounds, slope_from_output
from seqjax.base import Cell, Params
from seqjax.cells.gru import GRU
from seqjax.cells.heads import MultiHead
from seqjax.cells.lstm import LSTM
from seqjax.cells.simple import Simple
from seqjax.kernels import equations
from seqjax.kernels.hopper import recurrence as hopper
from seqjax.kernels.hopper import tiles
from seqjax.kernels.triton import recurrence as triton

ACTIVATIONS = ("tanh", "sigmoid", "relu", "identity")
COARSE = (None, "default", "bfloat16", "high", "tensorfloat32", "BF16_BF16_F32", "F16_F16_F32", "TF32_TF32_F32")
"""Values of `jax.default_matmul_precision` by which a GPU multiplies float32 as TF32 or more coarsely."""


class Kernel(NamedTuple):
    """The kind of kernel that a cell needs, and its activations with their slopes."""

    kind: equations.Kind
    functions: equations.Functions


def kernel(cell: Any) -> Kernel:
    """What runs a cell that is supported (see `unsupported`)."""
    if isinstance(cell, LSTM):
        kind = equations.LSTM
    elif isinstance(cell, GRU):
        kind = equations.GRU_AFTER if cell.reset == "after" else equations.GRU_BEFORE
    else:
        kind = equations.SIMPLE
    names = (*_activations(cell).values(), "sigmoid")[:2]
    functions: tuple[Any, ...] = (*map(activation_function, names), *map(slope_from_output, names))
    return Kernel(kind, equations.Functions(*functions))


def unsupported(cell: Cell) -> str | None:
    """Why there is no kernel for `cell`; `None` if there is one.

    >>> from seqjax import GRU, PeepholeLSTM
    >>> unsupported(GRU(4)), unsupported(PeepholeLSTM(4))
    (None, 'there are kernels for Simple, LSTM and GRU')
    """
    if isinstance(cell, MultiHead):
        return unsupported(cell.cell)
    if type(cell) not in (Simple, LSTM, GRU):  # one that is derived from them may have other equations
        return "there are kernels for Simple, LSTM and GRU"
    given: Any = cell
    if given.normalize is not None:
        return f"normalize={given.normalize!r}"
    if getattr(given, "proj_dim", None) is not None:
        return f"proj_dim={given.proj_dim}"
    for name, activation in _activations(given).items():
        if activation not in ACTIVATIONS:
            return f"{name}={activation!r}, kernels know {', '.join(map(repr, ACTIVATIONS))}"
    compute = jnp.dtype(given.dtypes.compute or given.dtypes.params)
    carry = jnp.dtype(given.dtypes.carry or compute)
    if carry not in (compute, max(compute, jnp.dtype("float32"), key=lambda dtype: dtype.itemsize)):
        return f"it computes in {compute} and carries {carry}, which may be that or float32, but not narrower"
    return None


def no_room(cell: Any, params: Params) -> str | None:
    """Why the kernels for the GPU at hand cannot run a cell that is supported; `None` if they can."""
    if isinstance(cell, MultiHead):
        return no_room(cell.cell, params)
    dtype = cell.dtypes.of_compute(params.w_in)
    if dtype.itemsize > 4:
        return f"it computes in {dtype}, which the kernels do not support"
    kind = kernel(cell).kind
    if triton.fits(kind.gates, cell.hidden_dim, dtype) or on_hopper(cell, dtype):
        return None
    took = triton.weight_bytes(1, cell.hidden_dim, dtype)
    why = f"in {dtype} one gate's recurrent weights take {took} bytes on chip, of {triton.room(triton.ONE_GATE)}"
    if hopper.available() and tiles.fits(kind, cell.hidden_dim, dtype):
        return f"{why}, and the kernels for a Hopper, which would have room, {_inexact(cell)}"
    return f"{why}; cells.MultiHead runs it in heads that fit"


def on_hopper(cell: Any, dtype: Any) -> bool:
    """Whether the Hopper kernels run a cell that is supported: there is a Hopper, and the weights fit.

    In float32 they multiply scaled float16 numbers. That is as exact as TF32 as long as states are bounded, so cells
    whose states may grow, and runs that ask JAX for more than TF32, are left to the other kernels.
    """
    if not hopper.available() or not tiles.fits(kernel(cell).kind, cell.hidden_dim, dtype):
        return False
    return jnp.dtype(dtype) != jnp.float32 or _inexact(cell) is None


def _inexact(cell: Any) -> str | None:
    """Why scaled float16 is not good enough for float32; `None` if it is."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    if precision not in COARSE:
        return f"multiply no more exactly than TF32, where jax.default_matmul_precision is {precision!r}"
    free = [f"{name}={given!r}" for name, given in _activations(cell).items() if not _bounded(given)]
    return f"need bounded states in float32, unlike those of {', '.join(free)}" if free else None


def _bounded(activation: Activation) -> bool:
    low, high = bounds(activation) or (-math.inf, math.inf)
    return math.isfinite(low) and math.isfinite(high)


def _activations(cell: Any) -> dict[str, Any]:
    """By the names of their fields."""
    return {name: getattr(cell, name) for name in ("activation", "recurrent_activation") if hasattr(cell, name)}
