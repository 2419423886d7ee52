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
from seqjax.kernels import step
from seqjax.kernels.equations import Functions, Kind, States
from seqjax.kernels.operands import Cotangents, Given, Left, pick
from seqjax.kernels.triton.blocks import Blocks, padded
from seqjax.kernels.triton.launch import launch, room

ON_CHIP = 192 * 2**10
"""Bytes of recurrent weights that one processor of a Hopper can keep besides all else."""
ONE_GATE = 128 * 2**10
"""Bytes of one gate's weights that can pass through it at a time."""
WARPS = 8
"""Warps per program."""


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
    return gates * padded(hidden_dim) ** 2 * jnp.dtype(dtype).itemsize


def resident(gates: int, hidden_dim: int, dtype: Any) -> bool:
    """Whether the recurrent weights stay on chip for the whole run.

    >>> resident(4, 128, "bfloat16"), resident(4, 128, "float32"), resident(1, 256, "bfloat16")
    (True, False, True)
    """
    return weight_bytes(gates, hidden_dim, dtype) <= room(ON_CHIP)


def fits(gates: int, hidden_dim: int, dtype: Any) -> bool:
    """Whether the kernels can run a recurrence with `gates` gates at all.

    >>> fits(4, 128, "float32"), fits(4, 256, "bfloat16"), fits(4, 256, "float32"), fits(4, 512, "bfloat16")
    (True, True, False, False)
    """
    return weight_bytes(1, hidden_dim, dtype) <= room(ONE_GATE) or resident(gates, hidden_dim, dtype)


def forward(
    kind: Kind, functions: Functions, z: Array, given: Given, *, keep: bool = True, interpret: bool = False
) -> Left:
    """All steps of a recurrence.

    Args:
      kind: which recurrence.
      functions: its activations.
      z: `[T, B, G*H]`, projected inputs, gates side by side; products have their dtype.
      given: weights and states; states pass from step to step in their own dtype.
      keep: whether a reverse pass follows.
      interpret: run in the interpreter, on any device.
    """
    T, B, width = z.shape
    blocks = Blocks(T, B, width // kind.gates)
    dtype, carry = z.dtype, given.states[0].dtype
    wide = at_least_float32(dtype)
    stay = resident(kind.gates, blocks.H, dtype)

    def body(given: _Forward, left: Left) -> None:
        weights = [given.weights[k] for k in range(kind.gates)] if stay else given.weights
        biases = None if given.bias is None else [given.bias[k].astype(wide)[None] for k in range(kind.gates)]
        restart = _read(given.initial, wide)

        def product(h: Array, *gates: int) -> Iterator[Array]:
            for k in gates:  # each when it is needed: the weights of all gates would not fit at once
                out = jax.lax.dot(h.astype(dtype), weights[k], preferred_element_type=wide)
                yield out if biases is None else out + biases[k]

        def run(t: Array, before: States) -> States:
            z, flags = [given.z[t, :, k].astype(wide) for k in range(kind.gates)], _flags(given.flags, t)
            after, kept = step.forward(kind, z, before, restart, flags, product, functions, dtype, carry)
            for ref, state in zip(left.sequences, after, strict=False):
                ref[t] = state.astype(dtype)
            if left.kept is not None:
                for k, array in enumerate(kept):
                    left.kept[t, :, k] = array.astype(dtype)
            return after

        last = jax.lax.fori_loop(0, T, run, _read(given.states, wide))
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
        grid=blocks.grid, warps=WARPS, interpret=interpret, name=f"{kind.name}_forward",
    )  # fmt: skip
    return Left(blocks.unpad(left.sequences, 1), blocks.unpad(left.kept, 1), blocks.unpad(left.last, 0))


def gate(left: Left, k: int) -> Array:
    """`[T, B, H]`, the k-th gate that `forward` kept."""
    return left.kept[:, :, k]


def reverse(
    kind: Kind,
    functions: Functions,
    given: Given,
    left: Left,
    d_hs: Array,
    d_last: States,
    *,
    interpret: bool = False,
) -> Cotangents:
    """The cotangents of a recurrence's projected inputs and states, by one backward loop.

    Args:
      kind, functions, given, interpret: as for `forward`.
      left: what `forward` returned, with `keep`.
      d_hs: `[T, B, H]`, the cotangent of the state h after every step; zero where it is masked.
      d_last: `[B, H]` each, the cotangents of the last states.
    """
    T, B, H = d_hs.shape
    blocks = Blocks(T, B, H)
    dtype, carry = d_hs.dtype, given.states[0].dtype
    wide = at_least_float32(dtype)
    stay = resident(kind.gates, blocks.H, dtype)

    def body(given: _Reverse, out: Cotangents) -> None:
        weights = [given.weights[k] for k in range(kind.gates)] if stay else given.weights
        start, restart, d_last = (_read(refs, wide) for refs in (given.states, given.initial, given.d_last))
        nothing = () if restart is None else tuple(map(jnp.zeros_like, restart))

        def transposed(*pairs: tuple[int, Array]) -> Array:
            out = (jax.lax.dot(d.astype(dtype), weights[k], preferred_element_type=wide) for k, d in pairs)
            return functools.reduce(jnp.add, out)

        def run(i: Array, d: tuple[States, States]) -> tuple[States, States]:
            t = T - 1 - i
            before = tuple(ref[jnp.maximum(t - 1, 0)].astype(wide) for ref in given.sequences)
            before = pick(t == 0, start, before)
            after, d_h = (refs[0][t].astype(wide) for refs in (given.sequences, given.d_hs))
            kept = tuple(given.kept[t, :, k].astype(wide) for k in range(kind.kept))

            def emit(k: int, d: Array) -> None:
                out.d_z[t, :, k] = d.astype(dtype)

            flags = _flags(given.flags, t)
            return step.reverse(kind, kept, before, (after,), restart, flags, d_h, *d, transposed, emit, functions)

        d_states, d_initial = jax.lax.fori_loop(0, T, run, (d_last, nothing))
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
        grid=blocks.grid, warps=WARPS, interpret=interpret, name=f"{kind.name}_reverse",
    )  # fmt: skip
    d_z = blocks.unpad(out.d_z, 1).reshape(T, B, kind.gates * H)
    return Cotangents(d_z, blocks.unpad(out.d_states, 0), blocks.unpad(out.d_initial, 0))


def _flags(flags: Any, t: Array) -> Array | None:
    """Those of each row, `[rows, 1]`; `None` if there are none."""
    return None if flags is None else flags[t].astype(jnp.int32)[:, None]


def _read(refs: Any, dtype: Any) -> Any:
    """The contents of refs; `None` for `None`."""
    return None if refs is None else tuple(ref[...].astype(dtype) for ref in refs)


def _write(refs: Any, arrays: States) -> None:
    for ref, array in zip(refs, arrays, strict=True):
        ref[...] = array.astype(ref.dtype)
