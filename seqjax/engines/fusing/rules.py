# SPDX-License-Identifier: Apache-2.0
"""What the `Fused` engine runs: a cell's kernels forward and in reverse, and the loop for all further derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Params
from seqjax.cells.gru import GRUCarry, GRUResiduals
from seqjax.cells.lstm import LSTM
from seqjax.cells.lstm_equations import LSTMCarry, LSTMResiduals
from seqjax.cells.simple import Simple, SimpleCarry, SimpleResiduals
from seqjax.engines.fusing.fusible import kernel, on_hopper
from seqjax.engines.steps.cotangents import without_float0, zeros_like
from seqjax.engines.steps.pieces import delayed
from seqjax.engines.steps.stepping import Steps, leave, reset
from seqjax.kernels import operands
from seqjax.kernels.hopper import recurrence as hopper
from seqjax.kernels.triton import recurrence as triton
from seqjax.sequences import hide


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused(
    cell: Cell, interpret: bool, params: Params, initial: Carry | None, carry: Carry, now: Steps
) -> tuple[Carry, Array]:
    """The recurrence on projected inputs `now.x [T, ..., G*H]`; outputs of masked steps are arbitrary."""
    left = launch_forward(cell, interpret, params, initial, carry, now, keep=False)
    return outputs(carry, left, now.x.shape[1:-1])


def _forward(cell: Cell, interpret: bool, params: Params, initial: Carry | None, carry: Carry, now: Steps):
    given = (params, initial, carry, now)
    left = kept_forward(cell, interpret, *given)
    return outputs(carry, left, now.x.shape[1:-1]), (_anew(given), left)


def _reverse(cell: Cell, interpret: bool, kept: tuple, cotangents: tuple[Carry, Array]):
    given, left = kept
    return gradient(cell, interpret, given, left, cotangents)


fused.defvjp(_forward, _reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kept_forward(cell: Cell, interpret: bool, *given: Any) -> operands.Left:
    """The forward kernel, keeping what its reverse needs."""
    return launch_forward(cell, interpret, *given, keep=True)


def _kept_forward(cell: Cell, interpret: bool, *given: Any):
    return kept_forward(cell, interpret, *given), _anew(given)


def _anew(given: tuple) -> tuple:
    """Copies of the arguments. Inside another function with a custom rule, JAX (up to 0.12) identifies residuals that
    are arguments by their position, and picks the wrong ones once it has put others in front."""
    return jax.lax.optimization_barrier(given)


def _kept_reverse(cell: Cell, interpret: bool, given: tuple, d_left: operands.Left):
    """The gradient of the outputs in `left`; `gradient` lets no other cotangent through."""
    _, _, carry, now = given
    cotangents = outputs(carry, d_left, now.x.shape[1:-1])
    return loop_gradient(cell, given, cotangents)


kept_forward.defvjp(_kept_forward, _kept_reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gradient(cell: Cell, interpret: bool, given: tuple, left: operands.Left, cotangents: tuple[Carry, Array]) -> tuple:
    """The reverse kernel. As a function it depends only on `given` and the cotangents; `left` just saves it work."""
    return launch_reverse(cell, interpret, given, left, cotangents)


def _gradient_forward(cell: Cell, interpret: bool, given: tuple, left: operands.Left, cotangents: tuple):
    return gradient(cell, interpret, given, left, cotangents), (given, left, cotangents)


def _gradient_reverse(cell: Cell, interpret: bool, kept: tuple, d: tuple):
    given, left, cotangents = kept
    _, transpose = jax.vjp(functools.partial(loop_gradient, cell), given, cotangents)
    d_given, d_cotangents = transpose(d)
    return d_given, zeros_like(left), d_cotangents


gradient.defvjp(_gradient_forward, _gradient_reverse)


def fused_by_loop(cell: Cell, params: Params, initial: Carry | None, carry: Carry, now: Steps) -> tuple[Carry, Array]:
    """`fused` as a loop, for derivatives of derivatives."""

    def step(carry: Carry, now: Steps) -> tuple[Carry, Array]:
        before = reset(initial, carry, now)
        return leave(before, *cell.step(params, before, now.x), now)

    return jax.lax.scan(step, carry, now)


def loop_gradient(cell: Cell, given: tuple, cotangents: tuple[Carry, Array]) -> tuple:
    """The gradient of `fused_by_loop`."""
    return without_float0(jax.vjp(functools.partial(fused_by_loop, cell), *given)[1](cotangents))


# -- between carries and what kernels take ----------------------------------------------------------


def launch_forward(
    cell: Cell, interpret: bool, params: Params, initial: Carry | None, carry: Carry, now: Steps, *, keep: bool
) -> operands.Left:
    zs, given = _flatten(params, initial, carry, now)
    kind, functions = kernel(cell)
    if not interpret and on_hopper(cell, zs.dtype):
        return hopper.forward(kind, functions, zs, given, keep=keep)
    return triton.forward(kind, functions, zs, given, keep=keep, interpret=interpret)


def launch_reverse(cell: Any, interpret: bool, given: tuple, left: operands.Left, cotangents: tuple) -> tuple:
    params, initial, carry, now = given
    d_carry, d_ys = cotangents
    T, *batch, width = now.x.shape
    zs, flat = _flatten(params, initial, carry, now)
    d_hs = hide(d_ys, now.mask).reshape(T, zs.shape[1], -1)
    kind, functions = kernel(cell)
    if isinstance(left.kept, hopper.Kept):
        out = hopper.reverse(kind, functions, flat, left, d_hs, _flat_states(d_carry))
        gate = functools.partial(hopper.gate, left)
    else:
        out = triton.reverse(kind, functions, flat, left, d_hs, _flat_states(d_carry), interpret=interpret)
        gate = functools.partial(triton.gate, left)
    known = residuals(cell, flat, left.sequences[0], gate, now)
    d_params = cell.accumulate(params, known, _cotangents(known, out.d_z), _extras(cell))

    def carries(states: tuple[Array, ...] | None) -> Carry | None:
        return None if states is None else _carry_like(carry, states, tuple(batch))

    d_x = out.d_z.reshape(T, *batch, width)
    return d_params, carries(out.d_initial), carries(out.d_states), Steps(d_x, None, None, None)


def residuals(cell: Cell, given: operands.Given, hs: Array, gate: Callable[[int], Array], now: Steps) -> Any:
    """Of those of all steps, `[T, B, ...]`, what the cell's `accumulate` reads; the rest is `None`."""
    h_before = delayed(hs, given.states[0].astype(hs.dtype))
    if now.reset is not None and given.initial is not None:
        again = now.reset.reshape(*hs.shape[:2], 1)
        h_before = jnp.where(again, given.initial[0].astype(hs.dtype), h_before)
    if isinstance(cell, Simple):
        return _only(SimpleResiduals, h_before=h_before)
    if isinstance(cell, LSTM):
        return _only(LSTMResiduals, h_before=h_before)
    recurrent = {"recurrent": gate(3)} if cell.reset == "after" else {}  # type: ignore[attr-defined]  # a GRU
    return _only(GRUResiduals, h_before=h_before, r=gate(1), **recurrent)


