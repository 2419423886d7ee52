# SPDX-License-Identifier: Apache-2.0
"""The kernel engine, run by the interpreter, against the reference loop; what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import seqjax
from seqjax import testing
from seqjax.engines import Auto, Checkpointed, Scan, Truncated, fused
from seqjax.engines.fused import Fused
from seqjax.engines.fusing import fusible
from seqjax.kernels.triton import recurrence
from tests.common import F64, assert_equals_loop, gradients
from tests.kernels.cuda import kernels_launched

CELLS = {
    "simple": seqjax.Simple(3, dtypes=F64),
    "lstm": seqjax.LSTM(3, dtypes=F64),
    "gru-before": seqjax.GRU(3, dtypes=F64),
    "gru-after": seqjax.GRU(3, reset="after", dtypes=F64),
}
ENGINE = Fused(interpret=True)


def case(cell, **options):
    params, carry, xs, mask, resets = testing.example(cell, **options)
    return (params, carry, xs), {"mask": mask, "resets": resets}


def held_to_the_loop(cell, engine, **options):
    assert_equals_loop(cell, engine, *testing.example(cell, **options))


@pytest.mark.parametrize("name", CELLS)
def test_masked_resetting_gradients_equal_the_loop_to_1e_10(name):
    """NaN in masked steps, two batch axes, resets to an initial carry that is not where the run starts."""
    held_to_the_loop(CELLS[name], ENGINE, T=13, batch_shape=(2, 3), masked=True, with_resets=True)


@pytest.mark.parametrize("segment", [None, 4])
def test_segments_run_by_the_kernel_equal_the_loop(segment):
    """13 steps, so that segments of 4 leave one over."""
    engine = Checkpointed(segment, inner=ENGINE)
    held_to_the_loop(CELLS["gru-after"], engine, T=13, batch_shape=(2,), masked=True, with_resets=True)


def test_windows_run_by_the_kernel_cut_the_gradient_as_those_of_the_loop():
    arguments, flags = case(CELLS["lstm"], T=7, batch_shape=(2,), masked=True)
    by_kernel, by_loop = (
        gradients(Truncated(3, inner), CELLS["lstm"], *arguments, **flags) for inner in (ENGINE, Scan(adjoint=False))
    )
    testing.assert_close(by_kernel, by_loop, 1e-10)


def test_engines_that_run_pieces_refuse_what_their_kernel_does():
    cell = seqjax.PeepholeLSTM(3)
    (params, carry, xs), _ = case(cell, T=4)
    for engine in (Checkpointed(2, inner=ENGINE), Truncated(2, ENGINE)):
        with pytest.raises(ValueError, match=r"no kernel for PeepholeLSTM\(3\)"):
            engine.run(cell, params, carry, xs)


def test_one_step_of_one_sequence_equals_the_loop():
    held_to_the_loop(CELLS["gru-after"], ENGINE, T=1, batch_shape=())


def test_other_activations_without_bias_equal_the_loop():
    """sigmoid(0) is not 0: padded units must not leak."""
    cell = seqjax.LSTM(3, activation="sigmoid", recurrent_activation="relu", use_bias=False, dtypes=F64)
    held_to_the_loop(cell, ENGINE, T=2, batch_shape=(3,))


def test_more_sequences_than_a_program_owns_equal_the_loop():
    held_to_the_loop(seqjax.Simple(17, activation="sigmoid", dtypes=F64), ENGINE, T=2, batch_shape=(17,))


def test_bfloat16_gradients_with_a_float32_carry_are_near_those_of_float32():
    """Within 8 bits: relative to the largest number of each array, 2**-5 after 5 steps."""
    narrow = seqjax.LSTM(3, dtypes=seqjax.DTypes(compute="bfloat16", carry="float32"))
    arguments, _ = case(narrow, T=5)

    def loss(engine, cell, params, carry, xs):
        carry, ys = engine.run(cell, params, carry, xs)
        assert (carry.c.dtype, ys.dtype) == (jnp.float32, jnp.dtype(cell.dtypes.compute or "float32"))
        return jnp.sum(carry.c) + jnp.sum(ys.astype(jnp.float32) ** 2)

    runs = (ENGINE, narrow), (Scan(), seqjax.LSTM(3))
    actual, expected = (jax.jit(jax.grad(functools.partial(loss, *run), (0, 1, 2)))(*arguments) for run in runs)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2**-5 * float(jnp.abs(b).max()))


def test_weights_that_are_streamed_equal_those_that_stay(monkeypatch):
    monkeypatch.setattr(recurrence, "ON_CHIP", 0)
    held_to_the_loop(CELLS["gru-after"], ENGINE, T=2, batch_shape=(3,))


def test_two_pieces_equal_the_whole_and_vmap_equals_batched():
    cell = CELLS["lstm"]
    (params, carry, xs), flags = case(cell, T=5, masked=True)
    whole = testing.reference_loop(cell, params, carry, xs, **flags)

    @jax.jit
    def in_pieces(params, carry, xs, mask):
        carry, first = ENGINE.run(cell, params, carry, xs[:2], mask=mask[:2])
        carry, rest = ENGINE.run(cell, params, carry, xs[2:], mask=mask[2:])
        return carry, jnp.concatenate([first, rest])

    testing.assert_close(in_pieces(params, carry, xs, flags["mask"]), whole, 1e-10)
    run = jax.vmap(lambda c, x, m: ENGINE.run(cell, params, c, x, mask=m), (0, 1, 1), (0, 1))
    testing.assert_close(jax.jit(run)(carry, xs, flags["mask"]), whole, 1e-10)


def test_gradients_of_gradients_are_those_of_the_generic_loop():
    cell = CELLS["gru-before"]
    (params, carry, xs), flags = case(cell, T=3, masked=True, with_resets=True)

    def penalty(engine, params, carry, xs):
        def energy(params, xs):
            return jnp.sum(jnp.sin(engine.run(cell, params, carry, xs, **flags)[1]))

        d_params, d_xs = jax.grad(energy, (0, 1))(params, xs)
        return jnp.sum(d_params.w_rec**2) + jnp.sum(d_xs**2)

    engines = ENGINE, Scan(adjoint=False)
    actual, expected = (jax.jit(jax.grad(functools.partial(penalty, e), (0, 1, 2)))(params, carry, xs) for e in engines)
    assert float(jnp.abs(expected[0].w_rec).max()) > 1e-3
    testing.assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize(
    "engine", [Truncated(3, ENGINE), Checkpointed(3, inner=ENGINE), ENGINE], ids=["windows", "segments", "whole"]
)
def test_gradients_of_gradients_are_those_of_the_generic_loop_in_pieces_too(engine):
    """In `fold`, which runs each segment again in the reverse pass."""
    cell = CELLS["lstm"]
    (params, carry, xs), _ = case(cell, T=6)

    def total(engine, params):
        def add(total, ys):
            return total + jnp.sum(ys**2)

        return seqjax.fold(seqjax.RNN(cell, engine), params, carry, xs, add, jnp.zeros(()), segment=3)[1]

    def twice(engine):
        return jax.grad(lambda params: jnp.sum(jax.grad(total, 1)(engine, params).w_rec ** 2))(params)

    testing.assert_close(twice(engine), twice(Scan(adjoint=False)), 1e-10)


REFUSED = {
    "normalize='layer'": seqjax.GRU(3, normalize="layer"),
    "normalize='batch'": seqjax.Simple(3, normalize="batch"),
    "proj_dim=2": seqjax.LSTM(3, proj_dim=2),
    "computes in float32 and carries bfloat16": seqjax.GRU(3, dtypes=seqjax.DTypes(carry="bfloat16")),
    "computes in bfloat16 and carries float16": seqjax.GRU(3, dtypes=seqjax.DTypes("bfloat16", carry="float16")),
    "activation='gelu'": seqjax.Simple(3, activation="gelu"),
    "recurrent_activation='hard_sigmoid'": seqjax.GRU(3, recurrent_activation="hard_sigmoid"),
    "kernels for Simple, LSTM and GRU": seqjax.PeepholeLSTM(3),
}


def test_a_cell_derived_from_one_that_has_a_kernel_has_none():
    """It may have other equations."""

    class Leaky(seqjax.GRU):
        def step(self, params, carry, z, key=None):
            after, y = super().step(params, carry, z, key)
            return jax.tree.map(lambda a, b: (a + b) / 2, carry, after), y

    cell = Leaky(3, dtypes=F64)
    with pytest.raises(ValueError, match="kernels for Simple, LSTM and GRU"):
        ENGINE.run(cell, *case(cell, T=1)[0])


@pytest.mark.parametrize("why", REFUSED)
def test_cells_without_a_kernel_are_refused_by_name(why):
    cell = REFUSED[why]
    arguments, _ = case(cell, T=1)
    with pytest.raises(ValueError, match=f"{why}.*Scan or Checkpointed"):
        ENGINE.run(cell, *arguments)


def test_no_sequences_need_no_kernel():
    held_to_the_loop(CELLS["lstm"], ENGINE, T=3, batch_shape=(0,))


def test_without_a_gpu_it_is_refused_by_name():
    arguments, _ = case(CELLS["simple"], T=1)
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU.*'cpu'.*Scan or Checkpointed.*interpret=True"):
        Fused().run(CELLS["simple"], *arguments)


@pytest.mark.parametrize("engine", [ENGINE, Checkpointed(2, inner=ENGINE)], ids=repr)
def test_a_batch_that_explicit_axes_split_is_refused_by_name(engine):
    """Over one device here; Pallas asks for `jax.shard_map` there too."""
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Explicit,))
    (params, carry, xs), _ = case(CELLS["lstm"], T=4, batch_shape=(2,))
    with jax.set_mesh(mesh):
        split = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "batch")))
        with pytest.raises(ValueError, match=r"float64\[\d,2@batch,2\].*inside jax\.shard_map, or run it with Scan"):
            jax.jit(functools.partial(engine.run, CELLS["lstm"]))(params, carry, split)


def test_auto_picks_no_kernel_where_explicit_axes_split_the_batch(monkeypatch):
    monkeypatch.setattr(Fused, "runs", lambda engine, cell, params: True)  # as on a GPU
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Explicit,))
    (params, carry, xs), _ = case(CELLS["lstm"], T=4, batch_shape=(2,))
    split = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "batch")))
    engines = [Auto().choose(CELLS["lstm"], params, carry, array)[0] for array in (xs, split)]
    assert engines == [Fused(), Scan()]


FLOAT32, BFLOAT16 = seqjax.DTypes(compute="float32"), seqjax.DTypes(compute="bfloat16")


def test_weights_that_do_not_fit_on_chip_and_float64_are_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr(fused, "missing", lambda: None)
    refused = {
        r"262144 bytes on chip, of 131072; cells.MultiHead.*Scan": seqjax.LSTM(256, dtypes=FLOAT32),
        r"float64.*Scan": CELLS["lstm"],
    }
    for message, cell in refused.items():
        arguments, _ = case(cell, T=1)
        with pytest.raises(ValueError, match=message):
            Fused().run(cell, *arguments)
        assert not Fused().runs(cell, arguments[0])
    for cell in (seqjax.LSTM(128, dtypes=FLOAT32), seqjax.LSTM(256, dtypes=BFLOAT16)):
        assert Fused().runs(cell, case(cell, T=1)[0][0])


def test_what_has_room_is_decided_by_the_arrays():
    """Of a cell that computes in its params' dtype, whatever that is."""
    cell = seqjax.LSTM(3)
    params = cell.init(jax.random.key(0), 3)
    wide = jax.tree.map(lambda a: a.astype("float64"), params)
    assert [fusible.no_room(cell, p) for p in (params, wide)] == [
        None,
        "it computes in float64, which the kernels do not support",
    ]


