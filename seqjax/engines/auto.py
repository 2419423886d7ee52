# SPDX-License-Identifier: Apache-2.0
"""The engine that picks an engine, from a fixed table: no measurements, and no fallback at run time."""

import dataclasses

import jax

from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines.associative import Associative
from seqjax.engines.checkpointed import Checkpointed
from seqjax.engines.fused import Fused
from seqjax.engines.scan import Scan
from seqjax.engines.steps.checks import check_run
from seqjax.engines.steps.sequential import SequentialEngine
from seqjax.machine import platform
from seqjax.plan import Plan
from seqjax.spread import is_spread
from seqjax.trees import is_known

LONG = 1024
"""The length from which a sequence may be run in segments."""
KEPT, KEPT_ELSEWHERE, KEPT_BY_KERNEL = 2**26, 2**30, 2**33
"""Bytes that a gradient may need for a long sequence to be run whole: by the loop on a CPU and elsewhere, and by a
kernel (the last two not measured). Beyond that, the memory that segments save is worth their second forward pass."""


@dataclasses.dataclass(frozen=True, repr=False)
class Auto(Engine):
    """Picks an engine by the cell, the shapes and the machine alone, so that a model always runs the same way.

    | cell                     | steps   | memory    | engine                        | because                         |
    |--------------------------|---------|-----------|-------------------------------|---------------------------------|
    | any                      | unknown | any       | `Scan()`                      | T is symbolic, in an export     |
    | offers "affine", no keys | any     | any       | `Associative()`               | its reverse pass is a scan, too |
    | has a kernel, on one GPU | < 1024  | any       | `Fused()`                     | no launches between steps       |
    | has a kernel, on one GPU | >= 1024 | <= 8 GiB  | `Fused()`                     | no launches between steps       |
    | has a kernel, on one GPU | >= 1024 | more      | `Checkpointed(inner=Fused())` | memory of √T steps, not of T    |
    | any other                | < 1024  | any       | `Scan()`                      | nothing is computed twice       |
    | any other                | >= 1024 | <= 64 MiB | `Scan()`                      | nothing is computed twice       |
    | any other                | >= 1024 | more      | `Checkpointed()`              | memory of √T steps, not of T    |

    Memory is what a gradient needs besides inputs and outputs, by the engine's plan; off the CPU `Scan()` may
    need 1 GiB. A cell has a kernel if `Fused` can run it and its recurrent weights fit on the chip.
    With a symbolic batch, `Scan()` is picked unless the cell is affine. With several devices XLA could not
    split the kernel, so `Fused` is yours to pick there, inside `jax.shard_map`.

    The parallel-in-time engines for nonlinear cells (`Relaxed`, `Newton`) and `Sharded` are never
    picked: they pay off on many devices and for contracting dynamics, which only you can know.
    `seqjax.explain(model, xs)` shows the choice. For forward mode (`jvp`, `jacfwd`) through a cell that is not affine
    pick `Scan(adjoint=False)`.

    Raises:
      ValueError: in `run`, params, a carry, inputs, a mask or resets that do not fit the cell; in training, a mask for
        a cell with batch normalization.

    >>> import jax, seqjax
    >>> cell = seqjax.GRU(64)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry = cell.initial_carry(params, (8,))
    >>> [Auto().choose(cell, params, carry, jax.ShapeDtypeStruct((T, 8, 3), "float32"))[0] for T in (1000, 100_000)]
    [Scan(), Checkpointed()]
    """

    def choose(self, cell: Cell, params: Params, carry: Carry, xs: Array | jax.ShapeDtypeStruct) -> tuple[Engine, str]:
        """The engine that runs `cell` on arrays of these shapes, and why."""
        T = xs.shape[0]
        if "affine" in cell.capabilities and not cell.stochastic and isinstance(T, int):
            return Associative(), "the recurrence is linear in its carry"
        if not is_known(carry, xs):
            return Scan(), "T or the batch is symbolic"
        kernel = jax.device_count() == 1 and Fused().runs(cell, params) and not is_spread(xs)
        whole: SequentialEngine = Fused() if kernel else Scan()
        why = "there is a kernel for it, " if kernel else ""
        if T < LONG:
            return whole, f"{why}T < {LONG}"
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, carry, xs))
        most = KEPT_BY_KERNEL if kernel else KEPT if platform() == "cpu" else KEPT_ELSEWHERE
        if whole.plan(cell, *shapes).memory <= most:
            return whole, f"{why}a gradient needs at most {most >> 20} MiB"
        return Checkpointed(inner=whole), f"{why}T >= {LONG}, and a gradient would need more than {most >> 20} MiB"

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
        check_run(cell, params, carry, xs, mask, resets)
        engine, _ = self.choose(cell, params, carry, xs)
        return engine.run(cell, params, carry, xs, mask=mask, resets=resets, key=key)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        engine, why = self.choose(cell, params, carry, xs)
        plan = engine.plan(cell, params, carry, xs)
        return plan._replace(why=f"{why}: {plan.why}")
