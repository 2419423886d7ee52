# SPDX-License-Identifier: Apache-2.0
"""The laws of `Wavefront` on eight devices; `engines/test_sharded.py` runs this file in a process that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqjax import GRU, LRU, RNN, Serial
from seqjax.cells import Zoneout
from seqjax.engines import Scan
from seqjax.layers.wavefront import Wavefront
from seqjax.testing import assert_close, jitter
from tests.common import F64


def mesh_of(*sizes: int) -> Mesh:
    return jax.make_mesh(sizes, ("layer", "batch")[: len(sizes)])


def case(model: Wavefront, T: int, B: int, masked: bool):
    random = np.random.default_rng(0)
    xs = random.normal(size=(T, B, 3))
    mask = random.random((T, B)) < 0.7 if masked else None
    resets = random.random((T, B)) < 0.2 if masked else None
    if masked:
        xs[~mask] = np.nan
    params = jitter(model.init(jax.random.key(0), xs), random)
    carry = jitter(model.initial_carry(params, (B,)), random)
    return params, carry, *(None if a is None else jnp.asarray(a) for a in (xs, mask, resets))


@pytest.mark.parametrize(
    ("cell", "layers", "sizes", "T", "chunk", "masked"),
    [
        (GRU(3, dtypes=F64), 4, (4, 2), 11, 3, True),  # T not a multiple of the chunk, batch split
        (LRU(3, dtypes=F64), 4, (2,), 3, None, False),  # two layers on each device
    ],
    ids=["gru", "lru"],
)
def test_values_and_gradients_are_those_of_one_layer_after_the_other(cell, layers, sizes, T, chunk, masked):
    model = Wavefront(cell, layers, mesh_of(*sizes), "layer", chunk, "batch" if len(sizes) > 1 else None)
    params, carry, xs, mask, resets = case(model, T, 2, masked)
    flags = {"mask": mask, "resets": resets}
    weights = np.random.default_rng(1).normal(size=xs.shape)

    def loss(run):
        def value(params, carry, xs):
            after, ys = run(params, carry, xs, **flags)
            return jnp.sum(weights * ys) + sum(jnp.sum(jnp.abs(a) ** 2) for a in jax.tree.leaves(after)), (after, ys)

        return jax.value_and_grad(value, (0, 1, 2), has_aux=True)(params, carry, xs)

    stack = Serial(*[RNN(cell, Scan(adjoint=False))] * layers)
    assert_close(*jax.jit(lambda: (loss(model.apply), loss(stack.apply)))(), 1e-10)


def test_the_noise_of_each_layer_is_that_of_one_layer_after_the_other():
    model = Wavefront(Zoneout(GRU(3, dtypes=F64), 0.3), 2, mesh_of(2), "layer", chunk=2)
    params, carry, xs, *_ = case(model, 5, 2, False)
    key = jax.random.key(1)
    assert_close(model.apply(params, carry, xs, key=key), model.serial.apply(params, carry, xs, key=key), 1e-10)


def test_streaming_in_two_pieces_equals_the_whole():
    model = Wavefront(GRU(3, dtypes=F64), 4, mesh_of(4), "layer", chunk=3)
    params, carry, xs, mask, resets = case(model, 17, 2, True)
    run = jax.jit(model.apply)
    whole = run(params, carry, xs, mask=mask, resets=resets)
    between, first = run(params, carry, xs[:7], mask=mask[:7], resets=resets[:7])
    after, second = run(params, between, xs[7:], mask=mask[7:], resets=resets[7:])
    assert_close((after, jnp.concatenate([first, second])), whole, 1e-10)


def test_ticks_are_chunks_and_one_less_than_devices():
    model = Wavefront(GRU(3), 16, mesh_of(8), "layer", chunk=10)
    xs = jax.ShapeDtypeStruct((1000, 2, 3), "float32")
    (plan,) = model.plan(jax.eval_shape(model.init, jax.random.key(0), xs), xs)
    assert plan.depth == (100 + 7) * 10 * 2
    assert "107 ticks of 10 steps" in plan.why


def test_layers_that_devices_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"layers must be a multiple of the 8 devices of 'layer', got 12"):
        Wavefront(GRU(3), 12, mesh_of(8), "layer")


def test_a_batch_that_cannot_be_split_is_refused():
    model = Wavefront(GRU(3, dtypes=F64), 4, mesh_of(4, 2), "layer", batch_axis="batch")
    params, carry, xs, *_ = case(model, 4, 3, False)
    with pytest.raises(ValueError, match=r"axis 1 of xs over the 2 devices of 'batch'"):
        model.apply(params, carry, xs)


def test_inside_a_mesh_with_explicit_axes_it_gives_the_numbers_of_one_device():
    mesh = jax.make_mesh((4, 2), ("layer", "batch"), axis_types=(AxisType.Explicit,) * 2)
    model = Wavefront(GRU(3, dtypes=F64), 4, mesh, "layer", 3, "batch")
    params, carry, xs, mask, resets = case(model, 11, 2, masked=True)

    def gradients(layer):
        def loss(params, carry, xs, mask, resets):
            carry, ys = layer.apply(params, carry, xs, mask=mask, resets=resets)
            return jnp.sum(ys**2) + sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(carry))

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))

    expected = gradients(model.serial)(params, carry, xs, mask, resets)
    with jax.set_mesh(mesh):
        axes = (), ("batch",), (None, "batch"), (None, "batch"), (None, "batch")
        arrays = [
            jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))
            for tree, spec in zip((params, carry, xs, mask, resets), axes, strict=True)
        ]
        actual = gradients(model)(*arrays)
    assert_close(jax.device_get(actual), jax.device_get(expected), 1e-10)


def test_an_empty_batch_is_one():
    model = Wavefront(GRU(3, dtypes=F64), 2, mesh_of(2), "layer")
    params, carry, xs, *_ = case(model, 6, 0, masked=False)
    _, ys = model.apply(params, carry, xs)
    assert ys.shape == (6, 0, 3)
