# SPDX-License-Identifier: Apache-2.0
"""The kernels for a Hopper, on a machine without one: the cutting, the body of each kernel, and that they lower.

What a GPU alone can show, that the blocks of a cluster exchange what they should, is `scripts/run bench gpu`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import testing
from seqjax.engines import Scan, auto, fused
from seqjax.engines.fused import Fused
from seqjax.kernels import equations
from seqjax.kernels.hopper import recurrence as hopper
from seqjax.kernels.hopper.tiles import ROWS, UNITS, Tiles, fits
from tests.common import F64
from tests.kernels.cuda import lowered, shapes

KINDS = [equations.SIMPLE, equations.LSTM, equations.GRU_AFTER, equations.GRU_BEFORE]
CELLS = {
    "simple": seqjax.Simple(70, activation="relu"),
    "lstm": seqjax.LSTM(70),
    "gru-after": seqjax.GRU(70, reset="after"),
    "gru-before": seqjax.GRU(40),
}


def test_a_tile_has_64_units_of_16_sequences():
    """B = 20 and H = 70 take two clusters of two blocks; sequence 17's unit 65 is in the second of both."""
    tiles = Tiles(20, 70)
    array = np.arange(3 * 20 * 2 * 70.0).reshape(3, 20, 2, 70)
    tiled = tiles.tile(jnp.asarray(array))
    assert tiled.shape == (3, *tiles.shape(2)) == (3, 2, 2, 2, UNITS, ROWS)
    assert tiled[2, 1, 0, 1, 1, 1] == array[2, 17, 0, 65]
    assert not np.any(tiled[:, 1, :, :, :, 4:])
    assert not np.any(tiled[:, :, :, 1, 6:])
    np.testing.assert_array_equal(tiles.untile(tiled), array)


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_in_two_bfloat16_are_good_to_16_bits(transposed):
    w = np.random.default_rng(0).normal(size=(130, 2 * 130)).astype("float32")
    tiled = Tiles(1, 130).weights(jnp.asarray(w), 2, 2, transposed=transposed)
    assert tiled.dtype == jnp.bfloat16
    high, low = np.asarray(tiled, "float32").reshape(3, 2, 2, 3, UNITS, UNITS).swapaxes(1, 2).swapaxes(0, 1)
    block = w[64:128, 130 : 130 + 64]  # from the units of block 1 to gate 1 of those of block 0
    whole = (high + low)[0, 1, 1]
    np.testing.assert_allclose(whole, block if transposed else block.T, atol=2**-16 * np.abs(block).max())
    assert np.abs(high[0, 1, 1] - whole).max() > 2**-10


def test_room_on_the_chip_is_counted():
    """LSTM, bfloat16, H = 256: 4 gates x 256 x 64 x 2 bytes are 128 KiB of weights in each of four blocks."""
    assert fits(equations.LSTM, 256, "bfloat16")
    assert not fits(equations.LSTM, 320, "bfloat16")  # 160 KiB, and 80 of what is exchanged
    assert not fits(equations.LSTM, 192, "float32")  # 192 KiB, and as much as in bfloat16 twice
    assert fits(equations.SIMPLE, 512, "bfloat16")
    assert not fits(equations.SIMPLE, 513, "bfloat16")  # nine blocks
    assert not fits(equations.LSTM, 64, "float64")
    assert not fits(equations.LSTM, 64, "float16")


class Emulated:
    """A cluster whose blocks are the leading axis of every array: `block.Place` without a chip."""

    def __init__(self, cluster: int, weights: np.ndarray):
        self.cluster, self.weights = cluster, weights

    def some(self, ref: Any, t: Any) -> list:
        return [jnp.asarray(ref[int(t), self.cluster, i]) for i in range(ref.shape[2])]

    def all(self, ref: Any) -> list:
        return [] if ref is None else [jnp.asarray(ref[self.cluster, i], "float32") for i in range(ref.shape[1])]

    def flags(self, ref: Any, t: Any) -> Any:
        return None if ref is None else jnp.asarray(ref[int(t), self.cluster][None])

    def write(self, ref: Any, arrays: Any, *t: Any) -> None:
        for i, array in enumerate(arrays):
            self.write_one(ref, array, i, *t)

    def write_one(self, ref: Any, array: Any, i: int, *t: Any) -> None:
        ref[(*map(int, t), self.cluster, i)] = array

    def zeros(self) -> Any:
        return jnp.zeros((self.weights.shape[0], UNITS, ROWS), jnp.float32)

    def exchange(self, half: int, phase: Any) -> "Emulated":
        assert (half, int(phase)) in ((0, 0), (0, 1), (1, 0), (1, 1))
        return self

    def product(self, slot: int, array: Any, gates: Any) -> list:
        return [jnp.einsum("pcij,cjn->pin", self.weights[:, k], array) for k in gates]

    def transposed(self, slot: int, pairs: Any) -> Any:
        return sum(jnp.einsum("pcij,pjn->cin", self.weights[:, k], d) for k, d in pairs)