def test_a_smaller_chip_has_room_for_smaller_weights(monkeypatch):
    """An L4 has 99 KiB of shared memory for a program, a Hopper 227: half the units fit."""

    class Small:
        shared_memory_per_block_optin = 99 * 2**10

    lstms = [seqjax.LSTM(H, dtypes=BFLOAT16) for H in (128, 256)]
    rooms = [[fusible.no_room(cell, cell.init(jax.random.key(0), 3)) is None for cell in lstms]]
    monkeypatch.setattr(jax, "devices", lambda: [Small()])
    rooms.append([fusible.no_room(cell, cell.init(jax.random.key(0), 3)) is None for cell in lstms])
    assert rooms == [[True, True], [True, False]]


def test_a_training_step_lowers_for_cuda_with_one_launch_each_way(monkeypatch):
    monkeypatch.setattr(fused, "missing", lambda: None)
    cell = seqjax.LSTM(20, dtypes=seqjax.DTypes(compute="bfloat16", carry="float32"))
    arguments, flags = case(cell, T=5, batch_shape=(2, 3), masked=True, with_resets=True)

    def loss(params, carry, xs):
        return jnp.sum(Fused().run(cell, params, carry, xs, **flags)[1].astype(jnp.float32))

    assert kernels_launched(jax.grad(loss), *arguments) == 2


def test_plan_counts_what_a_gradient_keeps():
    """LSTM: projected inputs, 4 gates and the cotangents of both, h and c, of [5, 3, 3] float64, in blocks of 16."""
    cell = CELLS["lstm"]
    (params, carry, xs), _ = case(cell, T=5)
    plan = ENGINE.plan(cell, params, carry, jax.ShapeDtypeStruct(xs.shape, xs.dtype))
    assert (plan.memory, plan.depth) == (14 * 5 * 16 * 16 * 8, 5)
    assert "weights stay on chip" in plan.why
