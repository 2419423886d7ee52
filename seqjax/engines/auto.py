# SPDX-License-Identifier: Apache-2.0
"""The engine that picks an engine: a fixed table, no measurement, no fallback at run time."""

import dataclasses

import jax

from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.associative import Associative
from seqjax.engines.checkpointed import Checkpointed
from seqjax.engines.fused import Fused
from seqjax.engines.scan import Scan
from seqjax.plan import Plan

LONG = 1024
"""Steps from which a sequence is run in segments."""


@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Engine):
    """Picks an engine from the cell, the length and the machine alone, so that a model is always run the same way.

    | cell                         | steps     | engine           | because                               |
    |------------------------------|-----------|------------------|---------------------------------------|
    | offers "affine"              | any       | `Associative()`  | its reverse pass is a scan as well    |
    | has a kernel, on one GPU     | any       | `Fused()`        | no launches between steps             |
    | any other                    | < 1024    | `Scan()`         | all residuals fit near the processor  |
    | any other                    | >= 1024   | `Checkpointed()` | memory of √T steps in place of T      |

    A cell has a kernel if it is one that `Fused` runs and its recurrent weights fit on the chip. With several
    devices XLA could not split the kernel, so there it is yours to pick, inside `jax.shard_map`.

    The parallel-in-time engines for nonlinear cells (`Relaxed`, `Newton`) and `Sharded` are never
    picked: they pay on many devices and for contracting dynamics, which only you know.
    `seqjax.explain(model, xs)` shows the choice.

    >>> import seqjax
    >>> Auto().choose(seqjax.GRU(4), 100)[0], Auto().choose(seqjax.GRU(4), 10_000)[0]
    (Scan(), Checkpointed())
    """

    def choose(self, cell: Cell, T: int) -> tuple[Engine, str]:
        """The engine for `T` steps of `cell`, and why."""
        if "affine" in cell.capabilities:
            return Associative(), "the recurrence is linear in its carry"
        if jax.device_count() == 1 and Fused().runs(cell):
            return Fused(), "there is a kernel for it"
        if T < LONG:
            return Scan(), f"T < {LONG}"
        return Checkpointed(), f"T >= {LONG}"

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
        engine, _ = self.choose(cell, xs.shape[0])
        return engine.run(cell, params, carry, xs, mask=mask, resets=resets, key=key)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        engine, why = self.choose(cell, xs.shape[0])
        plan = engine.plan(cell, params, carry, xs)
        return plan._replace(why=f"{why}: {plan.why}")