def emulate(body, name, kind, tiles, dtype, w_rec, inputs, outputs, *, transposed):
    weights = np.asarray(tiles.weights(w_rec, kind.gates, 2, transposed=transposed), "float32")
    weights = weights.reshape(tiles.parts, kind.gates, 2, tiles.parts, UNITS, UNITS).sum(2)
    given = {key: None if array is None else np.asarray(array) for key, array in inputs.items()}
    results = {key: np.full(of.shape, np.nan, of.dtype) for key, of in outputs.items()}
    for cluster in range(tiles.clusters):
        body(given, results, Emulated(cluster, weights))
    assert not any(np.isnan(array).any() for array in results.values())  # all of it has been written
    return {key: jnp.asarray(array) for key, array in results.items()}


@pytest.mark.parametrize("T", [4, 5])
@pytest.mark.parametrize("flagged", [False, True], ids=["", "flags"])
@pytest.mark.parametrize("name", CELLS)
def test_the_bodies_compute_the_recurrence_and_its_transpose(monkeypatch, name, flagged, T):
    """Run with the products of a cluster emulated, against the loop differentiated by JAX; masks and resets inside."""
    monkeypatch.setattr(hopper, "available", lambda: True)
    monkeypatch.setattr(fused, "available", lambda platform=None: True)
    monkeypatch.setattr(hopper, "_launch", emulate)
    cell = CELLS[name]
    drawn = testing.example(cell, T=T, batch_shape=(3, 6), in_dim=5, masked=flagged, with_resets=flagged)
    params, carry, xs, mask, resets = jax.tree.map(
        lambda a: a.astype("float32") if a.dtype == "float64" else a, tuple(drawn)
    )
    params = params._replace(w_rec=params.w_rec * cell.hidden_dim**-0.5)

    def loss(engine, params, carry, xs):
        carry, ys = engine.run(cell, params, carry, xs, mask=mask, resets=resets)
        return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(jnp.cos(a)) for a in carry), ys

    def both(engine):
        return jax.value_and_grad(functools.partial(loss, engine), (0, 1, 2), has_aux=True)(params, carry, xs)

    with jax.disable_jit():
        actual = both(Fused())
    testing.assert_close(actual, both(Scan(adjoint=False)), 1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_lower_for_a_hopper(kind, dtype):
    """To the code that its compiler takes, one launch each way, with a cluster of two blocks and all options."""
    T, B, H = 13, 5, 100
    z, given = shapes(kind, dtype, T, B, H)
    forward = functools.partial(hopper.forward, kind, equations.Functions())
    left = jax.eval_shape(forward, z, given)
    assert left.sequences[0].shape == (T, B, H)

    def both(z, given, left, d_hs):
        return forward(z, given, keep=False), hopper.reverse(
            kind, equations.Functions(), given, left, d_hs, given.states
        )

    assert lowered(both, z, given, left, left.sequences[0]).count("custom_call @mosaic_gpu") == 2


def test_tanh_of_float32_is_good_near_zero_and_far_from_it():
    x = np.concatenate([np.logspace(-8, 1.5, 500), -np.logspace(-8, 1.5, 500)]).astype("float32")
    np.testing.assert_allclose(hopper._tanh(jnp.asarray(x)), np.tanh(x.astype("float64")), rtol=1e-6)


def test_auto_takes_the_kernel_on_one_gpu_and_where_there_is_one(monkeypatch):
    monkeypatch.setattr(fused, "available", lambda platform=None: True)
    float32 = seqjax.DTypes(compute="float32")

    def choose(cell, T):
        params = jax.eval_shape(lambda key: cell.init(key, 8), jax.random.key(0))
        carry = jax.eval_shape(lambda params: cell.initial_carry(params, (2,)), params)
        return auto.Auto().choose(cell, params, carry, jax.ShapeDtypeStruct((T, 2, 8), "float32"))

    assert choose(seqjax.LSTM(128, dtypes=float32), 10_000)[0] == Fused()
    assert choose(seqjax.LSTM(256, dtypes=float32), 100)[0] == Scan()  # too large
    assert choose(seqjax.PeepholeLSTM(8, dtypes=float32), 100)[0] == Scan()  # no kernel
    assert choose(seqjax.LSTM(8, dtypes=F64), 100)[0] == Scan()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert choose(seqjax.LSTM(128, dtypes=float32), 100)[0] == Scan()
