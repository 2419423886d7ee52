# SPDX-License-Identifier: Apache-2.0
"""A whole recurrence in one launch on a Hopper, the recurrent weights of 64 units on each processor of the chip.

A cluster of blocks owns 16 sequences. Each warpgroup keeps all gates of 64 units, whose weights stay in shared
memory for the whole run, and at every step sends what it has computed to the others: `h` forward, the
cotangents of the gates in reverse. Units are rows and sequences columns, as the matrix units (`wgmma`) have at
least 64 rows; so arrays are brought into tiles `[64, 16]` before and back after, by XLA.

Products are of bfloat16. In float32 both factors are split into two bfloat16, high and low, and the product of
the low parts is left out: what remains is good to about 2^-16, where TF32 has 2^-11.

Written for Pallas' Mosaic backend. Same interface as `recurrence`, whose Triton kernels run on every GPU.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from seqjax.base import Array
from seqjax.kernels.launch import pad
from seqjax.kernels.recurrence import MASKED, RESET, Cotangents, Given, Left
from seqjax.kernels.steps import Functions, Kind, States

UNITS, ROWS = 64, 16
"""Rows and columns of a tile."""
SHARED = 224 * 2**10
"""Bytes of shared memory that a block may take; a Hopper has 227 KiB."""
BLOCKS = 8
"""Of a cluster, at most."""
SPLIT = {"bfloat16": 1, "float32": 2}
"""How many bfloat16 numbers one of a dtype is."""


def available() -> bool:
    """Whether the default backend is a Hopper, and this JAX has what the kernels are written for.

    >>> available()
    False
    """
    if jax.default_backend() not in ("cuda", "gpu") or jax.devices()[0].compute_capability != "9.0":
        return False
    try:
        from jax.experimental.pallas import mosaic_gpu  # noqa: F401
    except ImportError:
        return False
    return True


class Grid(NamedTuple):
    """How `T` steps of `B` sequences of `H` units are cut."""

    T: int
    B: int
    H: int
    groups: int  # warpgroups of a block
    blocks: int  # of a cluster

    @property
    def parts(self) -> int:
        """Tiles of 64 units that H is cut into."""
        return self.groups * self.blocks

    @property
    def clusters(self) -> int:
        return -(-self.B // ROWS)

    def tiles(self, array: Array) -> Array:
        """`[..., B, N, H]` as `[..., clusters, N, parts, UNITS, ROWS]`."""
        *lead, _, N, _ = array.shape
        array = pad(pad(array, -1, self.parts * UNITS), -3, self.clusters * ROWS)
        array = array.reshape(*lead, self.clusters, ROWS, N, self.parts, UNITS)
        return jnp.moveaxis(array, -4, -1)

    def plain(self, tiles: Array) -> Array:
        """What `tiles` were made of."""
        *lead, _, N, _, _, _ = tiles.shape
        array = jnp.moveaxis(tiles, -1, -4).reshape(*lead, self.clusters * ROWS, N, self.parts * UNITS)
        return array[..., : self.B, :, : self.H]

    def states(self, states: States, dtype: Any) -> Array:
        """`[B, H]` each, as tiles `[clusters, N, parts, UNITS, ROWS]`."""
        return self.tiles(jnp.stack([state.astype(dtype) for state in states], 1))

    def flags(self, flags: Array | None) -> Array | None:
        """`[T, B]`, the same for each unit of a tile: `[T, clusters, UNITS, ROWS]`."""
        if flags is None:
            return None
        rows = pad(flags.astype(jnp.int32), 1, self.clusters * ROWS).reshape(self.T, self.clusters, 1, ROWS)
        return jnp.broadcast_to(rows, (self.T, self.clusters, UNITS, ROWS))

    def weights(self, w_rec: Array, gates: int, split: int, *, transposed: bool) -> Array:
        """`[H, G*H]` as tiles `[parts, G * split * parts, 64, 64]`: for each part what it multiplies the others' by."""
        apart = w_rec.astype(jnp.float32).reshape(self.H, gates, self.H)
        apart = pad(pad(apart, 0, self.parts * UNITS), 2, self.parts * UNITS)
        apart = apart.reshape(self.parts, UNITS, gates, self.parts, UNITS)  # from part, unit; gate; to part, unit
        apart = apart.transpose((0, 2, 3, 1, 4) if transposed else (3, 2, 0, 4, 1))
        # a plain cast and back is left out by XLA, which may compute more precisely than asked
        high = lax.reduce_precision(apart, exponent_bits=8, mantissa_bits=7)
        halves = jnp.stack([high, apart - high][:split], 2).astype(jnp.bfloat16)
        return halves.reshape(self.parts, gates * split * self.parts, UNITS, UNITS)


