# SPDX-License-Identifier: Apache-2.0
"""The diagonal linear recurrence h_t = a_t ⊗ h_{t-1} + b_t, real or complex, on all processors of a chip.

Time is cut into chunks. One launch reduces each chunk to its map, h -> A ⊗ h + B; the maps of the
chunks form a shorter recurrence, which is solved in the same way; another launch runs all chunks, each
from its own start. Arrays are read twice and written once, and the depth is a chunk instead of T. Zero
times anything is zero here: where a_t is 0, nothing from before, not even NaN, passes on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from seqjax.base import Array
from seqjax.kernels.operands import pad
from seqjax.kernels.triton.launch import Part, launch

CHUNK = 512
"""The most steps in a program."""
UNROLL = 8
"""The number of steps whose loads are in flight together, as a load takes as long as hundreds of products."""
COLUMNS = (128, 64, 32)
"""Recurrences per program: the first of these that divides their number."""

Parts = tuple[Array, ...]
"""A real array, or the real and imaginary parts of a complex one."""


class _Inputs(NamedTuple):
    decay: Any
    drive: Any
    start: Any


class _Outputs(NamedTuple):
    states: Any
    products: Any  # of a chunk's decays
    ends: Any  # of a chunk, from zero


def solve(decay: Array, drive: Array, *, reverse: bool = False, chunk: int = CHUNK, interpret: bool = False) -> Array:
    """All states of h_t = a_t ⊗ h_{t-1} + b_t from h_0 = 0, or of its transpose λ_t = b_t + a_{t+1} ⊗ λ_{t+1}.

    Args:
      decay: a `[T, ...]`, like `drive`, or `[1, ...]` if it is constant in time.
      drive: b `[T, ...]`.
      reverse: whether to solve the transpose.
      chunk: the most steps in a program; a multiple of `UNROLL`.
      interpret: run in the interpreter, on any device.

    >>> solve(jnp.array([[2.0], [3.0]]), jnp.array([[1.0], [1.0]]), interpret=True).tolist()
    [[1.0], [4.0]]
    """
    shape, T = drive.shape, drive.shape[0]
    columns = drive.size // max(T, 1)
    if not drive.size:
        return drive
    width = next((n for n in COLUMNS if columns % n == 0), COLUMNS[-1])
    full = -(-columns // width) * width

    def parts(array: Array) -> Parts:
        array = pad(jnp.broadcast_to(array, (*array.shape[:1], *shape[1:])).reshape(-1, columns), 1, full)
        return (array.real, array.imag) if jnp.iscomplexobj(array) else (array,)

    states = _solve(parts(decay), parts(drive), reverse, chunk, width, interpret)
    joined = jax.lax.complex(*states) if len(states) == 2 else states[0]
    return joined[:, :columns].reshape(shape)


def _solve(decay: Parts, drive: Parts, reverse: bool, chunk: int, width: int, interpret: bool) -> Parts:
    """The states for arrays `[T, N]`, where N is a multiple of `width`."""
    T = drive[0].shape[0]
    constant = decay[0].shape[0] == 1 and T > 1
    count = -(-T // chunk)
    size = -(-T // (count * UNROLL)) * UNROLL  # of a chunk
    drive = tuple(pad(b, 0, count * size) for b in drive)
    decay = decay if constant else tuple(pad(a, 0, count * size) for a in decay)
    run = _Run(size, count, width, reverse, constant, interpret)
    if count == 1:
        starts = tuple(jnp.zeros_like(b[:1]) for b in drive)
    else:
        products, ends = run.reduce(decay, drive)
        starts = _before(products, ends, reverse, chunk, width, interpret)
    return tuple(states[:T] for states in run.states(decay, drive, starts))


def _before(products: Parts, ends: Parts, reverse: bool, chunk: int, width: int, interpret: bool) -> Parts:
    """The state from which each chunk starts, given the maps `[C, N]` of all chunks."""

    def turn(parts: Parts) -> Parts:
        return tuple(jnp.flip(part, 0) for part in parts) if reverse else parts

    ends = _solve(turn(products), turn(ends), False, chunk, width, interpret)
    return turn(tuple(jnp.concatenate([jnp.zeros_like(end[:1]), end[:-1]]) for end in ends))


class _Run(NamedTuple):
    """The launches over `chunks` chunks of `size` steps, with `width` columns per program."""

    size: int
    chunks: int
    width: int
    reverse: bool
    constant: bool
    interpret: bool

    def reduce(self, decay: Parts, drive: Parts) -> tuple[Parts, Parts]:
        """`A, B [C, N]` of each chunk's map."""

        def body(inputs: _Inputs, outputs: _Outputs) -> None:
            def rows(_: Any, decays: Sequence[Parts], drives: Sequence[Parts], carry: tuple) -> tuple:
                product, state = carry
                for a, b in zip(decays, drives, strict=True):
                    product = _times(a, product)
                    state = _times(a, _plus(state, b)) if self.reverse else _plus(_times(a, state), b)
                return product, state

            zeros = tuple(jnp.zeros((self.width,), b.dtype) for b in drive)
            one = (jnp.ones_like(zeros[0]), *zeros[1:])
            product, state = self._loop(inputs, rows, (one, zeros))
            for refs, values in ((outputs.products, product), (outputs.ends, state)):
                for ref, value in zip(refs, values, strict=True):
                    ref[0] = value

        rows = tuple(self._row(b) for b in drive)
        out = self._launch(body, _Inputs(self._decays(decay), self._steps(drive), ()), _Outputs((), rows, rows))
        return out.products, out.ends

    def states(self, decay: Parts, drive: Parts, starts: Parts) -> Parts:
        """The states at every step, with each chunk run from its start `[C, N]`."""

        def body(inputs: _Inputs, outputs: _Outputs) -> None:
            def rows(times: Sequence[Any], decays: Sequence[Parts], drives: Sequence[Parts], state: Parts) -> Parts:
                found = []
                for a, b in zip(decays, drives, strict=True):
                    if self.reverse:  # the carried state is already decayed
                        found.append(_plus(state, b))
                        state = _times(a, found[-1])
                    else:
                        state = _plus(_times(a, state), b)
                        found.append(state)
                for t, values in zip(times, found, strict=True):
                    for ref, value in zip(outputs.states, values, strict=True):
                        ref[t] = value
                return state

            self._loop(inputs, rows, tuple(ref[0] for ref in inputs.start))

        row = pl.BlockSpec((1, self.width), lambda c, j: (c, j))
        inputs = _Inputs(self._decays(decay), self._steps(drive), tuple(Part(start, row) for start in starts))
        shapes = tuple(jax.ShapeDtypeStruct(b.shape, b.dtype) for b in drive)
        return self._launch(body, inputs, _Outputs(self._steps(shapes), (), ())).states

    def _loop(self, inputs: _Inputs, rows: Any, carry: Any) -> Any:
        """`rows(times, decays, drives, carry)` over a chunk, `UNROLL` steps at a time, with all their loads first."""

        def some(i: Array, carry: Any) -> Any:
            first = (self.size // UNROLL - 1 - i if self.reverse else i) * UNROLL
            order = range(UNROLL - 1, -1, -1) if self.reverse else range(UNROLL)
            times = [first + k for k in order]
            drives = [tuple(ref[t] for ref in inputs.drive) for t in times]
            decays = [tuple(ref[0 if self.constant else t] for ref in inputs.decay) for t in times]
            return rows(times, decays, drives, carry)

        return jax.lax.fori_loop(0, self.size // UNROLL, some, carry)

    def _steps(self, arrays: Any) -> Any:
        return tuple(Part(a, pl.BlockSpec((self.size, self.width), lambda c, j: (c, j))) for a in arrays)

    def _decays(self, decay: Parts) -> Any:
        if not self.constant:
            return self._steps(decay)
        return tuple(Part(a, pl.BlockSpec((1, self.width), lambda c, j: (0, j))) for a in decay)

    def _row(self, drive: Array) -> Part:
        shape = jax.ShapeDtypeStruct((self.chunks, drive.shape[1]), drive.dtype)
        return Part(shape, pl.BlockSpec((1, self.width), lambda c, j: (c, j)))

    def _launch(self, body: Any, inputs: _Inputs, outputs: _Outputs) -> _Outputs:
        grid = (self.chunks, inputs.drive[0].array.shape[1] // self.width)
        warps = max(1, self.width // 32)
        name = "linear_reverse" if self.reverse else "linear_forward"
        return launch(body, inputs, outputs, grid=grid, warps=warps, interpret=self.interpret, name=name)


def _plus(a: Parts, b: Parts) -> Parts:
    return tuple(map(jnp.add, a, b))


def _times(a: Parts, b: Parts) -> Parts:
    """a ⊗ b, but 0 where a is 0, whatever b is."""
    if len(a) == 1:
        return (jnp.where(a[0] == 0, jnp.zeros_like(b[0]), a[0] * b[0]),)
    (ar, ai), (br, bi) = a, b
    nothing = (ar == 0) & (ai == 0)
    products = ar * br - ai * bi, ar * bi + ai * br
    return tuple(jnp.where(nothing, jnp.zeros_like(p), p) for p in products)
