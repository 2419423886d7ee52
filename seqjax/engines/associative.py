# SPDX-License-Identifier: Apache-2.0
"""The engine for cells that are affine in their carry, for which all that remains in time is a linear recurrence."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Engine, Key, Mask, Params, Resets
from seqjax.engines import linear
from seqjax.engines.steps.loops import loop
from seqjax.engines.steps.pieces import join, split_at, split_steps
from seqjax.engines.steps.stepping import Steps, prepare, visible
from seqjax.machine import platform
from seqjax.plan import Plan, residual_bytes
from seqjax.sequences import expand, hide
from seqjax.trees import tree_bytes

CACHED = 256
"""The most steps in a segment of the loop, so that their coefficients stay in cache."""

Recurrence = Callable[..., Array]
"""`(decay, drive, carry, *, cut) -> states`, like `linear.linear_recurrence`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Associative(Engine):
    """Runs a cell with the affine capability: carry_t = decay_t ⊗ carry_{t-1} + drive_t.

    Coefficients and outputs of many steps are computed at once. What remains in time is a diagonal
    linear recurrence on the carry alone, whose reverse pass is the same recurrence backwards
    (`linear_recurrence`). Masks and resets become coefficients too: a masked step has decay 1 and
    drive 0; a step with a reset has drive + decay ⊗ initial carry, and is cut off from what came before.

    All coefficients of a segment exist at once and are recomputed in the reverse pass, so a gradient
    keeps T / segment carries and the coefficients of one segment, besides inputs and outputs. Forward
    mode and gradients of gradients work.

    Args:
      method: `"scan"`: a loop, best on a CPU, where it runs at memory speed; `"tree"`:
        `lax.associative_scan`, of depth log T, best on an accelerator; `"kernel"`: a kernel for NVIDIA GPUs
        that runs chunks of time at once; `"interpreter"`: that kernel run by Pallas' interpreter, for
        tests; `"auto"`: `"scan"` on a CPU, otherwise `"tree"`. All agree to rounding.
      segment: steps in a segment; `None`: for the loop, the largest divisor of T from 128 to 256, so that
        no copies are made for a remainder, or 256 if there is none; for the other methods, all steps.

    Raises:
      ValueError: an unknown method, a segment that is not a positive integer; in `run`, a cell
        that is not affine, or `"kernel"` without a GPU.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> from seqjax.cells.minimal import MinGRU
    >>> model = seqjax.RNN(MinGRU(4), Associative())
    >>> xs = jnp.ones((1000, 2, 3))
    >>> params = model.init(jax.random.key(0), xs)
    >>> carry, ys = model.apply(params, model.initial_carry(params, (2,)), xs)
    >>> ys.shape
    (1000, 2, 4)

    Source: Blelloch 1990, section 1.4; Martin and Cundy 2018 for the reverse pass.
    """

    method: str = "auto"
    segment: int | None = None

    def __post_init__(self):
        require.one_of("Associative", method=(self.method, ("auto", *linear.METHODS)))
        require.positive_if_given("Associative", segment=self.segment)

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
        check_affine(self, cell, key)
        params, initial, carry, steps = prepare(cell, params, carry, xs, mask, resets, key)
        method, size = self.choose(xs.shape[0])
        run = functools.partial(run_affine, cell, _recurrence(method), params, initial)
        count, rest = divmod(xs.shape[0], size)
        if count <= 1 and rest == 0:
            return run(carry, steps)

        whole, last = split_at(steps, count * size)
        # inside a scan, the loop itself keeps XLA from merging the two forward passes
        carry, ys = loop(jax.checkpoint(run, prevent_cse=False), carry, split_steps(whole, size))
        if rest == 0:
            return carry, join(ys)
        carry, rest_ys = run(carry, last)
        return carry, jnp.concatenate([join(ys), rest_ys])

    def choose(self, T: int) -> tuple[str, int]:
        """The method and the number of steps in a segment for a sequence of `T` steps.

        >>> Associative("scan").choose(1000), Associative("scan").choose(997), Associative("tree").choose(1000)
        (('scan', 250), ('scan', 256), ('tree', 1000))
        """
        method = self.method
        if method == "auto":
            method = "scan" if platform() == "cpu" else "tree"
        if self.segment is not None or method != "scan":
            return method, min(T, self.segment or T)
        divisors = (size for size in range(CACHED, CACHED // 2 - 1, -1) if T % size == 0)
        return method, min(T, next(divisors, CACHED))

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        check_affine(self, cell)
        T = xs.shape[0]
        method, size = self.choose(T)
        piece = functools.partial(run_affine, cell, _recurrence(method))
        x = jax.ShapeDtypeStruct((size, *xs.shape[1:]), xs.dtype)
        kept = residual_bytes(
            lambda params, carry, x: piece(params, None, carry, Steps(x, None, None, None)), params, carry, x
        )
        count = -(-T // size)
        rest = T % size
        depth = T // size * linear.depth(method, size) + (linear.depth(method, rest) if rest else 0)
        how = {"scan": "a loop on the carry alone", "tree": "a tree over time"}.get(
            method, "a kernel over chunks of time"
        )
        why = how if count == 1 else f"{how}, segments of {size} steps, recomputed in the reverse pass"
        return Plan(repr(cell), repr(self), why, kept + (count - 1) * tree_bytes(carry), depth)


def check_affine(engine: Engine, cell: Cell, key: Key = None) -> None:
    """Rejects a cell that an engine for affine recurrences cannot run.

    Raises:
      ValueError: naming the engines that can.
    """
    if "affine" not in cell.capabilities:
        raise ValueError(
            f"{engine!r} needs a cell that offers 'affine', {cell!r} offers {sorted(cell.capabilities)}; "
            "run it with Scan, Checkpointed or Truncated, or in parallel over time with Relaxed or Newton."
        )
    if key is not None and cell.stochastic:
        raise ValueError(
            f"{engine!r} computes coefficients without keys, and {cell!r} needs one in training; "
            "run it with Scan, Checkpointed or Truncated."
        )


def run_affine(
    cell: Cell, recurrence: Recurrence, params: Params, initial: Carry | None, carry: Carry, steps: Steps
) -> tuple[Carry, Array]:
    """Runs an affine cell over prepared steps, with all coefficients at once."""
    z = cell.project(params, visible(steps))
    decay, drive = cell.coefficients(params, z)
    recur = functools.partial(masked_recurrence, recurrence, mask=steps.mask, resets=steps.reset)
    restart = carry if initial is None else initial  # read only where there are resets
    states = jax.tree.map(recur, decay, drive, carry, restart)
    ys = cell.readout(params, states, z)
    return jax.tree.map(lambda leaf: leaf[-1], states), hide(ys, steps.mask)


def _recurrence(method: str) -> Recurrence:
    return functools.partial(linear.linear_recurrence, method=method)


def masked_recurrence(
    recurrence: Recurrence, decay: Array, drive: Array, carry: Array, initial: Array, *, mask: Mask, resets: Resets
) -> Array:
    """The states of one leaf of the carry, skipping masked steps and restarting from `initial` at resets."""
    if mask is not None:
        valid = expand(mask, drive)
        decay = jnp.where(valid, decay, jnp.ones_like(decay))
        drive = jnp.where(valid, drive, jnp.zeros_like(drive))
    if resets is not None:
        drive = jnp.where(expand(resets, drive), drive + decay * initial, drive)
    return recurrence(decay, drive, carry, cut=resets)
