# SPDX-License-Identifier: Apache-2.0
"""The laws of `Sharded` on eight devices; `test_sharded.py` runs this file in a process that has them."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import seqjax
from seqjax import GRU, LRU, LSTM, MinGRU, Simple, mask_from_lengths
from seqjax.base import Cell
from seqjax.cells import LambdaCell, Zoneout
from seqjax.engines import Associative, Checkpointed, Newton, Relaxed, Scan
from seqjax.engines.sharded import Sharded, sharded_solve
from seqjax.testing import assert_close, example, reference_loop, value_and_gradients
from tests.common import F64, gradients, runs

UNEVEN = {"T": 13, "batch_shape": (4,), "masked": True, "with_resets": True}
CELLS = {
    "gru": GRU(3, dtypes=F64),
    "lstm": LSTM(3, dtypes=F64),
    "min-gru": MinGRU(3, dtypes=F64),
    "lru": LRU(3, dtypes=F64),
}


def mesh_of(*sizes: int) -> Mesh:
    return jax.make_mesh(sizes, ("time", "batch")[: len(sizes)])


LINE, PLANE = mesh_of(8), mesh_of(4, 2)


@functools.cache
def uneven(cell: Cell):
    """Arguments of a run that devices do not divide, and what the reference loop makes of them."""
    params, carry, xs, mask, resets = example(cell, **UNEVEN)
    flags = {"mask": mask, "resets": resets}
    return (params, carry, xs), flags, value_and_gradients(reference_loop, cell, params, carry, xs, **flags)


def check_equal(engine: Sharded, cell: Cell, tolerance: float = 1e-10, **options) -> None:
    """Values and gradients of params, carry and inputs are those of the loop, here a compiled one."""
    params, carry, xs, mask, resets = example(cell, **options)

    @jax.jit
    def both(*arrays, **flags):
        return [value_and_gradients(e.run, cell, *arrays, **flags) for e in (engine, Scan(adjoint=False))]

    assert_close(*both(params, carry, xs, mask=mask, resets=resets), tolerance)


@pytest.mark.parametrize("name", CELLS)
def test_mask_resets_and_a_split_batch_hold_where_devices_do_not_divide_the_length(name):
    arrays, flags, expected = uneven(CELLS[name])
    engine = Sharded(PLANE, "time", batch_axis="batch")
    assert_close(gradients(engine, CELLS[name], *arrays, **flags), expected, 1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_the_loops_where_devices_divide_the_length(name):
    check_equal(Sharded(LINE, "time"), CELLS[name], T=64, batch_shape=(4,))


@settings(max_examples=6, deadline=None)
@given(name=st.sampled_from(["gru", "min-gru"]), options=runs(24, ((), (2,), (4, 1))), split=st.booleans())
def test_any_length_batch_mask_and_resets_give_the_loops_numbers(name, options, split):
    engine = Sharded(PLANE, "time", batch_axis="batch" if split and options["batch_shape"] else None)
    check_equal(engine, CELLS[name], **options)


def test_fewer_steps_than_devices_and_two_batch_axes():
    check_equal(Sharded(LINE, "time"), CELLS["gru"], T=3, batch_shape=(2, 3), masked=True)


def test_one_unbatched_sequence_in_float32():
    check_equal(Sharded(LINE, "time"), MinGRU(3), 1e-5, T=9, batch_shape=())


@pytest.mark.parametrize(
    ("name", "engine", "axis_type"),
    [
        ("gru", Scan(), AxisType.Auto),
        ("gru", Scan(), AxisType.Explicit),
        ("lstm", Checkpointed(4), AxisType.Explicit),
        ("min-gru", Associative(), AxisType.Explicit),
        ("gru", Relaxed(chunk=4), AxisType.Explicit),
        ("gru", Newton(window=8), AxisType.Explicit),
    ],
)
def test_a_batch_that_jit_spreads_over_devices_moves_sums_alone(name, engine, axis_type):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    cell = CELLS[name]

    def loss(params, carry, xs, mask, resets):
        return (engine.run(cell, params, carry, xs, mask=mask, resets=resets)[1] ** 2).sum()

    arrays = example(cell, T=16, batch_shape=(8,), masked=True, with_resets=True)
    axes = (), ("batch",), (None, "batch"), (None, "batch"), (None, "batch")
    spread = [
        jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axis))) for a, axis in zip(arrays, axes, strict=True)
    ]
    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*spread).compile()
    assert "all-reduce" in program.as_text()
    assert not re.search("all-gather|all-to-all|collective-permute", program.as_text())
    expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for found, wanted in zip(jax.tree.leaves(program(*spread)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("gru", Scan()),
        ("lstm", Scan(adjoint=False)),
        ("lstm", Checkpointed(4)),
        ("min-gru", Associative()),
        ("gru", Relaxed(chunk=4)),
        ("gru", Relaxed(chunk=4, coupling="diagonal")),
        ("gru", Newton(window=8)),
        ("gru", Newton(jacobian="diagonal")),
    ],
)
def test_a_batch_may_be_split_by_shard_map(name, engine):
    """The carry begins as zeros that are the same on each device, and params are on every one."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    cell = CELLS[name]

    def gradients(params, xs, mask, resets):
        def loss(params, xs):
            carry = cell.initial_carry(params, xs.shape[1:-1])
            return (engine.run(cell, params, carry, xs, mask=mask, resets=resets)[1] ** 2).sum()

        return jax.grad(loss, argnums=(0, 1))(params, xs)

    params, _, *arrays = example(cell, T=16, batch_shape=(8,), masked=True, with_resets=True)
    split = PartitionSpec(None, "batch")
    specs = {"in_specs": (PartitionSpec(), split, split, split), "out_specs": (PartitionSpec(), split)}
    found = jax.jit(jax.shard_map(gradients, mesh=mesh, **specs))(params, *arrays)
    assert_close(found, jax.jit(gradients)(params, *arrays), 1e-10)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("gru", Scan()),
        ("lstm", Checkpointed(4)),
        ("gru", Scan(adjoint=False)),
        ("lru", Associative()),
        ("gru", Newton()),
        ("gru", Relaxed(chunk=4)),
    ],
)
def test_params_and_an_initial_carry_need_not_know_an_explicit_mesh(name, engine):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,))
    cell = CELLS[name]

    def loss(params, xs, mask, resets):
        carry = cell.initial_carry(params, xs.shape[1:-1])
        return (engine.run(cell, params, carry, xs, mask=mask, resets=resets)[1] ** 2).sum()

    params, _, *arrays = example(cell, T=16, batch_shape=(8,), masked=True, with_resets=True)
    expected = jax.jit(jax.grad(loss))(params, *arrays)
    with jax.set_mesh(mesh):
        spread = [jax.device_put(array, NamedSharding(mesh, PartitionSpec(None, "batch"))) for array in arrays]
        found = jax.jit(jax.grad(loss))(params, *spread)
    assert_close(jax.device_get(found), jax.device_get(expected), 1e-10)


