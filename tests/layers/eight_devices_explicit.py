# SPDX-License-Identifier: Apache-2.0
"""On a mesh of eight devices with explicit axes, which split the batch, a model gives the numbers of one device, inside
`jax.set_mesh` and outside; `engines/test_sharded.py` runs this file in a process that has them."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import seqjax
from seqjax import GRU, LSTM, RNN, Bidirectional, Conv1D, Dense, Embed, Last, Residual, Serial, Simple
from seqjax.cells import DiagonalGRU, IndRNN, MultiHead, PeepholeLSTM, RecurrentDropout, Zoneout
from seqjax.engines import Checkpointed, Scan, Truncated
from seqjax.testing import assert_close, jitter
from tests.common import F64

MESH = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,))
STRIDED = Serial(Conv1D(3, 4, stride=2, dtypes=F64), RNN(GRU(3, dtypes=F64)), Dense(3, dtypes=F64))
T, B = 11, 8


def check(model, loss, features, *others):
    """The loss, `loss(params, xs, *others)`, and its gradients are those of one device, the batch split or not.

    Carries are made inside, so that they do not know how the batch is split.
    """
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.normal(size=(T, B, features)))
    params = jitter(model.init(jax.random.key(0), xs), random)
    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expected = both(params, xs, *others)
    arrays = on_devices(params, xs, *others)
    for inside in (True, False):
        with jax.set_mesh(MESH) if inside else contextlib.nullcontext():
            actual = both(*arrays)
        assert_close(jax.device_get(actual), jax.device_get(expected), 1e-10)


def on_devices(params, *arrays):
    """Params that are whole on every device, and arrays `[T, B, ...]` whose batch is split."""
    split = jax.device_put(arrays, NamedSharding(MESH, PartitionSpec(None, "batch")))
    return jax.device_put(params, NamedSharding(MESH, PartitionSpec())), *split


def flags():
    random = np.random.default_rng(1)
    return jnp.asarray(random.random((T, B)) < 0.8), jnp.asarray(random.random((T, B)) < 0.2)


@pytest.mark.parametrize(
    ("model", "features"), [(RNN(Simple(3, dtypes=F64)), 2), (STRIDED, 1)], ids=["simple", "strided"]
)
def test_a_fold_with_a_rest_extras_mask_and_resets(model, features):
    steps = -(-T // model.stride)
    targets = jnp.asarray(np.random.default_rng(2).normal(size=(steps, B, 3)))

    def loss(params, xs, targets, mask, resets):
        def add(total, ys, targets):
            return total + jnp.sum(jnp.sin(ys) * targets, (0, 2))

        carry, zeros = model.initial_carry(params, (B,)), jnp.zeros(B, "float64")
        flags = {"extras": targets, "mask": mask, "resets": resets}
        carry, total = seqjax.fold(model, params, carry, xs, add, zeros, segment=4, **flags)
        return (total**2).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(carry) if leaf.dtype != bool)

    check(model, loss, features, targets, *flags())


def outputs_squared(model, key=None):
    def loss(params, xs, mask=None, resets=None):
        carry = model.initial_carry(params, (B,))
        return (model.apply(params, carry, xs, mask=mask, resets=resets, key=key)[1] ** 2).sum()

    return loss


@pytest.mark.parametrize("padding", ["causal", "same", "valid"])
def test_a_convolution_with_mask_and_resets(padding):
    model = Conv1D(3, 4, stride=2, padding=padding, dtypes=F64)
    check(model, outputs_squared(model), 2, *flags())
    if padding == "causal":
        check(STRIDED, outputs_squared(STRIDED), 1, *flags())  # which hands its flags on


@pytest.mark.parametrize(
    ("cell", "engine"),
    [
        (Zoneout(LSTM(3, dtypes=F64), 0.3, c_rate=0.5), Scan()),
        (RecurrentDropout(Simple(3, dtypes=F64), 0.3), Checkpointed(4)),
        (Zoneout(Simple(3, dtypes=F64), 0.3), Truncated(4)),
    ],
    ids=["scan", "checkpointed", "truncated"],
)
def test_noise_inside_a_recurrence(cell, engine):
    model = RNN(cell, engine)
    check(model, outputs_squared(model, jax.random.key(1)), 1)


def test_ids():
    model = Serial(Embed(5, 3, dtypes=F64), RNN(GRU(3, dtypes=F64)))
    ids = jnp.asarray(np.random.default_rng(3).integers(0, 5, (T, B)))
    params = jitter(model.init(jax.random.key(0), ids), np.random.default_rng(0))
    gradient = jax.jit(jax.value_and_grad(outputs_squared(model)))
    expected = gradient(params, ids)
    with jax.set_mesh(MESH):
        split = jax.device_put(ids, NamedSharding(MESH, PartitionSpec(None, "batch")))
        actual = gradient(jax.device_put(params, NamedSharding(MESH, PartitionSpec())), split)
    assert_close(jax.device_get(actual), jax.device_get(expected), 1e-10)


@pytest.mark.parametrize(
    "model",
    [
        RNN(GRU(3)),
        RNN(LSTM(3), Scan(adjoint=False)),
        RNN(PeepholeLSTM(3), Checkpointed(4)),
        RNN(IndRNN(3), Truncated(4)),
        RNN(DiagonalGRU(3)),
        RNN(Simple(3), Checkpointed(4)),
        RNN(MultiHead(LSTM(2), 2), Truncated(4)),
        RNN(Zoneout(GRU(3), 0.3)),
        RNN(RecurrentDropout(GRU(3), 0.3)),
        Serial(Bidirectional(RNN(GRU(3))), Residual(RNN(LSTM(6))), Last()),
    ],
    ids=repr,
)
def test_outside_set_mesh_too_devices_that_split_the_batch_exchange_sums_alone(model):
    loss = outputs_squared(model)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, 3)), "float32")
    arrays = on_devices(model.init(jax.random.key(0), xs), xs)

    def outputs(params, xs):
        return model.apply(params, model.initial_carry(params, (B,)), xs)[1]

    forward, backward = (
        set(re.findall("all-[a-z]+|collective-permute|reduce-scatter", jax.jit(fn).lower(*arrays).compile().as_text()))
        for fn in (outputs, jax.grad(loss, (0, 1)))
    )
    assert not forward
    assert backward <= {"all-reduce"}
    assert_close(jax.device_get(outputs(*arrays)), outputs(*jax.device_get(arrays)), 1e-5)  # not compiled as a whole
