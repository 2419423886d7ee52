# SPDX-License-Identifier: Apache-2.0
"""Heads side by side: a dense cell whose recurrent weights are block-diagonal is the same cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import block_diag

import seqjax
from seqjax.cells import LambdaCell, MultiHead, RecurrentDropout, Zoneout
from seqjax.engines import Auto, Checkpointed, Fused, Scan
from seqjax.testing import assert_close, example, reference_loop
from tests.common import F64, assert_equals_loop

CELLS = {
    "simple": (1, lambda units: seqjax.Simple(units, dtypes=F64)),
    "lstm": (4, lambda units: seqjax.LSTM(units, dtypes=F64)),
    "gru-before": (3, lambda units: seqjax.GRU(units, dtypes=F64)),
    "gru-after": (3, lambda units: seqjax.GRU(units, reset="after", dtypes=F64)),
}
ENGINES = (
    Scan(),
    Scan(adjoint=False),
    Checkpointed(3),
    Fused(interpret=True),
    Checkpointed(3, inner=Fused(interpret=True)),
)


def dense(params, gates):
    """The params of one cell: gates side by side, in each its heads side by side, recurrent weights block-diagonal."""

    def side_by_side(a):  # [N, ..., G*K] -> [..., G*N*K]
        heads = [np.split(np.asarray(head), gates, axis=-1) for head in a]
        return np.concatenate([head[g] for g in range(gates) for head in heads], axis=-1)

    by_gate = [np.split(np.asarray(head), gates, axis=-1) for head in params.w_rec]
    w_rec = np.concatenate([block_diag(*(head[g] for head in by_gate)) for g in range(gates)], axis=-1)
    rest = {name: side_by_side(a) for name, a in params._asdict().items() if a is not None and name != "w_rec"}
    return params._replace(w_rec=jnp.asarray(w_rec), **{name: jnp.asarray(a) for name, a in rest.items()})


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("name", CELLS)
def test_heads_equal_a_dense_cell_with_block_diagonal_weights(name, engine):
    gates, make = CELLS[name]
    cell = MultiHead(make(2), 3)
    params, carry, xs, mask, resets = example(cell, T=7, batch_shape=(2,), masked=True, with_resets=True)

    def loss(run, cell, params, carry, xs):
        carry, ys = run(cell, params, carry, xs, mask=mask, resets=resets)
        return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry)), (carry, ys)

    def both(run, cell, params):
        gradient = jax.value_and_grad(functools.partial(loss, run, cell), argnums=(0, 1, 2), has_aux=True)
        (_, outputs), (d_params, *d_inputs) = gradient(params, carry, jnp.nan_to_num(xs))
        return outputs, d_params, d_inputs

    outputs, d_params, d_inputs = jax.jit(functools.partial(both, engine.run, cell))(params)
    expected, d_dense, d_expected = both(reference_loop, make(6), dense(params, gates))
    assert_close((outputs, d_inputs), (expected, d_expected), 1e-10)
    assert_close(dense(d_params, gates).w_in, d_dense.w_in, 1e-10)
    inside = np.asarray(dense(jax.tree.map(jnp.ones_like, params), gates).w_rec)  # other blocks have gradients there
    assert_close(dense(d_params, gates).w_rec, d_dense.w_rec * inside, 1e-10)


def test_a_head_is_drawn_as_its_cell_is():
    params = MultiHead(seqjax.LSTM(4), 3).init(jax.random.key(0), 2)
    for key, *head in zip(jax.random.split(jax.random.key(0), 3), params.w_rec, params.bias, strict=True):
        alone = seqjax.LSTM(4).init(key, 2)
        np.testing.assert_allclose(head[0], alone.w_rec, atol=1e-6)
        np.testing.assert_array_equal(head[1], alone.bias)


@pytest.mark.parametrize(
    "cell",
    [
        MultiHead(Zoneout(seqjax.LSTM(2, dtypes=F64), 0.3), 2),
        RecurrentDropout(MultiHead(seqjax.GRU(2, dtypes=F64), 2), 0.3),
        MultiHead(seqjax.Simple(2, normalize="batch", dtypes=F64), 2),
    ],
    ids=repr,
)
def test_noise_and_batch_statistics_inside_and_outside_heads(cell):
    params, carry, xs, _, _ = example(cell, T=5, batch_shape=(3,))
    key = jax.random.key(1)
    assert_equals_loop(cell, Scan(), params, carry, xs, key=key)


def test_statistics_are_those_of_each_head():
    alone = seqjax.Simple(2, normalize="batch", dtypes=F64)
    cell = MultiHead(alone, 2)
    params, carry, xs, _, _ = example(cell, T=5, batch_shape=(3,))
    calibrated = cell.calibrate(params, carry, xs)
    for n in range(2):
        head, h = jax.tree.map(lambda a, n=n: a[n], params), carry.h[..., 2 * n : 2 * n + 2]
        expected = alone.calibrate(head, seqjax.cells.SimpleCarry(h), xs)
        assert not np.allclose(expected.mean, head.mean)
        assert_close(jax.tree.map(lambda a, n=n: a[n], calibrated), expected, 1e-12)


def test_heads_fit_where_the_whole_does_not(monkeypatch):
    from seqjax.engines import fused

    monkeypatch.setattr(fused, "missing", lambda: None)
    cell = MultiHead(seqjax.LSTM(128, dtypes=seqjax.DTypes(compute="float32")), 4)
    model = seqjax.RNN(cell, Auto())
    xs = jax.ShapeDtypeStruct((1024, 64, 512), jnp.float32)
    (plan,) = model.plan(jax.eval_shape(model.init, jax.random.key(0), xs), xs)
    assert "one kernel" in plan.why
    assert plan.memory == 4 * 1024 * 64 * 128 * 4 * (2 * 4 + 2 + 4)  # z and its cotangents, states, gates
    whole = seqjax.LSTM(512, dtypes=seqjax.DTypes(compute="float32"))
    assert not Fused().runs(whole, jax.eval_shape(lambda key: whole.init(key, 512), jax.random.key(0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHead(seqjax.LSTM(4), 0), "heads must be a positive integer, got 0"),
        (lambda: MultiHead("lstm", 2), "MultiHead wraps a Cell, got 'lstm'"),
    ],
)
def test_what_makes_no_heads_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def counting(batch_axes):
    """h_t = 0.9 h_{t-1} + x_t without params, beside the number of steps, with or without a feature axis."""

    def step(params, carry, x):
        h, n = carry
        return (0.9 * h + x, n + 1), 0.9 * h + x

    def initial_carry(params, batch_shape):
        return jnp.zeros((*batch_shape, 2)), jnp.zeros((*batch_shape, *batch_axes), jnp.int32)

    return LambdaCell(lambda key, in_dim: (), step, initial_carry)


@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_a_cell_without_params_has_heads(batch_shape):
    cell, xs = MultiHead(counting((1,)), 2), jnp.ones((4, *batch_shape, 2))
    carry, ys = Scan().run(cell, (), cell.initial_carry((), batch_shape), xs)
    np.testing.assert_allclose(ys[-1], np.full((*batch_shape, 4), 1 + 0.9 + 0.81 + 0.729))
    assert carry[1].tolist() == np.full((*batch_shape, 2), 4).tolist()


@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_a_carry_without_features_has_no_place_for_heads(batch_shape):
    cell = MultiHead(counting(()), 2)
    with pytest.raises(ValueError, match=r"MultiHead puts heads .* LambdaCell.* an array without one"):
        cell.initial_carry((), batch_shape)
