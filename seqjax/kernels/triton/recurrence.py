# SPDX-License-Identifier: Apache-2.0
"""A whole recurrence in one launch: all steps of a block of the batch, and the same in reverse.

A program owns some sequences and runs all their steps; programs never wait for each other. If the
recurrent weights fit on chip, they are read once, before the loop; if only those of one gate fit, they
are streamed from the cache at every step, gate by gate. The reverse kernel computes the cotangents of
the projected inputs and of the states; weight gradients are matmuls over its results. H is padded to a
power of two with zero weights, so that nothing flows from the padding into the real units.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.base import Array
from seqjax.dtypes import at_least_float32
from seqjax.kernels.equations import Functions, Kind, States
from seqjax.kernels.operands import MASKED, RESET, Cotangents, Given, Left, pick, power_of_two
from seqjax.kernels.triton.blocks import Blocks
from seqjax.kernels.triton.launch import SMALLEST, launch

ON_CHIP = 192 * 2**10
"""Bytes of recurrent weights that one processor can keep besides all else; a Hopper has 227 KiB of shared memory."""
ONE_GATE = 128 * 2**10
"""Bytes of one gate's weights that can pass through it at a time."""


class Launch(NamedTuple):
    """How the kernels are launched."""

    rows: int = SMALLEST  # sequences per program
    warps: int = 8
    interpret: bool = False  # run in the interpreter, on any device


class _Forward(NamedTuple):
    z: Any
    weights: Any
    bias: Any
    states: Any
    initial: Any
    flags: Any


class _Reverse(NamedTuple):
    d_hs: Any
    d_last: Any
    weights: Any
    sequences: Any
    kept: Any
    states: Any
    initial: Any
    flags: Any


def weight_bytes(gates: int, hidden_dim: int, dtype: Any) -> int:
    """Bytes of the recurrent weights as the kernels keep them, with H padded.

    >>> weight_bytes(4, 100, "bfloat16")
    131072
    """
    return gates * power_of_two(hidden_dim, SMALLEST) ** 2 * jnp.dtype(dtype).itemsize


def resident(gates: int, hidden_dim: int, dtype: Any) -> bool:
    """Whether the recurrent weights stay on chip for the whole run.

    >>> resident(4, 128, "bfloat16"), resident(4, 128, "float32"), resident(1, 256, "bfloat16")
    (True, False, True)
    """
    return weight_bytes(gates, hidden_dim, dtype) <= ON_CHIP


def fits(gates: int, hidden_dim: int, dtype: Any) -> bool:
    """Whether the kernels can run a recurrence with `gates` gates at all.

    >>> fits(4, 128, "float32"), fits(4, 256, "bfloat16"), fits(4, 256, "float32"), fits(4, 512, "bfloat16")
    (True, True, False, False)
    """
    return weight_bytes(1, hidden_dim, dtype) <= ONE_GATE or resident(gates, hidden_dim, dtype)


