# SPDX-License-Identifier: Apache-2.0
"""The kernels for a Hopper, on a machine without one: the cutting, the body of each kernel, and that they lower.

What a GPU alone can show, that the blocks of a cluster exchange what they should, is `scripts/run bench gpu`.
"""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import testing
from seqjax.engines import Checkpointed, Scan, auto, fused
from seqjax.engines.fused import Fused
from seqjax.engines.fusing import fusible
from seqjax.kernels import equations
from seqjax.kernels.hopper import exchange
from seqjax.kernels.hopper import recurrence as hopper
from seqjax.kernels.hopper.tiles import FACTORS, ROWS, UNITS, Tiles, fits
from tests.common import F64
from tests.kernels.cuda import lowered, shapes

FLOAT32 = seqjax.DTypes(compute="float32")
CELLS = {
    "simple": seqjax.Simple(70, activation="sigmoid"),
    "lstm": seqjax.LSTM(70),
    "gru-after": seqjax.GRU(70, reset="after"),
    "gru-before": seqjax.GRU(40),
}


def test_a_tile_has_64_units_of_16_sequences():
    """B = 20 and H = 70 take two clusters of two blocks; sequence 17's unit 65 is in the second of both."""
    tiles = Tiles(20, 70)
    array = np.arange(3 * 20 * 2 * 70.0).reshape(3, 20, 2, 70)
    tiled = tiles.tile(jnp.asarray(array))
    assert tiled.shape == tiles.shape(2, jnp.float32, 3).shape == (3, 2, 2, 2, UNITS, ROWS)
    assert tiled[2, 1, 0, 1, 1, 1] == array[2, 17, 0, 65]
    assert not np.any(tiled[:, 1, :, :, :, 4:])
    assert not np.any(tiled[:, :, :, 1, 6:])
    np.testing.assert_array_equal(tiles.untile(tiled), array)