def grid(kind: Kind, T: int, B: int, H: int, dtype: Any) -> Grid | None:
    """How a recurrence is cut; `None` where it does not fit on the chip.

    >>> from seqjax.kernels.steps import LSTM
    >>> grid(LSTM, 9, 16, 100, "bfloat16")[3:], grid(LSTM, 9, 16, 200, "bfloat16")[3:]
    ((2, 1), (1, 4))
    >>> grid(LSTM, 9, 16, 256, "float32")
    """
    if jnp.dtype(dtype).name not in SPLIT:
        return None
    parts, split = -(-H // UNITS), SPLIT[jnp.dtype(dtype).name]
    for groups, blocks in ((parts, 1), (1, parts)):
        weights = groups * kind.gates * split * parts * UNITS * UNITS * 2
        shared = 2 * parts * kind.gates * split * UNITS * ROWS * 2
        if groups <= 2 and blocks <= BLOCKS and weights + shared <= SHARED:
            return Grid(T, B, H, groups, blocks)
    return None


class _Scratch(NamedTuple):
    weights: Any  # [groups, G * split * parts, 64, 64]
    buffer: Any  # [2, parts, slots * split, 64, 16]
    barriers: Any
    loaded: Any


class _Exchange(NamedTuple):
    """One step's products: what a part has is sent to all, and all is multiplied by the part's weights."""

    of: Grid
    scratch: _Scratch
    split: int
    part: Array
    group: Array
    half: int  # of the buffer, by turns
    phase: Array

    def share(self, first: int, arrays: Sequence[Array]) -> None:
        """Puts `[64, 16]` arrays into slots `first`, `first + 1`, ... of the buffers of all parts."""
        from seqjax.kernels import cluster

        for k, array in enumerate(arrays):
            for i, half in enumerate(_halves(array, self.split)):
                self.scratch.buffer[self.half, self.part, (first + k) * self.split + i] = half
        cluster.synchronize(128 * self.of.groups)
        if self.of.blocks > 1:
            cluster.send(
                self.scratch.buffer, self.scratch.barriers, self._barrier(first), layout=_tiling(),
                blocks=self.of.blocks, half=self.half, first=first * self.split, count=len(arrays) * self.split,
            )  # fmt: skip

    def multiply(self, first: int, items: Sequence[tuple[Any, int, int]]) -> None:
        """Adds `W_k x` to an accumulator, for (accumulator, gate k, slot of x); they were shared from slot `first`."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        from seqjax.kernels import cluster

        for turn in range(self.of.parts):  # one's own first: the others' may be on their way
            source = lax.rem(self.part + turn, self.of.parts) if turn else self.part
            if turn == 1 and self.of.blocks > 1:
                cluster.wait(self.scratch.barriers, self._barrier(first), self.phase)
            for accumulator, gate, slot in items:
                for i, j in ((0, 0), (0, 1), (1, 0))[: 3 if self.split == 2 else 1]:
                    weights = self.scratch.weights.at[self.group, (gate * self.split + i) * self.of.parts + source]
                    plgpu.wgmma(accumulator, weights, self.scratch.buffer.at[self.half, source, slot * self.split + j])

    def _barrier(self, slot: int) -> int:
        return self.half * (self.scratch.buffer.shape[2] // self.split) + slot


def forward(kind: Kind, of: Functions, z: Array, given: Given, *, keep: bool = True) -> Left:
    """As `recurrence.forward`; what is kept is in tiles, for `gate` and `reverse`."""
    T, B, width = z.shape
    cut = grid(kind, T, B, width // kind.gates, z.dtype)
    assert cut is not None
    dtype, carry, split = z.dtype, given.states[0].dtype, SPLIT[z.dtype.name]
    of = _functions(of, split)
    kept, sequences = (kind.kept, kind.states) if keep else (0, 1)

    def body(inputs: dict, outputs: dict, scratch: _Scratch, at: "_Place") -> None:
        bias, restart = at.all(inputs["bias"]), at.all(inputs["initial"])

        def read(t: Array) -> tuple[list[Array], Array | None]:
            flags = inputs["flags"]
            return at.some(inputs["z"], t), None if flags is None else at.load(flags.at[t, at.cluster])

        def step(t: Array, half: int, phase: Array, loop: tuple) -> tuple:
            before, (zs, flags) = loop
            ahead = read(jnp.minimum(t + 1, T - 1))  # under way while this step is computed
            exchange = at.exchange(half, phase)
            slots = iter(range(kind.gates))

            def product(h: Array, *gates: int) -> list[Array]:
                slot = next(slots)
                exchange.share(slot, [h])
                found = _accumulate(len(gates), lambda a: exchange.multiply(slot, _items(a, gates, [slot] * len(gates))))
                return found if not bias else [a + bias[k] for k, a in zip(gates, found, strict=True)]

            masked, again = _bits(flags)
            if restart:
                before = _pick(again, restart, before)
            after, extra = kind.forward([a.astype(jnp.float32) for a in zs], before, product, of)
            after = tuple(_rounded(a, d) for a, d in zip(after, (dtype, *[carry] * 9), strict=False))
            after = after if masked is None else _pick(masked, before, after)
            at.write(outputs["sequences"], after[:sequences], t)
            at.write(outputs["kept"], extra[:kept], t)
            return after, ahead

        first = tuple(at.all(inputs["states"]))
        at.write(outputs["last"], _turns(T, step, (first, read(jnp.int32(0))))[0])

    room = lambda count, dtype, *lead: jax.ShapeDtypeStruct(  # noqa: E731
        (*lead, cut.clusters, max(count, 1), cut.parts, UNITS, ROWS), dtype
    )
    bias = None if given.bias_rec is None else given.bias_rec.reshape(kind.gates, cut.H).astype(jnp.float32)
    out = _launch(
        body,
        cut,
        kind,
        split,
        cut.weights(given.w_rec, kind.gates, split, transposed=False),
        {
            "z": cut.tiles(z.reshape(T, B, kind.gates, cut.H)),
            "bias": None if bias is None else cut.tiles(jnp.broadcast_to(bias, (B, *bias.shape))),
            "states": cut.states(given.states, carry),
            "initial": None if given.initial is None else cut.states(given.initial, carry),
            "flags": cut.flags(given.flags),
        },
        {"sequences": room(sequences, dtype, T), "kept": room(kept, dtype, *[T] * bool(kept)), "last": room(kind.states, carry)},
        f"{kind.name}_forward",
    )
    plain = cut.plain(out["sequences"])
    last = cut.plain(out["last"])
    return Left(
        tuple(plain[..., i, :] for i in range(sequences)),
        out["kept"] if kept else None,
        tuple(last[:, i] for i in range(kind.states)),
    )


def gate(kind: Kind, left: Left, k: int) -> Array:
    """`[T, B, H]`, the k-th of what `forward` kept."""
    T, B, H = left.sequences[0].shape
    cut = grid(kind, T, B, H, left.sequences[0].dtype)
    assert cut is not None
    assert left.kept is not None
    return cut.plain(left.kept[:, :, k : k + 1])[..., 0, :]


def reverse(kind: Kind, of: Functions, given: Given, left: Left, d_hs: Array, d_last: States) -> Cotangents:
    """As `recurrence.reverse`."""
    T, B, H = d_hs.shape
    cut = grid(kind, T, B, H, d_hs.dtype)
    assert cut is not None
    dtype, carry, split = d_hs.dtype, given.states[0].dtype, SPLIT[d_hs.dtype.name]
    of = _functions(of, split)

    def body(inputs: dict, outputs: dict, scratch: _Scratch, at: "_Place") -> None:
        from jax.experimental.pallas import mosaic_gpu as plgpu

        start, restart = tuple(at.all(inputs["states"])), at.all(inputs["initial"])

        def read(t: Array) -> tuple:
            flags = inputs["flags"]
            return (
                at.some(inputs["sequences"], jnp.maximum(t - 1, 0)),
                at.some(inputs["kept"], t) if kind.kept else [],
                at.some(inputs["d_hs"], t)[0],
                None if flags is None else at.load(flags.at[t, at.cluster]),
            )

        def step(n: Array, half: int, phase: Array, loop: tuple) -> tuple:
            d_states, d_initial, h, (before, kept, d_h, flags) = loop
            t = T - 1 - n
            ahead = read(jnp.maximum(t - 1, 0))
            exchange = at.exchange(half, phase)
            masked, again = _bits(flags)
            earlier = tuple(a.astype(jnp.float32) for a in before)
            before = tuple(jnp.where(t == 0, a, b) for a, b in zip(start, earlier, strict=True))
            before = _pick(again, restart, before) if restart else before

            def transposed(*pairs: tuple[int, Array]) -> Array:
                gates, arrays = zip(*pairs, strict=True)
                exchange.share(gates[0], arrays)
                return _accumulate(1, lambda a: exchange.multiply(gates[0], _items(a * len(gates), gates, gates)))[0]

            d_after = d_states if masked is None else tuple(jnp.where(masked, 0.0, d) for d in d_states)
            d_after = (d_after[0] + d_h.astype(jnp.float32), *d_after[1:])
            kept = [a.astype(jnp.float32) for a in kept]
            d_before, d_z = kind.reverse(kept, before, (h,), d_after, transposed, of)
            at.write(outputs["d_z"], d_z, t)
            d_before = d_before if masked is None else _pick(masked, d_states, d_before)
            if restart:
                d_initial = tuple(a + jnp.where(again, d, 0.0) for a, d in zip(d_initial, d_before, strict=True))
                d_before = tuple(jnp.where(again, 0.0, d) for d in d_before)
            return d_before, d_initial, earlier[0], ahead

        d_last = tuple(at.all(inputs["d_last"]))
        zeros = tuple(plgpu.layout_cast(jnp.zeros_like(d), plgpu.Layout.WGMMA) for d in d_last) if restart else ()
        h = at.some(inputs["sequences"], jnp.int32(T - 1))[0].astype(jnp.float32)
        d_states, d_initial, _, _ = _turns(T, step, (d_last, zeros, h, read(jnp.int32(T - 1))))
        at.write(outputs["d_states"], d_states)
        if restart:
            at.write(outputs["d_initial"], d_initial)

    room = lambda count, dtype, *lead: jax.ShapeDtypeStruct(  # noqa: E731
        (*lead, cut.clusters, count, cut.parts, UNITS, ROWS), dtype
    )
    results = {"d_z": room(kind.gates, dtype, T), "d_states": room(kind.states, carry)}
    out = _launch(
        body,
        cut,
        kind,
        split,
        cut.weights(given.w_rec, kind.gates, split, transposed=True),
        {
            "d_hs": cut.tiles(d_hs[:, :, None]),
            "d_last": cut.states(d_last, jnp.float32),
            "sequences": cut.tiles(jnp.stack(left.sequences, 2)),
            "kept": left.kept,
            "states": cut.states(given.states, dtype),
            "initial": None if given.initial is None else cut.states(given.initial, dtype),
            "flags": cut.flags(given.flags),
        },
        results if given.initial is None else results | {"d_initial": room(kind.states, carry)},
        f"{kind.name}_reverse",
    )

    def states(tiles: Array) -> States:
        return tuple(cut.plain(tiles)[:, i] for i in range(kind.states))

    d_z = cut.plain(out["d_z"]).reshape(T, B, kind.gates * H)
    return Cotangents(d_z, states(out["d_states"]), states(out["d_initial"]) if "d_initial" in out else None)


class _Place(NamedTuple):
    """Where a warpgroup is: which cluster, which part of the units; and how it reads and writes its tiles."""

    of: Grid
    scratch: _Scratch
    split: int
    cluster: Array
    part: Array
    group: Array

    def load(self, tile: Any) -> Array:
        from jax.experimental.pallas import mosaic_gpu as plgpu

        index = ((),) if jax.__version_info__ < (0, 11) else ()
        return plgpu.load(tile, *index, layout=plgpu.Layout.WGMMA, optimized=False)

    def some(self, ref: Any, t: Array) -> list[Array]:
        """This part's tiles `[T, clusters, N, parts, ...]` of step `t`."""
        return [self.load(ref.at[t, self.cluster, i, self.part]) for i in range(ref.shape[2])]

    def all(self, ref: Any) -> list[Array]:
        """This part's tiles `[clusters, N, parts, ...]`, in float32; none of none."""
        if ref is None:
            return []
        return [self.load(ref.at[self.cluster, i, self.part]).astype(jnp.float32) for i in range(ref.shape[1])]

    def write(self, ref: Any, arrays: Sequence[Array], *t: Array) -> None:
        for i, array in enumerate(arrays):
            ref[(*t, self.cluster, i, self.part)] = array.astype(ref.dtype)

    def exchange(self, half: int, phase: Array) -> _Exchange:
        return _Exchange(self.of, self.scratch, self.split, self.part, self.group, half, phase)


def _launch(
    body: Callable[[dict, dict, _Scratch, _Place], None],
    of: Grid,
    kind: Kind,
    split: int,
    weights: Array,
    inputs: dict[str, Array | None],
    outputs: dict[str, jax.ShapeDtypeStruct],
    name: str,
) -> dict[str, Array]:
    """Runs `body(inputs, outputs, scratch, place)`, arrays turned into refs, for every part of every cluster."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from seqjax.kernels import cluster

    given = [key for key, array in inputs.items() if array is not None]
    tiles = weights.shape[1]

    def run(*refs: Any) -> None:
        weights, *rest, on_chip, buffer, barriers, loaded = refs
        block, group = lax.axis_index("block"), lax.axis_index("group")
        part = group + block * of.groups
        scratch = _Scratch(on_chip, buffer, barriers, loaded)
        if of.blocks > 1:
            cluster.begin(barriers)
        for n in range(tiles):
            plgpu.copy_gmem_to_smem(weights.at[part, n], on_chip.at[group, n], loaded.at[group])
        plgpu.barrier_wait(loaded.at[group])
        results = dict(zip(outputs, rest[len(given) :], strict=True))
        body(
            dict.fromkeys(inputs) | dict(zip(given, rest, strict=False)),
            results,
            scratch,
            _Place(of, scratch, split, lax.axis_index("cluster"), part, group),
        )
        if of.blocks > 1:
            cluster.meet()

    kernel = plgpu.kernel(
        run,
        out_type=tuple(outputs.values()),
        scratch_types=(
            plgpu.SMEM((of.groups, tiles, UNITS, UNITS), jnp.bfloat16, transforms=_tiling()),
            plgpu.SMEM((2, of.parts, kind.gates * split, UNITS, ROWS), jnp.bfloat16, transforms=_tiling()),
            plgpu.SMEM((cluster.BARRIER_WORDS * 2 * kind.gates,), jnp.int32),
            plgpu.Barrier(num_arrivals=tiles, num_barriers=of.groups),
        ),
        grid=(of.clusters,),
        grid_names=("cluster",),
        cluster=(of.blocks,),
        cluster_names=("block",),
        num_threads=of.groups,
        thread_name="group",
        kernel_name=name.replace("-", "_"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )
    return dict(zip(outputs, kernel(weights, *(inputs[key] for key in given)), strict=True))


def _turns(T: int, step: Callable, loop: Any) -> Any:
    """`step(t, half, phase, loop)` for all t, two at a time: the half of a buffer must be known to the compiler."""

    def two(i: Array, loop: Any) -> Any:
        phase = jnp.bitwise_and(i, 1)
        return step(2 * i + 1, 1, phase, step(2 * i, 0, phase, loop))

    loop = lax.fori_loop(0, T // 2, two, loop)
    return step(jnp.int32(T - 1), 0, jnp.int32(T // 2 % 2), loop) if T % 2 else loop


def _accumulate(count: int, multiply: Callable[[Sequence[Any]], None]) -> list[Array]:
    """What `multiply` leaves in `count` accumulators."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def run(*accumulators: Any) -> list[Array]:
        multiply(accumulators)
        plgpu.wgmma_wait(0)
        return [plgpu.wgmma_accumulator_load(a, wait_n=None) for a in accumulators]

    return pl.run_scoped(run, *(plgpu.ACC((UNITS, ROWS)) for _ in range(count)))


def _items(accumulators: Sequence[Any], gates: Sequence[int], slots: Sequence[int]) -> list[tuple[Any, int, int]]:
    return list(zip(accumulators, gates, slots, strict=True))


def _tiling() -> tuple:
    """How tiles lie in shared memory: as the matrix units read sixteen columns."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.TilingTransform((8, ROWS)), plgpu.SwizzleTransform(2 * ROWS)


def _halves(array: Array, split: int) -> list[Array]:
    """`array` as one bfloat16, or as the sum of two."""
    high = array.astype(jnp.bfloat16)
    return [high] if split == 1 else [high, (array - high.astype(jnp.float32)).astype(jnp.bfloat16)]


def _functions(of: Functions, split: int) -> Functions:
    """In float32 a tanh of its own: the chip's is good to 2^-11, which suits bfloat16."""
    if split == 1:
        return of
    return of._replace(
        activation=_tanh if of.activation is jnp.tanh else of.activation,
        gate=_tanh if of.gate is jnp.tanh else of.gate,
    )


def _tanh(x: Array) -> Array:
    """By the chip's exponential, and near zero, where that would cancel, by the series."""
    square = x * x
    series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    return jnp.where(square < 0.0625, series, 2 * jax.nn.sigmoid(2 * x) - 1)


def _rounded(array: Array, dtype: Any) -> Array:
    return array.astype(dtype).astype(jnp.float32)


def _pick(flag: Array, on_true: Sequence[Array], on_false: Sequence[Array]) -> States:
    return tuple(jnp.where(flag, a, b) for a, b in zip(on_true, on_false, strict=True))


def _bits(flags: Array | None) -> tuple[Any, Any]:
    if flags is None:
        return None, None
    return flags & MASKED != 0, flags & RESET != 0
