# SPDX-License-Identifier: Apache-2.0
"""Truncated backpropagation through time."""

import dataclasses

import jax

from seqjax import require
from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.checkpointed import run_segments, segment_bytes
from seqjax.engines.scan import Scan
from seqjax.engines.steps.sequential import SequentialEngine, check_known_length, check_sequential
from seqjax.engines.steps.stepping import prepare
from seqjax.plan import Plan


@dataclasses.dataclass(frozen=True, repr=False)
class Truncated(Engine):
    """Runs a cell window by window: the carry is passed on, but its gradient is cut.

    Values are those of every other engine. Gradients reach at most `window` steps back: they are
    those of a loop that detaches the carry before steps window, 2·window, ... This is the only engine
    whose gradients differ from `Scan`'s, as its name says. The initial carry has the gradient
    of the first window.

    A window is recomputed in the reverse pass, so a gradient holds the carries between windows and the
    residuals of one of them, besides inputs and outputs, at the cost of one more forward pass.
    For sequences too long for memory, `seqjax.training` goes through them window by window. Forward mode (`jvp`,
    `jacfwd`) is refused.

    Args:
      window: steps in a window.
      inner: what runs a window: `Scan()`, or `Fused()` for a kernel.

    Raises:
      ValueError: a window that is not a positive integer, or an engine that cannot run pieces.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = seqjax.RNN(seqjax.GRU(4), Truncated(window=20))
    >>> xs = jnp.ones((100, 2, 3))
    >>> params = model.init(jax.random.key(0), xs)
    >>> def last(xs):
    ...     return model.apply(params, model.initial_carry(params, (2,)), xs)[1][-1].sum()
    >>> reached = jnp.abs(jax.grad(last)(xs)).sum((1, 2)) > 0
    >>> int(reached.sum()), bool(reached[79]), bool(reached[80])
    (20, False, True)

    Source: Williams and Peng 1990, truncation to fixed windows (their h = h').
    """

    window: int
    inner: SequentialEngine = Scan()

    def __post_init__(self):
        require.positive("Truncated", window=self.window)
        check_sequential("Truncated", self.inner)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        T = xs.shape[0]
        memory = segment_bytes(cell, self.inner, (min(self.window, T),), params, carry, xs)
        return Plan(repr(cell), repr(self), f"gradients see at most {self.window} steps back", memory, T)

    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        self.inner.check(cell)
        params, initial, carry, steps = prepare(cell, params, carry, xs, mask, resets, key)
        check_known_length(self, xs.shape[0])
        return run_segments(cell, self.inner, (self.window,), params, initial, carry, steps, cut=True)
