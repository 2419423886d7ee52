# SPDX-License-Identifier: Apache-2.0
"""The sequential engine in segments: only the carries between segments are kept; the rest is recomputed."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Carry, Cell, Params
from seqjax.engines.scan import Scan
from seqjax.engines.steps.cotangents import add, only_where, without_float0, zero_cotangents
from seqjax.engines.steps.loops import scan_pieces
from seqjax.engines.steps.pieces import near_divisor
from seqjax.engines.steps.sequential import SequentialEngine, check_known_length, check_sequential
from seqjax.engines.steps.stepping import Steps, input_and_output_bytes
from seqjax.plan import Plan
from seqjax.trees import tree_bytes

SHORT = 100
"""Segments shorter than this pay noticeably for being started; measured on a CPU."""


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpointed(SequentialEngine):
    """Runs a cell segment by segment; the reverse pass recomputes one segment at a time.

    Inside a segment the reverse pass is the cell's hand-written one, if it has one. With segments of S
    steps, a gradient holds T / S carries and the residuals of S steps, besides inputs and outputs:

        memory(S) ≈ (T / S) · carry + S · residuals,    smallest at S = √(T · carry / residuals)

    It costs one more forward pass, part of which is won back on long sequences because everything
    a segment needs stays in cache (`scripts/run bench engines` measures both).
    With `levels` L > 1, segments are cut again, for L more forward passes: about (L + 1) · T^(1 / (L + 1)) carries
    and residuals. But a segment that is cut holds its inputs, its outputs and their cotangents, too, so this
    pays only where residuals are much larger than those: GRU(64) at T = 1e5, B = 8 takes 6.0 MiB with one level
    and 9.6 with two.

    Outputs are still `[T, ..., H]`; `seqjax.fold` reduces them along the way. Forward mode (`jvp`, `jacfwd`) is
    refused: use `Scan(adjoint=False)`. Gradients of gradients and Hessian-vector products work.

    Args:
      segment: steps in an innermost segment; `None`: about half of T^(1 / (levels + 1)), as the residuals of a
        step are about four carries, but the whole root where it is at most 100 steps.
      levels: how many times the sequence is cut.
      inner: what runs a segment: `Scan()`, or `Fused()` for a kernel in the memory of a few segments.

    Raises:
      ValueError: a segment or levels that are not positive integers, or an engine that cannot run pieces.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = seqjax.RNN(seqjax.GRU(4), Checkpointed(segment=100))
    >>> xs = jnp.ones((1000, 2, 3))
    >>> params = model.init(jax.random.key(0), xs)
    >>> def loss(params):
    ...     return model.apply(params, model.initial_carry(params, (2,)), xs)[1].sum()
    >>> jax.grad(loss)(params).w_rec.shape
    (4, 12)

    Source: Chen et al. 2016; Gruslys et al. 2016.
    """

    segment: int | None = None
    levels: int = 1
    inner: SequentialEngine = Scan()

    def __post_init__(self):
        require.positive("Checkpointed", levels=self.levels)
        require.positive_if_given("Checkpointed", segment=self.segment)
        check_sequential("Checkpointed", self.inner)

    def check(self, cell: Cell) -> None:
        self.inner.check(cell)

    def run_steps(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        return run_segments(cell, self.inner, self.sizes(steps.x.shape[0]), params, initial, carry, steps)

    def run_without_rule(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        return self.inner.run_without_rule(cell, params, initial, carry, steps)

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        T = xs.shape[0]
        sizes = self.sizes(T)
        memory = segment_bytes(cell, self.inner, sizes, params, carry, xs)
        why = f"segments of {' x '.join(map(str, sizes))} steps, recomputed in the reverse pass"
        return Plan(repr(cell), repr(self), why, memory, T)

    def sizes(self, T: int) -> tuple[int, ...]:
        """Steps in a segment at each level, outermost first: divisors of T, if any are near, to leave no remainder.

        >>> Checkpointed().sizes(100_000), Checkpointed().sizes(997), Checkpointed(levels=2).sizes(1_000_000)
        ((160,), (32,), (10000, 100))
        """
        check_known_length(self, T)
        root = T ** (1 / (self.levels + 1))
        inner = min(self.segment or near_divisor(T, max(root / 2, min(root, SHORT))), T)
        count = -(-T // inner)
        outer = (inner * near_divisor(count, count ** (k / self.levels)) for k in reversed(range(1, self.levels)))
        return (*outer, inner)


def segment_bytes(
    cell: Cell,
    inner: SequentialEngine,
    sizes: tuple[int, ...],
    params: Params,
    carry: Carry,
    xs: jax.ShapeDtypeStruct,
) -> int:
    """Bytes that a gradient of `run_segments` needs, estimated from shapes."""
    carries = sum(-(-longer // size) for longer, size in itertools.pairwise((xs.shape[0], *sizes)))
    inside = inner.plan(cell, params, carry, jax.ShapeDtypeStruct((sizes[-1], *xs.shape[1:]), xs.dtype))
    # a segment's inputs, outputs and their cotangents, and as much again for what is projected and contracted in it
    ends = (sum(sizes[:-1]) + 4 * sizes[-1]) * input_and_output_bytes(cell, params, carry, xs)
    return carries * tree_bytes(carry) + ends + inside.memory


def run_segments(
    cell: Cell,
    inner: SequentialEngine,
    sizes: tuple[int, ...],
    params: Params,
    initial: Carry | None,
    carry: Carry,
    steps: Steps,
    *,
    cut: bool = False,
) -> tuple[Carry, Array]:
    """Runs segments of `sizes[0]` steps, each of them in segments of `sizes[1]`, and so on. If `cut`, no gradient
    passes from one segment of `sizes[0]` steps to the one before."""
    if not sizes or sizes[0] >= steps.x.shape[0]:
        return inner.run_steps(cell, params, initial, carry, steps)
    return _recomputed(cell, inner, sizes, cut, params, initial, carry, steps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _recomputed(
    cell: Cell,
    inner: SequentialEngine,
    sizes: tuple[int, ...],
    cut: bool,
    params: Params,
    initial: Carry | None,
    carry: Carry,
    steps: Steps,
) -> tuple[Carry, Array]:
    """Runs segments of `sizes[0]` steps; its gradient keeps only the carries between them."""
    return _forward(cell, inner, sizes, cut, params, initial, carry, steps)[0]


def _forward(cell, inner, sizes, cut, params, initial, carry, steps):
    def segment(carry: Carry, piece: Steps, _) -> tuple[Carry, tuple[Array, Carry]]:
        after, ys = inner.run_without_rule(cell, params, initial, carry, piece)
        return after, (ys, carry)

    after, (ys, carries) = scan_pieces(segment, carry, steps, sizes[0])
    return (after, ys), (params, initial, carries, steps)


def _reverse(cell, inner, sizes, cut, kept, cotangents):
    params, initial, carries, steps = kept
    d_carry, d_ys = cotangents
    count = -(-steps.x.shape[0] // sizes[0])

    def segment(state: tuple, inputs: tuple[Steps, Array], beside: tuple[Array, Carry]):
        (d_carry, d_params, d_initial), (piece, d_ys), (is_first, carry) = state, inputs, beside
        run = functools.partial(run_segments, cell, inner, sizes[1:])
        _, pull = jax.vjp(run, params, initial, carry, piece)
        more_params, more_initial, d_carry, d_piece = pull((d_carry, d_ys))
        if cut:
            d_carry = only_where(is_first, d_carry)
        return (d_carry, add(d_params, more_params), add(d_initial, more_initial)), (without_float0(d_piece), None)

    state, beside = (d_carry, zero_cotangents(params), zero_cotangents(initial)), (jnp.arange(count) == 0, carries)
    state, (d_steps, _) = scan_pieces(segment, state, (steps, d_ys), sizes[0], beside, reverse=True)
    d_carry, d_params, d_initial = state
    return *without_float0((d_params, d_initial, d_carry)), d_steps


_recomputed.defvjp(_forward, _reverse)