def test_words_hold_the_columns_of_a_thread():
    """Thread 1 of a row has columns 2, 3, 10 and 11 of a product, and loads words 2 and 3 of a row of bfloat16."""
    drawn = np.random.default_rng(0).normal(size=(5, 16, 1, 130))
    for dtype in ("bfloat16", "float32"):
        tiles = Tiles(16, 130, dtype)
        words, numbers = (tiles.tile(jnp.asarray(drawn, of)) for of in ("bfloat16", "float32"))
        for tiled, of in ((words, "bfloat16"), (numbers, "float32")):
            expected = tiles.shape(1, jnp.dtype(of), 5)
            assert (tiled.shape, tiled.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_array_equal(tiles.untile(tiled), jnp.asarray(drawn, of))
        assert words.dtype == jnp.uint32
        pairs = np.asarray(words[..., 2:4]).view("uint16").astype("uint32") << 16  # the low half of a word comes first
        held = numbers[..., np.array([2, 3, 10, 11])].astype(jnp.bfloat16)
        np.testing.assert_array_equal(pairs.view("float32"), held)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_of_any_size_are_as_good_as_in_tf32(transposed, size):
    w = size * np.random.default_rng(0).normal(size=(130, 2 * 130)).astype("float32")
    tiled, scale = Tiles(1, 130).weights(jnp.asarray(w), 2, transposed=transposed)
    assert tiled.dtype == jnp.float16
    actual = np.asarray(tiled, "float64").reshape(3, 3, 2, UNITS, UNITS) * float(scale)
    block = w[64:128, 130 : 130 + 64]  # from the units of block 1 to gate 1 of those of block 0
    again = w[:64, 130 + 64 : 130 + 128]  # from those of block 0 to gate 1 of those of block 1, which is two further on
    for weights, found in ((block, actual[0, 1, 1]), (again, actual[1, 2, 1])):
        expected = weights if transposed else weights.T
        np.testing.assert_allclose(found, expected, rtol=2**-11, atol=2**-39 * np.abs(w).max())


def test_weights_in_bfloat16_are_rounded_and_no_more():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
    tiled, scale = Tiles(1, 64, "bfloat16").weights(w, 1, transposed=True)
    np.testing.assert_array_equal(tiled[0, 0], w.astype(jnp.bfloat16))
    assert scale == 1


def test_room_on_the_chip_is_counted():
    """LSTM, bfloat16, H = 256: 4 gates x 256 x 64 x 2 bytes are 128 KiB of weights in each of four blocks."""
    assert fits(equations.LSTM, 256, "bfloat16")
    assert not fits(equations.LSTM, 320, "bfloat16")  # 160 KiB, and 80 of what is exchanged
    assert fits(equations.LSTM, 256, "float32")  # in float16
    assert fits(equations.SIMPLE, 512, "bfloat16")
    assert not fits(equations.SIMPLE, 513, "bfloat16")  # nine blocks
    assert not fits(equations.LSTM, 64, "float64")
    assert not fits(equations.LSTM, 64, "float16")


def test_in_float32_only_what_is_bounded_and_no_more_exact_than_tf32_runs_on_a_hopper(monkeypatch):
    monkeypatch.setattr(hopper, "available", lambda: True)
    lstm, relu = seqjax.LSTM(200, dtypes=FLOAT32), seqjax.Simple(200, activation="relu", dtypes=FLOAT32)
    assert fusible.on_hopper(lstm, "float32")
    assert fusible.on_hopper(relu, "bfloat16")
    assert not fusible.on_hopper(relu, "float32")
    params = lstm.init(jax.random.key(0), 3)
    assert fusible.no_room(lstm, params) is None
    assert "bounded states in float32, unlike those of activation='relu'" in fusible.no_room(relu, params)
    for precision, runs in (("tensorfloat32", True), ("highest", False), ("TF32_TF32_F32_X3", False)):
        with jax.default_matmul_precision(precision):
            assert fusible.on_hopper(lstm, "float32") == runs
            assert fusible.on_hopper(lstm, "bfloat16")
            why = fusible.no_room(lstm, params)
            assert (why is None) == runs
            assert runs or f"no more exactly than TF32, where jax.default_matmul_precision is {precision!r}" in why


def test_cotangents_are_scaled_sequence_by_sequence():
    drawn = np.random.default_rng(0).normal(size=(2, UNITS, ROWS)) * 10.0 ** np.linspace(-20, 20, ROWS)
    drawn[:, :, 3] = 0
    gates = [jnp.asarray(array, jnp.float32) for array in drawn]
    times, back = exchange.scales(gates, jnp.float32(0.25))
    scaled = np.stack([np.asarray(array * times) for array in gates])
    largest = np.delete(np.abs(scaled).max((0, 1)), 3)
    assert np.all((largest > 2**14) & (largest < 2**15.01)), largest  # float16 ends at 2^16
    assert not scaled[:, :, 3].any()
    np.testing.assert_allclose(scaled * np.asarray(back) * 4, drawn, rtol=1e-6)


class Emulated:
    """A cluster whose blocks are the leading axis of every array: `block.Place` without a chip.

    Like the barriers of a chip it counts how often each half of a buffer was used, which decides the phase.
    """

    def __init__(self, cluster: int, weights: np.ndarray, products: int):
        self.cluster, self.weights, self.products = cluster, weights, products
        self.uses: collections.Counter = collections.Counter()

    def some(self, ref: Any, t: Any) -> list:
        return [jnp.asarray(ref[int(t), self.cluster, i]) for i in range(ref.shape[2])]

    def number(self, tile: Any) -> Any:
        """Of two words that a thread loads, one goes to the left of a product and one to the right."""
        if tile.dtype != jnp.uint32:
            return jnp.asarray(tile, jnp.float32)
        pairs = jax.lax.bitcast_convert_type(tile.reshape(*tile.shape[:-1], 4, 2), jnp.bfloat16)
        return pairs.swapaxes(-3, -2).reshape(*tile.shape[:-1], ROWS).astype(jnp.float32)

    def reciprocal(self, array: Any) -> Any:
        return 1 / array

    def all(self, ref: Any) -> list:
        if ref is None:
            return []
        return [self.number(jnp.asarray(ref[self.cluster, i])) for i in range(ref.shape[1])]

    def flags(self, ref: Any, t: Any) -> Any:
        return None if ref is None else jnp.asarray(ref[int(t), self.cluster][None])

    def write(self, ref: Any, arrays: Any, *t: Any) -> None:
        for i, array in enumerate(arrays):
            self.write_one(ref, array, i, *t)

    def write_one(self, ref: Any, array: Any, i: int, *t: Any) -> None:
        if ref.dtype == jnp.uint32:
            pairs = array.astype(jnp.bfloat16).reshape(*array.shape[:-1], 2, 4, 2).swapaxes(-3, -2)
            array = jax.lax.bitcast_convert_type(pairs, jnp.uint32).reshape(*array.shape[:-1], ROWS // 2)
        ref[(*map(int, t), self.cluster, i)] = array

    def zeros(self) -> Any:
        return jnp.zeros((self.weights.shape[0], UNITS, ROWS), jnp.float32)

    def exchange(self, half: int, phase: Any) -> "Emulated":
        self.half, self.phase = half, int(phase)
        return self

    def use(self, slot: int) -> None:
        barrier = self.half, slot
        assert slot < self.products
        assert self.phase == self.uses[barrier] % 2
        self.uses[barrier] += 1
        ahead = self.uses[0, slot] - self.uses[1, slot]
        assert ahead == 1 - self.half  # the halves take turns, the first first

    def product(self, slot: int, array: Any, gates: Any) -> list:
        self.use(slot)
        return [jnp.einsum("pcij,cjn->pin", self.weights[:, k], array) for k in gates]

    def transposed(self, slot: int, pairs: Any) -> Any:
        self.use(slot)
        return sum(jnp.einsum("pcij,pjn->cin", self.weights[:, k], d) for k, d in pairs)


UNWRITTEN = 2**32 - 1
"""A word that is NaN in float32, and in both bfloat16."""


def emulate(body, name, kind, tiles, w_rec, inputs, outputs, *, transposed):
    turned, scale = tiles.weights(w_rec, kind.gates, transposed=transposed)
    turned = np.asarray(turned, "float32").reshape(tiles.parts, tiles.parts, kind.gates, UNITS, UNITS) * float(scale)
    parts = range(tiles.parts)
    weights = np.stack([np.stack([turned[p, (q - p) % tiles.parts] for q in parts], 1) for p in parts])
    given = {key: None if array is None else np.asarray(array) for key, array in inputs.items()}
    results = {key: np.full(of.shape, UNWRITTEN, "uint32").view(of.dtype) for key, of in outputs.items()}
    for cluster in range(tiles.clusters):
        body(given, results, Emulated(cluster, weights, kind.products))
    assert not any(np.any(array.view("uint32") == UNWRITTEN) for array in results.values())
    return {key: jnp.asarray(array) for key, array in results.items()}


def by_bodies_and_by_loop(monkeypatch, cell, T, flagged):
    """Values and gradients with the products of a cluster emulated, and by the loop differentiated by JAX."""
    monkeypatch.setattr(hopper, "available", lambda: True)
    monkeypatch.setattr(fused, "missing", lambda: None)
    monkeypatch.setattr(hopper, "_launch", emulate)
    monkeypatch.setitem(FACTORS, "float32", jnp.float32)  # the equations, not the rounding
    drawn = testing.example(cell, T=T, batch_shape=(3, 6), in_dim=5, masked=flagged, with_resets=flagged)
    params, carry, xs, mask, resets = jax.tree.map(
        lambda a: a.astype("float32") if a.dtype == "float64" else a, tuple(drawn)
    )
    params = params._replace(w_rec=params.w_rec * cell.hidden_dim**-0.5)

    def loss(engine, params, carry, xs):
        carry, ys = engine.run(cell, params, carry, xs, mask=mask, resets=resets)
        return jnp.sum(jnp.sin(ys.astype("float32"))) + sum(jnp.sum(jnp.cos(a)) for a in carry), ys

    def both(engine):
        return jax.value_and_grad(functools.partial(loss, engine), (0, 1, 2), has_aux=True)(params, carry, xs)

    with jax.disable_jit():
        return both(Fused()), both(Scan(adjoint=False))


@pytest.mark.parametrize("T", [1, 4, 7])
@pytest.mark.parametrize("flagged", [False, True], ids=["", "flags"])
@pytest.mark.parametrize("name", CELLS)
def test_the_bodies_compute_the_recurrence_and_its_transpose(monkeypatch, name, flagged, T):
    testing.assert_close(*by_bodies_and_by_loop(monkeypatch, CELLS[name], T, flagged), 1e-4)


@pytest.mark.parametrize("name", ["lstm", "gru-after"])
def test_in_bfloat16_too_each_sequence_keeps_its_place(monkeypatch, name):
    """To what rounding leaves, of the largest number: two sequences that changed places are as far apart as can be."""
    cell = dataclasses.replace(CELLS[name], dtypes=seqjax.DTypes(compute="bfloat16", carry="float32"))
    both = by_bodies_and_by_loop(monkeypatch, cell, 5, True)
    for actual, expected in zip(*map(jax.tree.leaves, both), strict=True):
        assert actual.dtype == expected.dtype
        actual, expected = (np.asarray(a, "float64") for a in (actual, expected))
        assert np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


LOWERED = [(cell, dtype) for cell in CELLS.values() for dtype in ("float32", "bfloat16")]
LOWERED += [(seqjax.LSTM(70, activation=name), "bfloat16") for name in ("relu", "identity")]  # bounded in float32


@pytest.mark.parametrize(("cell", "dtype"), LOWERED, ids=repr)
def test_the_kernels_lower_for_a_hopper(cell, dtype):
    """To the code that its compiler takes, one launch each way, with a cluster of two blocks and all options."""
    T, B, H = 13, 5, 100
    kind, functions = fusible.kernel(cell)
    z, given = shapes(kind, dtype, T, B, H)
    forward = functools.partial(hopper.forward, kind, functions)
    left = jax.eval_shape(forward, z, given)
    assert left.sequences[0].shape == (T, B, H)

    def both(z, given, left, d_hs):
        return forward(z, given, keep=False), hopper.reverse(kind, functions, given, left, d_hs, given.states)

    assert lowered(both, z, given, left, left.sequences[0]).count("custom_call @mosaic_gpu") == 2


def test_tanh_of_float32_is_good_near_zero_and_far_from_it():
    x = np.concatenate([np.logspace(-8, 1.5, 500), -np.logspace(-8, 1.5, 500)]).astype("float32")
    np.testing.assert_allclose(hopper._tanh(jnp.asarray(x)), np.tanh(x.astype("float64")), rtol=1e-6)


def test_auto_takes_the_kernel_on_one_gpu_and_where_there_is_one(monkeypatch):
    monkeypatch.setattr(fused, "missing", lambda: None)

    def choose(cell, T):
        params = jax.eval_shape(lambda key: cell.init(key, 8), jax.random.key(0))
        carry = jax.eval_shape(lambda params: cell.initial_carry(params, (2,)), params)
        return auto.Auto().choose(cell, params, carry, jax.ShapeDtypeStruct((T, 2, 8), "float32"))

    assert choose(seqjax.LSTM(128, dtypes=FLOAT32), 10_000)[0] == Fused()
    assert choose(seqjax.LSTM(128, dtypes=FLOAT32), 1_000_000)[0] == Checkpointed(inner=Fused())  # 107 GiB
    assert choose(seqjax.LSTM(256, dtypes=FLOAT32), 100)[0] == Scan()  # too large
    assert choose(seqjax.PeepholeLSTM(8, dtypes=FLOAT32), 100)[0] == Scan()  # no kernel
    assert choose(seqjax.LSTM(8, dtypes=F64), 100)[0] == Scan()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert choose(seqjax.LSTM(128, dtypes=FLOAT32), 100)[0] == Scan()
