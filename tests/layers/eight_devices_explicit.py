# SPDX-License-Identifier: Apache-2.0
"""Inside `jax.set_mesh` of eight devices with explicit axes, which split the batch, a model gives the numbers of one
device; `engines/test_sharded.py` runs this file in a process that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import seqjax
from seqjax import GRU, LSTM, RNN, Conv1D, Embed, Serial, Simple
from seqjax.cells import RecurrentDropout, Zoneout
from seqjax.engines import Checkpointed, Scan, Truncated
from seqjax.testing import assert_close, jitter
from tests.common import F64

MESH = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,))
STRIDED = Serial(Conv1D(3, 4, stride=2, dtypes=F64), RNN(GRU(3, dtypes=F64)))
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
    with jax.set_mesh(MESH):
        split = jax.device_put((xs, *others), NamedSharding(MESH, PartitionSpec(None, "batch")))
        actual = both(jax.device_put(params, NamedSharding(MESH, PartitionSpec())), *split)
    assert_close(jax.device_get(actual), jax.device_get(expected), 1e-10)


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
