# SPDX-License-Identifier: Apache-2.0
"""A whole recurrence in one launch on a Hopper GPU, with the recurrent weights of 64 units on each of its processors.

A cluster of blocks owns 16 sequences and each block 64 units, whose weights stay in shared memory for the whole run.
At every step a block sends the `h` of its units to the others and, in reverse, what its gates add to the cotangents
of the others' `h`. Units are rows and sequences columns, as the matrix units (`wgmma`) need at least 64 rows;
so XLA rearranges arrays into tiles before the kernel, and back after it.

The interface is that of Triton's `recurrence`, whose kernels run on every NVIDIA GPU. Pallas' Mosaic backend is
imported only when a kernel is launched.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from seqjax import machine
from seqjax.base import Array
from seqjax.kernels import step
from seqjax.kernels.equations import Functions, Kind, States
from seqjax.kernels.hopper.tiles import Tiles
from seqjax.kernels.operands import Cotangents, Given, Left

if TYPE_CHECKING:
    from seqjax.kernels.hopper.block import Place


def available() -> bool:
    """Whether the default device is a Hopper GPU, and this JAX has the backend that the kernels need.

    >>> available()
    False
    """
    if machine.platform() not in ("cuda", "gpu") or machine.device().compute_capability != "9.0":
        return False
    try:
        from jax.experimental.pallas import mosaic_gpu  # noqa: F401
    except ImportError:
        return False
    return True


class Kept(NamedTuple):
    """What the forward kernel stores for the reverse one, in tiles."""

    states: Array  # [T + 1, clusters, S, parts, *tile], before every step and after the last
    gates: Array | None  # [T, clusters, K, parts, *tile]


def forward(kind: Kind, functions: Functions, z: Array, given: Given, *, keep: bool = True) -> Left:
    """Like Triton's `forward`; `kept` is a `Kept`."""
    T, B, width = z.shape
    dtype, carry = z.dtype, given.states[0].dtype
    tiles = Tiles(B, width // kind.gates, dtype)
    sequences = kind.states if keep else 1

    def body(inputs: dict, outputs: dict, place: "Place") -> None:
        bias, restart = place.all(inputs["bias"]), tuple(place.all(inputs["initial"])) or None
        quick = _on_chip(functions, dtype, place.reciprocal)

        def read(t: Array) -> tuple[list[Array], Array | None]:
            return place.some(inputs["z"], t), place.flags(inputs["flags"], t)

        def run(t: Array, half: int, phase: Array, loop: tuple) -> tuple:
            before, (zs, flags) = loop
            exchange, slots = place.exchange(half, phase), iter(range(kind.products))

            def product(h: Array, *gates: int) -> list[Array]:
                found = exchange.product(next(slots), h, gates)
                return found if not bias else [a + bias[k] for k, a in zip(gates, found, strict=True)]

            z = _Late(zs, place.number)
            after, gates = step.forward(kind, z, before, restart, flags, product, quick, dtype, carry)
            place.write(outputs["states"], after[:sequences], t + 1)
            if kind.kept and keep:
                place.write(outputs["gates"], gates, t)
            return after, read(jnp.minimum(t + 1, T - 1))  # loads during the next step's product

        first = tuple(place.all(inputs["states"]))
        place.write(outputs["states"], first[:sequences], 0)
        last, _ = _turns(T, run, (first, read(jnp.int32(0))))
        place.write(outputs["last"], last)

    bias = None if given.bias_rec is None else given.bias_rec.reshape(kind.gates, tiles.H).astype(jnp.float32)
    outputs = {
        "states": tiles.shape(sequences, dtype, T + 1),
        "last": tiles.shape(kind.states, carry),
    }
    if kind.kept and keep:
        outputs["gates"] = tiles.shape(kind.kept, dtype, T)
    inputs = {
        "z": tiles.tile(z.reshape(T, B, kind.gates, tiles.H)),
        "bias": None if bias is None else tiles.tile(jnp.broadcast_to(bias, (B, *bias.shape))),
        "states": tiles.states(given.states, carry),
        "initial": None if given.initial is None else tiles.states(given.initial, carry),
        "flags": tiles.flags(given.flags),
    }
    out = _launch(body, f"{kind.name}_forward", kind, tiles, given.w_rec, inputs, outputs, transposed=False)
    hs = tiles.untile(out["states"])[1:]
    return Left(
        (hs[:, :, 0],),
        Kept(out["states"], out.get("gates")) if keep else None,
        tiles.untile_states(out["last"]),
    )


def gate(left: Left, k: int) -> Array:
    """`[T, B, H]`, the k-th gate that `forward` kept."""
    h = left.sequences[0]
    _, B, H = h.shape
    return Tiles(B, H, h.dtype).untile(left.kept.gates[:, :, k : k + 1])[:, :, 0]


def reverse(kind: Kind, functions: Functions, given: Given, left: Left, d_hs: Array, d_last: States) -> Cotangents:
    """Like Triton's `reverse`."""
    T, B, H = d_hs.shape
    dtype, carry = d_hs.dtype, given.states[0].dtype
    tiles = Tiles(B, H, dtype)

    def body(inputs: dict, outputs: dict, place: "Place") -> None:
        restart = tuple(place.all(inputs["initial"])) or None
        quick = _on_chip(functions, dtype, place.reciprocal)

        def read(t: Array) -> tuple:
            kept = place.some(inputs["gates"], t) if kind.kept else []
            d_h, flags = place.some(inputs["d_hs"], t)[0], place.flags(inputs["flags"], t)
            return place.some(inputs["states"], t), kept, d_h, flags

        def run(n: Array, half: int, phase: Array, loop: tuple) -> tuple:
            d_states, d_initial, h, (states, kept, d_h, flags) = loop
            t = T - 1 - n
            exchange, slots = place.exchange(half, phase), iter(range(kind.products))
            ahead: list[Any] = []
            before, kept = (tuple(map(place.number, tiles)) for tiles in (states, kept))

            def transposed(*pairs: tuple[int, Array]) -> Array:
                ahead.append(read(jnp.maximum(t - 1, 0)))  # loads during the product
                return exchange.transposed(next(slots), pairs)

            def emit(k: int, d: Array) -> None:
                place.write_one(outputs["d_z"], d, k, t)

            d_before, d_initial = step.reverse(
                kind, kept, before, (h,), restart, flags, place.number(d_h), d_states, d_initial,
                transposed, emit, quick,
            )  # fmt: skip
            return d_before, d_initial, before[0], ahead[-1]

        d_last = tuple(place.all(inputs["d_last"]))
        zeros = tuple(place.zeros() for _ in d_last) if restart else ()
        h = place.number(place.some(inputs["states"], jnp.int32(T))[0])
        d_states, d_initial, _, _ = _turns(T, run, (d_last, zeros, h, read(jnp.int32(T - 1))))
        place.write(outputs["d_states"], d_states)
        if restart:
            place.write(outputs["d_initial"], d_initial)

    states = tiles.shape(kind.states, carry)
    outputs = {"d_z": tiles.shape(kind.gates, dtype, T), "d_states": states}
    if given.initial is not None:
        outputs["d_initial"] = states
    inputs = {
        "d_hs": tiles.tile(d_hs[:, :, None]),
        "d_last": tiles.states(d_last, jnp.float32),
        "states": left.kept.states,
        "gates": left.kept.gates,
        "initial": None if given.initial is None else tiles.states(given.initial, dtype),
        "flags": tiles.flags(given.flags),
    }
    out = _launch(body, f"{kind.name}_reverse", kind, tiles, given.w_rec, inputs, outputs, transposed=True)
    d_initial = None if given.initial is None else tiles.untile_states(out["d_initial"])
    d_z = tiles.untile(out["d_z"]).reshape(T, B, kind.gates * H)
    return Cotangents(d_z, tiles.untile_states(out["d_states"]), d_initial)


class _Late(Sequence):
    """Tiles that become numbers only where they are used, as until then they need not have been loaded."""

    def __init__(self, tiles: list[Array], number: Callable[[Array], Array]):
        self.tiles, self.number = tiles, number

    def __getitem__(self, k: Any) -> Any:
        return self.number(self.tiles[k])

    def __len__(self) -> int:
        return len(self.tiles)


def _launch(*arguments: Any, **options: Any) -> dict[str, Array]:
    from seqjax.kernels.hopper.block import launch

    return launch(*arguments, **options)


def _turns(T: int, run: Callable, loop: Any) -> Any:
    """`run(t, half, phase, loop)` for all t, two at a time, as the compiler must know which half of a buffer it is."""

    def two(i: Array, loop: Any) -> Any:
        phase = jnp.bitwise_and(i, 1)
        return run(2 * i + 1, 1, phase, run(2 * i, 0, phase, loop))

    loop = lax.fori_loop(jnp.int32(0), jnp.int32(T // 2), two, loop)
    return run(jnp.int32(T - 1), 0, jnp.int32(T // 2 % 2), loop) if T % 2 else loop


def _on_chip(functions: Functions, dtype: Any, reciprocal: Callable[[Array], Array]) -> Functions:
    """`functions` with tanh and sigmoid computed by the chip's own instructions, as accurately as `dtype` needs, and
    with a relu that has no derivative rule of its own, which the backend does not know."""

    def sigmoid(x: Array) -> Array:
        return reciprocal(1 + jnp.exp(-x))

    def tanh(x: Array) -> Array:
        return _tanh(x, sigmoid)

    known: dict[Any, Any] = {jax.nn.relu: lambda x: jnp.maximum(x, 0.0)}
    known |= {jax.nn.sigmoid: _sigmoid} if dtype == jnp.bfloat16 else {jax.nn.sigmoid: sigmoid, jnp.tanh: tanh}
    activation, gate = (known.get(function, function) for function in (functions.activation, functions.gate))
    return functions._replace(activation=activation, gate=gate)


def _sigmoid(x: Array) -> Array:
    """σ through the chip's tanh, accurate to 2^-11: one instruction instead of an exponential and a reciprocal."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _tanh(x: Array, sigmoid: Callable[[Array], Array] = jax.nn.sigmoid) -> Array:
    """tanh through the chip's exponential or, near zero, where that would cancel, through the series."""
    square = x * x
    series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    return jnp.where(square < 0.0625, series, 2 * sigmoid(2 * x) - 1)