def test_a_complex_carry_that_is_the_same_on_all_devices_has_a_gradient():
    """XLA aborted on the one that JAX derives from a selection."""
    mesh, cell = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,)), CELLS["lru"]
    params, _, xs, *_ = example(cell, T=5, batch_shape=(8,))
    carry = jax.tree.map(lambda leaf: leaf + 0.1, cell.initial_carry(params, (1,)))

    def gradient(params, carry, xs):
        return jax.grad(lambda carry: (Scan().run(cell, params, carry, xs)[1] ** 2).sum())(carry)

    everywhere, split = PartitionSpec(), PartitionSpec(None, "batch")
    specs = {"in_specs": (everywhere, everywhere, split), "out_specs": everywhere}
    found = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(params, carry, xs)
    each = jax.jit(gradient)(params, jax.tree.map(lambda leaf: leaf.repeat(8, 0), carry), xs)
    assert_close(found, jax.tree.map(lambda leaf: leaf.sum(0, keepdims=True), each), 1e-10)


def test_derivatives_of_a_relaxed_gradient_are_refused():
    cell, engine = CELLS["gru"], Sharded(LINE, "time", Scan(adjoint=False))
    params, carry, xs, *_ = example(cell, T=16)
    gradient = jax.grad(lambda xs: engine.run(cell, params, carry, xs)[1].sum())
    with pytest.raises(ValueError, match=r"Sharded\(.*\) refuses derivatives of its gradient"):
        jax.jvp(gradient, (xs,), (xs,))


def test_a_fold_may_be_split_by_shard_map():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    model = seqjax.Serial(seqjax.RNN(CELLS["gru"]), seqjax.Dense(2, dtypes=F64))

    def gradient(params, xs):
        def loss(params):
            carry = model.initial_carry(params, xs.shape[1:-1])
            zero = jnp.zeros((), "float64")
            return seqjax.fold(model, params, carry, xs, lambda total, ys: total + (ys**2).sum(), zero, segment=5)[1]

        return jax.grad(loss)(params)

    xs = jax.random.normal(jax.random.key(0), (16, 8, 2), "float64")
    params = model.init(jax.random.key(1), xs)
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(None, "batch")), "out_specs": PartitionSpec()}
    found = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(params, xs)
    assert_close(found, jax.jit(gradient)(params, xs), 1e-10)


@pytest.mark.parametrize("inner", [Checkpointed(2), *map(Associative, ("scan", "tree", "interpreter"))], ids=repr)
def test_any_inner_engine_gives_the_same_numbers(inner):
    arrays, flags, (expected, _) = uneven(CELLS["lru"])
    assert_close(Sharded(PLANE, "time", inner).run(CELLS["lru"], *arrays, **flags), expected, 1e-10)


