# SPDX-License-Identifier: Apache-2.0
"""What cells with `carry_t = decay_t ⊗ carry_{t-1} + drive_t` share: their step, and a state in at least float32."""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Params
from seqjax.dtypes import DTypes, at_least_float32


def affine_step(cell: Cell, params: Params, carry: Carry, z: Any) -> tuple[Carry, Array]:
    """One step of a cell, from its coefficients and readout."""
    decay, drive = cell.coefficients(params, z)
    carry = jax.tree.map(lambda h, a, b: a * h + b, carry, decay, drive)
    return carry, cell.readout(params, carry, z)


def state_dtype(dtypes: DTypes, weight: Array) -> jnp.dtype:
    """The dtype of an affine cell's state: `dtypes.carry`, or else the compute dtype, widened to at least float32.

    In 16 bits a gate near 1 rounds to 1, and a sum over thousands of steps stalls.
    """
    return jnp.dtype(dtypes.carry or at_least_float32(dtypes.of_compute(weight)))


def check_state(owner: str, dtypes: DTypes) -> None:
    """Rejects a 16-bit carry, and anything that is not a `DTypes`.

    Raises:
      ValueError: naming the dtype.
    """
    require.dtypes(owner, dtypes)
    if dtypes.carry is not None and at_least_float32(dtypes.carry) != jnp.dtype(dtypes.carry):
        raise ValueError(
            f"{owner} keeps its state in float32 or float64, got DTypes(carry={dtypes.carry!r}); "
            "leave carry out: compute='bfloat16' alone gives a float32 state."
        )
