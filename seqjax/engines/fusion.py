# SPDX-License-Identifier: Apache-2.0
"""What the `Fused` engine runs: a cell's kernels forward and in reverse, and the loop for all further derivatives."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.activations import activation_function, slope_from_output
from seqjax.base import Array, Carry, Cell, Params
from seqjax.cells.gru import GRU, GRUCarry, GRUResiduals
from seqjax.cells.heads import MultiHead
from seqjax.cells.lstm import LSTM
from seqjax.cells.lstm_equations import LSTMCarry, LSTMResiduals
from seqjax.cells.simple import Simple, SimpleCarry, SimpleResiduals
from seqjax.engines.cotangents import without_float0, zeros_like
from seqjax.engines.pieces import delayed
from seqjax.engines.stepping import Steps, leave, reset
from seqjax.kernels import equations, operands
from seqjax.kernels.hopper import recurrence as hopper
from seqjax.kernels.hopper import tiles
from seqjax.kernels.triton import recurrence as triton
from seqjax.sequences import hide

ACTIVATIONS = ("tanh", "sigmoid", "relu", "identity")
BOUNDED = ("tanh", "sigmoid")
COARSE = (None, "default", "fastest", "bfloat16", "high", "tensorfloat32", "bfloat16_3x", "TF32_TF32_F32")
"""Values of `jax.default_matmul_precision` by which a GPU multiplies float32 as TF32 or more coarsely."""


class Kernel(NamedTuple):
    """The kind of kernel that a cell needs, and its activations with their slopes."""

    kind: equations.Kind
    functions: equations.Functions


def kernel(cell: Any) -> Kernel:
    """What runs a cell that is supported (see `unsupported`)."""
    if isinstance(cell, LSTM):
        kind = equations.LSTM
    elif isinstance(cell, GRU):
        kind = equations.GRU_AFTER if cell.reset == "after" else equations.GRU_BEFORE
    else:
        kind = equations.SIMPLE
    names = cell.activation, getattr(cell, "recurrent_activation", "sigmoid")
    functions: tuple[Any, ...] = (*map(activation_function, names), *map(slope_from_output, names))
    return Kernel(kind, equations.Functions(*functions))


def unsupported(cell: Cell) -> str | None:
    """Why there is no kernel for `cell`; `None` if there is one.

    >>> from seqjax import GRU, PeepholeLSTM
    >>> unsupported(GRU(4)), unsupported(PeepholeLSTM(4))
    (None, 'there are kernels for Simple, LSTM and GRU')
    """
    if isinstance(cell, MultiHead):
        return unsupported(cell.cell)
    if not isinstance(cell, Simple | LSTM | GRU):
        return "there are kernels for Simple, LSTM and GRU"
    if cell.normalize is not None:
        return f"normalize={cell.normalize!r}"
    if getattr(cell, "proj_dim", None) is not None:
        return f"proj_dim={cell.proj_dim}"  # type: ignore[union-attr]
    for name in ("activation", "recurrent_activation"):
        if getattr(cell, name, "tanh") not in ACTIVATIONS:
            return f"{name}={getattr(cell, name)!r}, kernels know {', '.join(ACTIVATIONS)}"
    return None


def too_large(cell: Any) -> str | None:
    """Why the kernels cannot hold the recurrent weights of `cell`, or of one of its heads; `None` if they can."""
    if isinstance(cell, MultiHead):
        return too_large(cell.cell)
    dtype = cell.dtypes.compute or cell.dtypes.params
    if jnp.dtype(dtype).itemsize > 4:
        return f"it computes in {dtype}, which the kernels do not support"
    if triton.fits(kernel(cell).kind.gates, cell.hidden_dim, dtype) or on_hopper(cell, dtype):
        return None
    return (
        f"in {dtype} one gate's recurrent weights take {triton.weight_bytes(1, cell.hidden_dim, dtype)} bytes on chip, "
        f"of {triton.ONE_GATE}"
    )


def on_hopper(cell: Any, dtype: Any) -> bool:
    """Whether the Hopper kernels run a cell that is supported: there is a Hopper, and the weights fit.

    In float32 they multiply float16: that is as exact as TF32 if states cannot grow, and not for who wants more.
    """
    if not hopper.available() or not tiles.fits(kernel(cell).kind, cell.hidden_dim, dtype):
        return False
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    names = cell.activation, getattr(cell, "recurrent_activation", "sigmoid")
    return jnp.dtype(dtype) != jnp.float32 or (precision in COARSE and all(name in BOUNDED for name in names))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused(
    cell: Cell, how: triton.Launch, params: Params, initial: Carry | None, carry: Carry, now: Steps
) -> tuple[Carry, Array]:
    """The recurrence on projected inputs `now.x [T, ..., G*H]`; outputs of masked steps are arbitrary."""
    left = launch_forward(cell, how, params, initial, carry, now, keep=False)
    return outputs(carry, left, now.x.shape[1:-1])


def _forward(cell: Cell, how: triton.Launch, params: Params, initial: Carry | None, carry: Carry, now: Steps):
    given = (params, initial, carry, now)
    left = kept_forward(cell, how, *given)
    return outputs(carry, left, now.x.shape[1:-1]), (_anew(given), left)


def _reverse(cell: Cell, how: triton.Launch, kept: tuple, cotangents: tuple[Carry, Array]):
    given, left = kept
    return gradient(cell, how, given, left, cotangents)


fused.defvjp(_forward, _reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kept_forward(cell: Cell, how: triton.Launch, *given: Any) -> operands.Left:
    """The forward kernel, keeping what its reverse needs."""
    return launch_forward(cell, how, *given, keep=True)


def _kept_forward(cell: Cell, how: triton.Launch, *given: Any):
    return kept_forward(cell, how, *given), _anew(given)


def _anew(given: tuple) -> tuple:
    """Copies of the arguments. Inside another function with a custom rule, JAX (up to 0.12) identifies residuals that
    are arguments by their position, and picks the wrong ones once it has put others in front."""
    return jax.lax.optimization_barrier(given)


def _kept_reverse(cell: Cell, how: triton.Launch, given: tuple, d_left: operands.Left):
    """The gradient of the outputs in `left`; `gradient` lets no other cotangent through."""
    _, _, carry, now = given
    cotangents = outputs(carry, d_left, now.x.shape[1:-1])
    return loop_gradient(cell, given, cotangents)


kept_forward.defvjp(_kept_forward, _kept_reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gradient(
    cell: Cell, how: triton.Launch, given: tuple, left: operands.Left, cotangents: tuple[Carry, Array]
) -> tuple:
    """The reverse kernel. As a function it depends only on `given` and the cotangents; `left` just saves it work."""
    return launch_reverse(cell, how, given, left, cotangents)


def _gradient_forward(cell: Cell, how: triton.Launch, given: tuple, left: operands.Left, cotangents: tuple):
    return gradient(cell, how, given, left, cotangents), (given, left, cotangents)


def _gradient_reverse(cell: Cell, how: triton.Launch, kept: tuple, d: tuple):
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
    cell: Cell, how: triton.Launch, params: Params, initial: Carry | None, carry: Carry, now: Steps, *, keep: bool
) -> operands.Left:
    zs, given = _flatten(params, initial, carry, now)
    kind, functions = kernel(cell)
    if not how.interpret and on_hopper(cell, zs.dtype):
        return hopper.forward(kind, functions, zs, given, keep=keep)
    return triton.forward(kind, functions, zs, given, how, keep=keep)


def launch_reverse(cell: Any, how: triton.Launch, given: tuple, left: operands.Left, cotangents: tuple) -> tuple:
    params, initial, carry, now = given
    d_carry, d_ys = cotangents
    T, *batch, width = now.x.shape
    zs, flat = _flatten(params, initial, carry, now)
    d_hs = hide(d_ys, now.mask).reshape(T, zs.shape[1], -1)
    kind, functions = kernel(cell)
    if isinstance(left.kept, hopper.Kept):
        out = hopper.reverse(kind, functions, flat, left, d_hs, _flat_states(d_carry))
        kept = [hopper.gate(left, k) for k in range(kind.kept)]
    else:
        out = triton.reverse(kind, functions, flat, left, d_hs, _flat_states(d_carry), how)
        kept = [left.kept[:, :, k] for k in range(kind.kept)]
    known = residuals(cell, flat, left.sequences, kept, now)
    d_params = cell.accumulate(params, known, _cotangents(known, out.d_z), _extras(cell))

    def carries(states: tuple[Array, ...] | None) -> Carry | None:
        return None if states is None else _carry_like(carry, states, tuple(batch))

    d_x = out.d_z.reshape(T, *batch, width)
    return d_params, carries(out.d_initial), carries(out.d_states), Steps(d_x, None, None, None)


def residuals(cell: Cell, given: operands.Given, sequences: tuple[Array, ...], kept: list[Array], now: Steps) -> Any:
    """What the cell's `accumulate` reads, `[T, B, ...]`."""
    hs = sequences[0]
    h_before = delayed(hs, given.states[0].astype(hs.dtype))
    if now.reset is not None and given.initial is not None:
        again = now.reset.reshape(*hs.shape[:2], 1)
        h_before = jnp.where(again, given.initial[0].astype(hs.dtype), h_before)
    if isinstance(cell, Simple):
        return SimpleResiduals(h_before, hs, None)
    if isinstance(cell, LSTM):
        i, f, g, o = kept
        return LSTMResiduals(i, f, g, o, sequences[1], h_before, None, None)
    z, r, g = kept[:3]
    return GRUResiduals(z, r, g, h_before, kept[3] if len(kept) == 4 else None, None)


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
    flags = None
    if now.mask is not None or now.reset is not None:
        flags = jnp.zeros(zs.shape[:2], jnp.int8)
        for bit, flag in ((operands.MASKED, None if now.mask is None else ~now.mask), (operands.RESET, now.reset)):
            if flag is not None:
                flags = flags | (flag.reshape(zs.shape[:2]).astype(jnp.int8) * jnp.int8(bit))
    given = operands.Given(
        params.w_rec,
        None if getattr(params, "bias_rec", None) is None else params.bias_rec.astype(zs.dtype),
        _flat_states(carry),
        None if initial is None else _flat_states(initial),
        flags,
    )
    return zs, given