def _only(kind: Any, **known: Array) -> Any:
    return kind(**(dict.fromkeys(kind._fields) | known))


def _cotangents(kept: Any, d_z: Array) -> Any:
    """Those of the projected inputs `[T, B, G*H]` as the cell's `accumulate` takes them."""
    if not isinstance(kept, GRUResiduals):
        return d_z
    z, r, d_g = jnp.split(d_z, 3, axis=-1)
    gates = (z, r) if kept.recurrent is None else (z, r, d_g * kept.r)
    return jnp.concatenate(gates, axis=-1), d_g


def _extras(cell: Cell) -> Any:
    """What the `step_transpose` of a cell without normalization returns besides cotangents."""
    return (None, None) if isinstance(cell, LSTM) else None


def outputs(carry: Carry, left: operands.Left, batch: tuple[int, ...]) -> tuple[Carry, Array]:
    """The carry after the last step and the outputs `[T, ..., H]`."""
    hs = left.sequences[0]
    return _carry_like(carry, left.last, batch), hs.reshape(hs.shape[0], *batch, hs.shape[-1])


def _carry_like(carry: Carry, states: tuple[Array, ...], batch: tuple[int, ...]) -> Carry:
    shaped = (state.reshape(*batch, state.shape[-1]) for state in states)
    kind: type[SimpleCarry] | type[LSTMCarry] | type[GRUCarry] = type(carry)
    return kind(*shaped)


def _flat_states(carry: Carry) -> tuple[Array, ...]:
    """The carry's arrays with all batch axes as one."""
    return tuple(leaf.reshape(-1, leaf.shape[-1]) for leaf in carry)


def _flatten(params: Params, initial: Carry | None, carry: Carry, now: Steps) -> tuple[Array, operands.Given]:
    T, *_, width = now.x.shape
    zs = now.x.reshape(T, -1, width)
    given = operands.Given(
        params.w_rec,
        None if getattr(params, "bias_rec", None) is None else params.bias_rec.astype(zs.dtype),
        _flat_states(carry),
        None if initial is None else _flat_states(initial),
        _flags(now, zs.shape[:2]),
    )
    return zs, given


def _flags(now: Steps, shape: tuple[int, ...]) -> Array | None:
    """Masks and resets as bits, `[T, B]`; `None` if there are neither."""
    bits = []
    if now.mask is not None:
        bits.append(jnp.where(now.mask, jnp.int8(0), jnp.int8(operands.MASKED)))
    if now.reset is not None:
        bits.append(jnp.where(now.reset, jnp.int8(operands.RESET), jnp.int8(0)))
    return functools.reduce(jnp.bitwise_or, (each.reshape(shape) for each in bits)) if bits else None