@pytest.mark.parametrize("cell", [Zoneout(GRU(3, dtypes=F64), 0.3), Simple(3, normalize="batch", dtypes=F64)])
def test_training_draws_the_noise_and_takes_the_statistics_of_the_loop(cell):
    params, carry, xs, *_ = example(cell, **(UNEVEN | {"masked": False}))
    key = jax.random.key(1)
    actual = Sharded(PLANE, "time").run(cell, params, carry, xs, key=key)
    assert_close(actual, reference_loop(cell, params, carry, xs, key=key), 1e-10)


def test_resets_reach_an_initial_carry_that_is_a_parameter():
    def step(params, carry, x):
        carry = jnp.tanh(params["w"] * carry + x)
        return carry, carry

    cell = LambdaCell(
        lambda key, in_dim: {"w": jnp.ones(in_dim, "float64"), "start": jnp.ones(in_dim, "float64")},
        step,
        lambda params, batch_shape: jnp.broadcast_to(params["start"], (*batch_shape, params["start"].shape[0])),
    )
    check_equal(Sharded(PLANE, "time", batch_axis="batch"), cell, T=7, batch_shape=(2,), with_resets=True)


def test_streaming_in_two_pieces_equals_the_whole():
    (params, carry, xs), flags, ((after, ys), _) = uneven(CELLS["gru"])
    run = functools.partial(Sharded(PLANE, "time").run, CELLS["gru"], params)
    mask, resets = flags["mask"], flags["resets"]
    between, first = run(carry, xs[:8], mask=mask[:8], resets=resets[:8])
    assert_close(first, ys[:8], 1e-10)
    assert_close(run(between, xs[8:], mask=mask[8:], resets=resets[8:]), (after, ys[8:]), 1e-10)


@pytest.mark.parametrize("name", ["gru", "lru"])
def test_vmap_equals_batched(name):
    (params, carry, xs), flags, (expected, _) = uneven(CELLS[name])

    def run(carry, xs, mask, resets):
        return Sharded(PLANE, "time").run(CELLS[name], params, carry, xs, mask=mask, resets=resets)

    actual = jax.jit(jax.vmap(run, (0, 1, 1, 1), (0, 1)))(carry, xs, flags["mask"], flags["resets"])
    assert_close(actual, expected, 1e-10)


def test_forgetting_takes_two_sweeps_and_expanding_no_more_than_devices():
    def sweeps(cell, T, **flags):
        params, carry, xs, *_ = example(cell, T=T, batch_shape=(2,))
        params = params._replace(w_rec=params.w_rec * (1 if T > 64 else 4))
        solution = sharded_solve(cell, params, carry, xs, engine=Sharded(LINE, "time"), **flags)
        expected = Scan().run(cell, params, carry, xs, **flags)
        assert_close((solution.carry, solution.ys), expected, 1e-10)
        return int(solution.iterations), bool(solution.converged.all())

    assert sweeps(CELLS["gru"], 1200) == (2, True)
    lengths = jnp.array([0, 400])  # padding, which forgets nothing, is not waited for
    assert sweeps(CELLS["gru"], 1200, mask=mask_from_lengths(lengths, 1200)) == (2, True)
    assert sweeps(CELLS["gru"], 64) == (8, True)


@pytest.mark.parametrize("name", ["gru", "min-gru"])
def test_nan_is_not_hidden_and_ends_at_a_reset(name):
    cell = CELLS[name]
    params, carry, xs, *_ = example(cell, T=32, batch_shape=(2,))
    xs = xs.at[5, 0].set(jnp.nan)
    resets = jnp.zeros((32, 2), bool).at[21, 0].set(True)
    solution = sharded_solve(cell, params, carry, xs, engine=Sharded(LINE, "time"), resets=resets)
    _, expected = reference_loop(cell, params, carry, xs, resets=resets)
    assert np.isnan(expected[5:21, 0]).all()
    assert np.isfinite(expected[21:, 0]).all()
    np.testing.assert_allclose(solution.ys, expected, rtol=1e-10, atol=1e-10)
    assert solution.converged.tolist() == [False, True]
    assert int(solution.iterations) == (8 if name == "gru" else 0)  # an affine cell is not relaxed


def test_an_affine_cell_has_derivatives_of_every_order():
    cell = CELLS["min-gru"]
    params, carry, xs, *_ = example(cell, **UNEVEN)
    xs = jnp.nan_to_num(xs)

    def derivatives(engine):
        def loss(xs):
            after, ys = engine.run(cell, params, carry, xs)
            return jnp.sum(ys**3) + jnp.sum(after.h**2)

        direction = jnp.cos(xs)
        return jax.jvp(jax.grad(loss), (xs,), (direction,)), jax.grad(lambda xs: jnp.sum(jax.grad(loss)(xs) ** 2))(xs)

    both = jax.jit(lambda: [derivatives(engine) for engine in (Sharded(LINE, "time"), Scan(adjoint=False))])
    assert_close(*both(), 1e-10)


