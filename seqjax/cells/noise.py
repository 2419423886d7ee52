# SPDX-License-Identifier: Apache-2.0
"""Noise inside a recurrence, as wrappers around a cell: zoneout and recurrent dropout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Key, Params, Shape
from seqjax.spread import alike


@dataclasses.dataclass(frozen=True, repr=False)
class Noise(Cell):
    """What the wrappers share: all but the step is that of the cell inside."""

    cell: Cell
    rate: float

    def __post_init__(self):
        owner = type(self).__name__
        require.cell(owner, self.cell)
        require.rate(owner, rate=self.rate)

    @property
    def stochastic(self) -> bool:
        return True

    def init(self, key: Array, in_dim: int) -> Params:
        return self.cell.init(key, in_dim)

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return self.cell.initial_carry(params, batch_shape)

    def project(self, params: Params, x: Array) -> Any:
        return self.cell.project(params, x)

    def gate_values(self, params: Params, carry: Carry, z: Any) -> dict[str, tuple[Array, Any]]:
        return self.cell.gate_values(params, carry, z)


@dataclasses.dataclass(frozen=True, repr=False)
class Zoneout(Noise):
    """Keeps each unit of the carry at its previous value with probability `rate`.

    carry_t = m ⊗ carry_{t-1} + (1 - m) ⊗ step(carry_{t-1}, x_t), m ~ Bernoulli(rate); in
    evaluation m is replaced by its mean. The output is the new `h`.

    Args:
      cell: a cell whose output is its carry's `h`.
      rate: the probability of keeping a unit of `h`, and of every other floating-point leaf except `c`.
      c_rate: the same for the memory cell `c` of an LSTM; `None`: the same as `rate`.

    Raises:
      ValueError: a rate outside [0, 1), a cell with batch normalization; in a step, a cell whose output is not its
        carry's `h`.

    >>> import seqjax
    >>> Zoneout(seqjax.LSTM(20), 0.05, c_rate=0.5)
    Zoneout(LSTM(20), 0.05, c_rate=0.5)

    Source: Krueger et al. 2017, equations 5 and 6.
    """

    c_rate: float | None = None

    def __post_init__(self):
        super().__post_init__()
        require.rate_if_given("Zoneout", c_rate=self.c_rate)
        if self.cell.couples_batch:
            raise ValueError(
                f"Zoneout wraps no cell with batch normalization, got {self.cell!r}: its population statistics would "
                "be those of another recurrence; use normalize='layer'."
            )

    def step(self, params: Params, carry: Carry, z: Array, key: Key = None) -> tuple[Carry, Array]:
        names = [name for name in getattr(carry, "_fields", ()) for _ in jax.tree.leaves(getattr(carry, name))]
        inner, *keys = [None] * (1 + len(names)) if key is None else jax.random.split(key, 1 + len(names))
        after, y = self.cell.step(params, carry, z, inner)
        h = getattr(after, "h", None)
        if getattr(h, "shape", None) != y.shape or jnp.iscomplexobj(h):
            raise ValueError(f"Zoneout needs a cell whose carry has the output as `h`; that of {self.cell!r} does not.")

        def zone(name: str, before: Array, after: Array, key: Key) -> Array:
            if not jnp.issubdtype(after.dtype, jnp.inexact):
                return after  # e.g. a count of steps
            rate = float(self.c_rate if name == "c" and self.c_rate is not None else self.rate)
            if key is None:
                return rate * before + (1 - rate) * after
            return jnp.where(alike(jax.random.bernoulli(key, rate, after.shape), after), before, after)

        befores, (afters, structure) = jax.tree.leaves(carry), jax.tree.flatten(after)
        after = jax.tree.unflatten(structure, map(zone, names, befores, afters, keys))
        return after, after.h.astype(y.dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class RecurrentDropout(Noise):
    """Drops units of h_{t-1} at each step, but only where the recurrent products see it.

    h̃ = m ⊗ h_{t-1} / (1 - rate), m ~ Bernoulli(1 - rate), enters W_h h̃ only: what the cell
    remembers (`c` of an LSTM, z ⊗ h of a GRU) is left alone.

    Args:
      cell: a cell with recurrent products: `Simple`, `LSTM`, `PeepholeLSTM`, `GRU`.
      rate: the probability of dropping.

    Raises:
      ValueError: a rate outside [0, 1), or a cell without recurrent products.

    >>> import seqjax
    >>> RecurrentDropout(seqjax.GRU(20), 0.25)
    RecurrentDropout(GRU(20), 0.25)

    Source: Moon et al. 2015; Semeniuta, Severyn and Barth 2016, section 4.
    """

    def __post_init__(self):
        super().__post_init__()
        if "seen" not in self.cell.capabilities:
            raise ValueError(
                f"RecurrentDropout needs a cell with recurrent products that offers 'seen'; {self.cell!r} does not."
            )

    def step(self, params: Params, carry: Carry, z: Array, key: Key = None) -> tuple[Carry, Array]:
        if key is None:
            return self.cell.step(params, carry, z)
        kept = float(1 - self.rate)
        keep = alike(jax.random.bernoulli(key, kept, carry.h.shape), carry.h)
        seen = jnp.where(keep, carry.h / kept, jnp.zeros_like(carry.h))
        return self.cell.step_seen(params, carry, seen, z)
