# SPDX-License-Identifier: Apache-2.0
"""One step of a recurrence with its reset and its mask, and its transpose, the same for the kernels of all backends."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from seqjax.base import Array
from seqjax.kernels.equations import Emit, Functions, Kind, Product, States
from seqjax.kernels.operands import MASKED, RESET, pick

Flags = Array | None
"""Bits `MASKED` and `RESET`, of a shape that broadcasts to that of a state; `None` if there are no masks or resets."""


def forward(
    kind: Kind,
    z: Sequence[Array],
    before: States,
    restart: States | None,
    flags: Flags,
    product: Product,
    functions: Functions,
    dtype: Any,
    carry: Any,
) -> tuple[States, tuple[Array, ...]]:
    """The states after a step, and what its transpose needs besides them.

    Args:
      kind: which recurrence.
      z: the projected inputs, one for each gate.
      before: the states before the step, in at least float32, like all that is computed here.
      restart: those that a reset goes back to, if there are resets.
      flags: of this step.
      product, functions: see `equations`.
      dtype: to which h is rounded, as it is also an output.
      carry: to which the other states are.
    """
    before = _restarted(flags, restart, before)
    after, kept = kind.forward(z, before, product, functions)
    after = tuple(state.astype(carry if i else dtype).astype(state.dtype) for i, state in enumerate(after))
    return after if flags is None else pick(flags & MASKED != 0, before, after), kept


def reverse(
    kind: Kind,
    kept: Sequence[Array],
    before: States,
    after: States,
    restart: States | None,
    flags: Flags,
    d_h: Array,
    d_states: States,
    d_restart: States,
    transposed: Product,
    emit: Emit,
    functions: Functions,
) -> tuple[States, States]:
    """The cotangents of the states before a step, and the sum of those of what resets go back to.

    Args:
      kind, before, restart, flags, functions: as for `forward`.
      kept: what it returned.
      after: those after the step, of which h is enough.
      d_h: the cotangent of the step's output, zero where it is masked.
      d_states: those of the states after the step.
      d_restart: the sum over later steps, empty if there are no resets.
      transposed, emit: see `equations`.
    """
    before = _restarted(flags, restart, before)
    masked = None if flags is None else flags & MASKED != 0
    d_after = d_states if masked is None else tuple(jnp.where(masked, 0.0, d) for d in d_states)
    d_after = (d_after[0] + d_h, *d_after[1:])
    d_before = kind.reverse(kept, before, after, d_after, transposed, emit, functions)
    d_before = d_before if masked is None else pick(masked, d_states, d_before)
    if restart is None:
        return d_before, d_restart
    again: Any = flags & RESET != 0  # type: ignore[operator]  # with resets there are flags
    d_restart = tuple(total + jnp.where(again, d, 0.0) for total, d in zip(d_restart, d_before, strict=True))
    return tuple(jnp.where(again, 0.0, d) for d in d_before), d_restart


def _restarted(flags: Flags, restart: States | None, before: States) -> States:
    return before if restart is None or flags is None else pick(flags & RESET != 0, restart, before)
