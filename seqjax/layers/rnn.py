# SPDX-License-Identifier: Apache-2.0
"""A cell run over time by an engine, as a layer."""

import dataclasses

import jax

from seqjax import require
from seqjax.base import Array, Carry, Cell, Engine, Key, Layer, Mask, Params, Resets, Shape
from seqjax.engines.auto import Auto
from seqjax.plan import Plan
from seqjax.sequences import check_sequence


@dataclasses.dataclass(frozen=True, repr=False)
class RNN(Layer):
    """A recurrent layer: `carry_t, y_t = cell.step(params, carry_{t-1}, x_t)` for every t.

    Its params and carry are its cell's.

    Args:
      cell: the recurrence.
      engine: how it is run; every engine gives the same numbers. `Auto` picks one; see `explain`.

    Raises:
      ValueError: `cell` is not a `Cell`, or `engine` is not an `Engine`.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = RNN(seqjax.LSTM(4))
    >>> xs = jnp.ones((50, 32, 1))
    >>> params = model.init(jax.random.key(0), xs)
    >>> carry, ys = jax.jit(model.apply)(params, model.initial_carry(params, (32,)), xs)
    >>> ys.shape
    (50, 32, 4)
    """

    cell: Cell
    engine: Engine = Auto()

    def __post_init__(self):
        for name, kind in (("cell", Cell), ("engine", Engine)):
            given = getattr(self, name)
            if not isinstance(given, kind):
                raise ValueError(f"RNN: {name} must be a seqjax {kind.__name__}, got {given!r}.")

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return xs.shape[1:-1]  # a cell may have integer features; only Embed takes ids

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        check_sequence(xs)
        require.key("RNN", key)
        return self.cell.init(key, xs.shape[-1])

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        require.batch_shape(batch_shape)
        return self.cell.initial_carry(params, batch_shape)

    def apply(
        self,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        return self.engine.run(self.cell, params, carry, xs, mask=mask, resets=resets, key=key)

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        carry = jax.eval_shape(lambda params: self.cell.initial_carry(params, xs.shape[1:-1]), params)
        return (self.engine.plan(self.cell, params, carry, xs),)

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        check_sequence(xs, mask, resets, features=True)
        if self.cell.couples_batch and (mask is not None or resets is not None):
            raise ValueError(f"{self!r} takes its statistics from whole sequences: calibrate without mask and resets.")
        return self.cell.calibrate(params, carry, xs)