def forward(kind: Kind, functions: Functions, z: Array, given: Given, how: Launch, *, keep: bool = True) -> Left:
    """All steps of a recurrence.

    Args:
      kind: which recurrence.
      functions: its activations.
      z: `[T, B, G*H]`, projected inputs, gates side by side; products have their dtype.
      given: weights and states; states pass from step to step in their own dtype.
      how: the launch.
      keep: whether a reverse pass follows.
    """
    T, B, width = z.shape
    blocks = Blocks(T, B, width // kind.gates, how.rows)
    dtype, carry = z.dtype, given.states[0].dtype
    wide = at_least_float32(dtype)
    stay = resident(kind.gates, blocks.H, dtype)

    def body(given: _Forward, left: Left) -> None:
        weights = [given.weights[k] for k in range(kind.gates)] if stay else given.weights
        biases = None if given.bias is None else [given.bias[k].astype(wide)[None] for k in range(kind.gates)]
        restart = _read(given.initial)

        def product(h: Array, *gates: int) -> Iterator[Array]:
            for k in gates:  # each when it is needed: the weights of all gates would not fit at once
                out = jax.lax.dot(h.astype(dtype), weights[k], preferred_element_type=wide)
                yield out if biases is None else out + biases[k]

        def step(t: Array, before: States) -> States:
            masked, again = _flags(given.flags, t)
            before = before if restart is None else pick(again, restart, before)
            inputs = [given.z[t, :, k].astype(wide) for k in range(kind.gates)]
            after, kept = kind.forward(inputs, _cast(before, wide), product, functions)
            after = _cast((after[0].astype(dtype), *after[1:]), carry)  # h is also an output, and rounded like one
            after = after if masked is None else pick(masked, before, after)
            for ref, state in zip(left.sequences, after, strict=False):
                ref[t] = state.astype(dtype)
            if left.kept is not None:
                for k, array in enumerate(kept):
                    left.kept[t, :, k] = array.astype(dtype)
            return after

        last = jax.lax.fori_loop(0, T, step, _read(given.states))
        _write(left.last, last)

    inputs = _Forward(
        blocks.gates(z, kind.gates),
        blocks.weights(given.w_rec.astype(dtype), kind.gates),
        blocks.bias(given.bias_rec, kind.gates),
        blocks.states(*given.states),
        None if given.initial is None else blocks.states(*given.initial),
        blocks.flags(given.flags),
    )
    outputs = Left(
        blocks.new_sequences(kind.states if keep else 1, dtype),
        blocks.new_gates(kind.kept if keep else 0, dtype),
        blocks.new_states(kind.states, carry),
    )
    left = launch(
        body, inputs, outputs,
        grid=blocks.grid, warps=how.warps, interpret=how.interpret, name=f"{kind.name}_forward",
    )  # fmt: skip
    return Left(blocks.unpad(left.sequences, 1), blocks.unpad(left.kept, 1), blocks.unpad(left.last, 0))


def reverse(
    kind: Kind, functions: Functions, given: Given, left: Left, d_hs: Array, d_last: States, how: Launch
) -> Cotangents:
    """The cotangents of a recurrence's projected inputs and states, by one backward loop.

    Args:
      kind, functions, given, how: as for `forward`.
      left: what `forward` returned, with `keep`.
      d_hs: `[T, B, H]`, the cotangent of the state h after every step; zero where it is masked.
      d_last: `[B, H]` each, the cotangents of the last states.
    """
    T, B, H = d_hs.shape
    blocks = Blocks(T, B, H, how.rows)
    dtype, carry = d_hs.dtype, given.states[0].dtype
    wide = at_least_float32(dtype)
    stay = resident(kind.gates, blocks.H, dtype)

    def body(given: _Reverse, out: Cotangents) -> None:
        weights = [given.weights[k] for k in range(kind.gates)] if stay else given.weights
        start, restart = _read(given.states, dtype), _read(given.initial, dtype)
        d_start = _read(given.d_last, wide)
        zeros = tuple(jnp.zeros_like(d) for d in d_start)

        def transposed(*pairs: tuple[int, Array]) -> Array:
            out = (jax.lax.dot(d.astype(dtype), weights[k], preferred_element_type=wide) for k, d in pairs)
            return functools.reduce(jnp.add, out)

        def step(i: Array, d: tuple[States, States]) -> tuple[States, States]:
            t = T - 1 - i
            d_states, d_initial = d
            masked, again = _flags(given.flags, t)
            before = tuple(ref[jnp.maximum(t - 1, 0)] for ref in given.sequences)
            before = pick(t == 0, start, before)
            before = before if restart is None else pick(again, restart, before)
            after = (given.sequences[0][t].astype(wide),)
            kept = tuple(given.kept[t, :, k].astype(wide) for k in range(kind.kept))
            d_after = d_states if masked is None else pick(masked, zeros, d_states)
            d_after = (d_after[0] + given.d_hs[0][t].astype(wide), *d_after[1:])

            def emit(k: int, d: Array) -> None:
                out.d_z[t, :, k] = d.astype(dtype)

            d_before = kind.reverse(kept, _cast(before, wide), after, d_after, transposed, emit, functions)
            d_before = d_before if masked is None else pick(masked, d_states, d_before)
            if restart is not None:
                d_initial = tuple(map(jnp.add, d_initial, pick(again, d_before, zeros)))
                d_before = pick(again, zeros, d_before)
            return d_before, d_initial

        d_states, d_initial = jax.lax.fori_loop(0, T, step, (d_start, () if restart is None else zeros))
        _write(out.d_states, d_states)
        _write(out.d_initial or (), d_initial)

    inputs = _Reverse(
        blocks.sequences(d_hs),
        blocks.states(*d_last),
        blocks.weights(given.w_rec.astype(dtype), kind.gates, transposed=True),
        blocks.sequences(*left.sequences),
        None if left.kept is None else blocks.gates(left.kept, kind.kept),
        blocks.states(*given.states),
        None if given.initial is None else blocks.states(*given.initial),
        blocks.flags(given.flags),
    )
    outputs = Cotangents(
        blocks.new_gates(kind.gates, dtype),
        blocks.new_states(kind.states, carry),
        None if given.initial is None else blocks.new_states(kind.states, carry),
    )
    out = launch(
        body, inputs, outputs,
        grid=blocks.grid, warps=how.warps, interpret=how.interpret, name=f"{kind.name}_reverse",
    )  # fmt: skip
    d_z = blocks.unpad(out.d_z, 1).reshape(T, B, kind.gates * H)
    return Cotangents(d_z, blocks.unpad(out.d_states, 0), blocks.unpad(out.d_initial, 0))


def _flags(flags: Any, t: Array) -> tuple[Any, Any]:
    """Whether each row is masked, and whether it is reset, `[rows, 1]`; `None` if there are no flags."""
    if flags is None:
        return None, None
    now = flags[t].astype(jnp.int32)[:, None]
    return now & MASKED != 0, now & RESET != 0


def _cast(states: States, dtype: Any) -> States:
    return tuple(state.astype(dtype) for state in states)


def _read(refs: Any, dtype: Any = None) -> Any:
    """The contents of refs, in their own dtype or another; `None` for `None`."""
    return None if refs is None else tuple(ref[...].astype(dtype or ref.dtype) for ref in refs)


def _write(refs: Any, arrays: States) -> None:
    for ref, array in zip(refs, arrays, strict=True):
        ref[...] = array.astype(ref.dtype)