@pytest.mark.parametrize("name", ["gru", "min-gru"])
def test_arrays_may_be_split_already_and_outputs_stay_split(name):
    cell, engine = CELLS[name], Sharded(PLANE, "time", batch_axis="batch")
    params, carry, xs, mask, _ = example(cell, **(UNEVEN | {"T": 8}))
    expected = value_and_gradients(reference_loop, cell, params, carry, xs, mask=mask)
    # explicit axes put the sharding into the arrays' types, which gradients must keep
    mesh = jax.make_mesh((4, 2), ("time", "batch"), axis_types=(AxisType.Explicit,) * 2)

    def put(tree, *spec):
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))

    arrays = put(params), put(carry, "batch"), put(xs, "time", "batch")
    actual = gradients(engine, cell, *arrays, mask=put(mask, "time", "batch"))
    assert_close(actual, expected, 1e-10)
    (after, ys), (_, _, d_xs) = actual
    assert {shard.data.shape for shard in ys.addressable_shards} == {(2, 2, 3)}
    assert {shard.data.shape for shard in after.h.addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in d_xs.addressable_shards} == {(2, 2, 2)}


@pytest.mark.parametrize(("name", "T", "inside"), [("gru", 8, False), ("gru", 13, True), ("lru", 8, True)])
def test_a_model_on_a_mesh_with_explicit_axes_gives_the_numbers_of_one_device(name, T, inside):
    mesh = jax.make_mesh((4, 2), ("time", "batch"), axis_types=(AxisType.Explicit,) * 2)
    cell = CELLS[name]

    def model(engine):
        layer = seqjax.RNN(cell, engine)
        return seqjax.Serial(layer, seqjax.Residual(layer), seqjax.Dense(3, dtypes=F64))

    def gradients(engine):
        def loss(params, xs, ys, mask):
            layers = model(engine)
            _, out = layers.apply(params, layers.initial_carry(params, (4,)), xs, mask=mask)
            return seqjax.training.mean_squared_error(out, ys, mask)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    _, _, xs, mask, _ = example(cell, **(UNEVEN | {"T": T}))
    params, ys = model(Scan()).init(jax.random.key(0), xs), jnp.cos(jnp.arange(T * 12.0)).reshape(T, 4, 3)
    expected = gradients(Scan(adjoint=False))(params, xs, ys, mask)
    spec = PartitionSpec("time" if T == 8 else None, "batch")
    with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
        split = jax.device_put((xs, ys, mask), NamedSharding(mesh, spec))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        actual = gradients(Sharded(mesh, "time", batch_axis="batch"))(params, *split)
    assert_close(jax.device_get(actual), jax.device_get(expected), 1e-10)


@pytest.mark.parametrize("name", ["gru", "lru"])
def test_a_gradient_keeps_on_each_device_its_part_alone(name):
    cell, T = CELLS[name], 2**17  # so long that a device, too, projects its part in blocks
    params, carry, *_ = example(cell, **UNEVEN)

    def temporary(engine, sharding):
        def loss(params, xs):
            return jnp.sum(engine.run(cell, params, carry, xs)[1] ** 2)

        xs = jax.ShapeDtypeStruct((T, 4, 2), "float64", sharding=sharding)
        return jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    one, inner = (Scan(), Scan()) if name == "gru" else (Associative(segment=T), Associative())
    split = NamedSharding(LINE, PartitionSpec("time"))
    assert temporary(Sharded(LINE, "time", inner), split) < temporary(one, None) / 4


def test_a_batch_that_cannot_be_split_is_refused():
    engine = Sharded(PLANE, "time", batch_axis="batch")
    for batch_shape in ((), (3,)):
        params, carry, xs, *_ = example(CELLS["gru"], batch_shape=batch_shape)
        with pytest.raises(ValueError, match=r"axis 1 of xs over the 2 devices of 'batch'.*pad the batch"):
            engine.run(CELLS["gru"], params, carry, xs)


@pytest.mark.parametrize("cell", [Zoneout(GRU(3, dtypes=F64), 0.3), Simple(3, normalize="batch", dtypes=F64)])
def test_training_that_needs_the_whole_batch_is_refused_where_it_is_split(cell):
    params, carry, xs, *_ = example(cell, batch_shape=(4,))
    engine = Sharded(PLANE, "time", batch_axis="batch")
    with pytest.raises(ValueError, match=r"cannot train .* leave batch_axis out"):
        engine.run(cell, params, carry, xs, key=jax.random.key(0))
