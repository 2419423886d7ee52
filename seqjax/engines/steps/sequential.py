# SPDX-License-Identifier: Apache-2.0
"""What engines that take steps in order have in common, so that other engines can run pieces of a sequence by them."""

import abc
from typing import Any

from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.steps.stepping import Steps, prepare


class SequentialEngine(Engine):
    """An engine that runs a piece of a sequence in the same way as the whole."""

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
        self.check(cell)
        params, initial, carry, steps = prepare(cell, params, carry, xs, mask, resets, key)
        return self.run_steps(cell, params, initial, carry, steps)

    def check(self, cell: Cell) -> None:
        """Rejects a cell that this engine cannot run, or a machine that it cannot run on.

        Raises:
          ValueError: saying which engines would work.
        """

    @abc.abstractmethod
    def run_steps(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        """`run` on prepared steps; `initial` is the carry to which resets go back."""

    def run_without_rule(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        """`run_steps` without a `custom_vjp` of its own, where possible. Engines that recompute use it forward, as
        Hessian-vector products need forward mode, which JAX does not allow through a `custom_vjp`."""
        return self.run_steps(cell, params, initial, carry, steps)


def check_known_length(engine: Engine, T: int) -> None:
    """Rejects a symbolic length, as in an export, for engines that cut a sequence.

    Raises:
      ValueError: naming the engine that would work.
    """
    if not isinstance(T, int):
        raise ValueError(f"{engine!r} cuts a sequence whose length it knows, got T = {T}; export with Scan().")


def check_sequential(owner: str, inner: Engine) -> None:
    """Rejects an engine that cannot run pieces of a sequence.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(inner, SequentialEngine):
        raise ValueError(f"{owner}: inner must take steps in order, like Scan and Fused, got {inner!r}.")


def run_prepared(
    engine: Engine, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """`engine.run` on prepared steps.

    Raises:
      ValueError: prepared keys, for an engine that would split its own.
    """
    if isinstance(engine, SequentialEngine):
        engine.check(cell)
        return engine.run_steps(cell, params, initial, carry, steps)
    if steps.key is not None:
        raise ValueError(
            f"{engine!r} cannot train {cell!r} on a piece of a sequence, whose keys are drawn already; "
            "use Scan or Checkpointed."
        )
    return engine.run(cell, params, carry, steps.x, mask=steps.mask, resets=steps.reset)
