# SPDX-License-Identifier: Apache-2.0
"""What a training step changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqjax import require
from seqjax.base import Array, Carry, Params
from seqjax.training.optimizers import check_optimizer


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: int32 `()`: steps done, including skipped ones.
      params: the model's.
      opt_state: the optimizer's.
      skipped: int32 `()`: steps that were not finite and left params, opt_state and carry unchanged.
      skipped_in_row: int32 `()`: how many of them since the last good step.
      clipped: int32 `()`: steps whose gradient a `clip` in the optimizer changed.
      carry: what the next batch continues from if training is stateful; () if every batch starts anew.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    skipped: Array
    skipped_in_row: Array
    clipped: Array
    carry: Carry = ()


def init_state(params: Params, optimizer: optax.GradientTransformation, carry: Carry = ()) -> TrainState:
    """The state before the first step.

    Args:
      params: the model's params.
      optimizer: any optax transformation.
      carry: the model's initial carry, if training is stateful.

    Returns:
      The state at step 0, with copies of `params` and `carry`.

    Raises:
      ValueError: an `optimizer` that is not an optax transformation.

    >>> state = init_state({"w": jnp.ones(3)}, optax.sgd(0.1))
    >>> int(state.step), state.carry
    (0, ())
    """
    check_optimizer("init_state", optimizer)
    zero = jnp.zeros((), jnp.int32)
    with jax.numpy_dtype_promotion("standard"):  # as in a training step
        opt_state = optimizer.init(params)
    state = TrainState(zero, params, opt_state, zero, zero, zero, carry)
    # Without weak types, which a checkpoint would lose, so that a resumed step would be traced again; and as copies,
    # so that no two leaves share a buffer (optimizers may start from the params) and the state can be donated.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True), state)


def check_state(owner: str, given: Any) -> None:
    """Rejects anything that is not a `TrainState`.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(given, TrainState):
        raise ValueError(f"{owner} takes a TrainState, init_state(params, optimizer), got {require.shown(given)}.")
