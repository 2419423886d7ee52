# SPDX-License-Identifier: Apache-2.0
"""Stateful training: window by window over sequences that never are in memory whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from seqjax.engines import Truncated
from seqjax.testing import assert_close
from seqjax.training import Batch, fit, init_state, make_train_step, mean_squared_error, windows
from tests.common import F64

MODEL = seqjax.RNN(seqjax.LSTM(3, dtypes=F64))
RANDOM = np.random.default_rng(0)
XS, YS = RANDOM.normal(size=(24, 2)), RANDOM.normal(size=(24, 3))
STRIDED = seqjax.Serial(seqjax.Conv1D(3, 2, stride=2, dtypes=F64), seqjax.Dense(3, dtypes=F64))


def test_windows_of_a_stream_are_truncated_backpropagation_of_the_whole():
    params = MODEL.init(jax.random.key(0), jnp.asarray(XS))
    optimizer = optax.sgd(1.0)
    make_batch = windows(XS, YS, window=4, batch=2)
    step = make_train_step(MODEL, mean_squared_error, optimizer, stateful=True)
    gradient = jax.tree.map(jnp.zeros_like, params)
    state = init_state(params, optimizer, MODEL.initial_carry(params, (2,)))
    for t in range(3):  # 3 windows of 4 steps are a lane; params are put back to take all gradients at one place
        state, _ = step(state._replace(params=params), make_batch(0, t), None)
        gradient = jax.tree.map(lambda g, new, old: g + old - new, gradient, state.params, params)

    whole = seqjax.RNN(MODEL.cell, Truncated(4))
    xs, ys = (jnp.asarray(a.reshape(2, 12, -1).swapaxes(0, 1)) for a in (XS, YS))

    def loss(params):
        carry, predictions = whole.apply(params, whole.initial_carry(params, (2,)), xs)
        return 3 * jnp.mean((predictions - ys) ** 2), carry  # a sum over windows of their means

    expected, carry = jax.grad(loss, has_aux=True)(params)
    assert_close(gradient, expected, 1e-10)
    assert_close(state.carry, carry, 1e-10)


def test_a_lane_starts_from_the_initial_carry_each_time_it_is_walked():
    params = MODEL.init(jax.random.key(0), jnp.asarray(XS))
    step = make_train_step(MODEL, mean_squared_error, optax.sgd(0.0), stateful=True)
    make_batch = windows(XS, YS, window=12, batch=1)
    state = init_state(params, optax.sgd(0.0), MODEL.initial_carry(params, (1,)))
    losses = []
    for t in range(4):
        state, metrics = step(state, make_batch(0, t), None)
        losses.append(float(metrics["loss"]))
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


def test_a_step_that_is_not_finite_keeps_the_carry():
    params = MODEL.init(jax.random.key(0), jnp.asarray(XS))
    step = make_train_step(MODEL, mean_squared_error, optax.sgd(0.1), stateful=True)
    batch = windows(XS, YS, window=4, batch=2)(0, 1)
    state = init_state(params, optax.sgd(0.1), MODEL.initial_carry(params, (2,)))
    state, _ = step(state, batch, None)
    after, metrics = step(state, batch._replace(xs=batch.xs * np.nan), None)
    assert bool(metrics["skipped"])
    assert_close(after.carry, state.carry, 0.0)


def begin(model, batch):
    """A stateful step of the model, and the state before it."""
    optimizer = optax.sgd(0.1)
    params = model.init(jax.random.key(0), batch.xs)
    carry = model.initial_carry(params, model.batch_shape(batch.xs))
    return make_train_step(model, mean_squared_error, optimizer, stateful=True), init_state(params, optimizer, carry)


def test_a_carry_that_is_not_finite_is_not_kept_though_the_loss_is():
    good = Batch(XS[:4, None], YS[:2, None])
    bad = good._replace(
        xs=np.where(np.arange(4)[:, None, None] == 3, np.nan, good.xs)
    )  # x_3 enters no output of its own
    step, before = begin(STRIDED, good)
    state, metrics = step(before, bad, None)
    assert np.isfinite(metrics["loss"])
    assert metrics["skipped"]
    assert_close((state.params, state.carry), (before.params, before.carry), 0.0)
    assert not step(state, good, None)[1]["skipped"]


def test_a_window_that_is_no_multiple_of_the_stride_is_refused():
    batch = Batch(XS[:5, None], YS[:3, None])
    step, state = begin(STRIDED, batch)
    with pytest.raises(ValueError, match=r"a window must be a multiple of the model's stride 2, got 5 steps"):
        step(state, batch, None)
    anew = make_train_step(STRIDED, mean_squared_error, optax.sgd(0.1))
    assert not anew(init_state(state.params, optax.sgd(0.1)), batch, None)[1]["skipped"]


@pytest.mark.parametrize("model", [MODEL, seqjax.Serial(MODEL, seqjax.Dense(3, dtypes=F64))], ids=["layer", "serial"])
def test_a_state_whose_carry_does_not_go_with_the_training_is_refused(model):
    batch = Batch(XS[:4, None], YS[:4, None])
    step, state = begin(model, batch)
    with pytest.raises(ValueError, match=r"begin with init_state\(params, optimizer, carry=model.initial_carry"):
        step(state._replace(carry=()), batch, None)
    with pytest.raises(ValueError, match=r"the state has a carry, which only make_train_step\(..., stateful=True\)"):
        make_train_step(model, mean_squared_error, optax.sgd(0.1))(state, batch, None)


def test_a_resumed_stateful_run_is_bit_for_bit_the_uninterrupted_one(tmp_path):
    make_batch = windows(XS, YS, window=4, batch=2)
    options = {"loss": mean_squared_error, "optimizer": optax.adam(1e-2), "stateful": True, "progress": False}
    whole = fit(MODEL, make_batch, steps=5, **options)
    fit(MODEL, make_batch, steps=2, run_dir=tmp_path / "run", **options)
    resumed = fit(MODEL, make_batch, steps=5, run_dir=tmp_path / "run", resume=True, **options)
    assert_close(resumed.state, whole.state, 0.0)
    assert float(jnp.abs(resumed.state.carry.c).sum()) > 0


def test_a_stateful_run_is_resumed_by_none_that_is_not(tmp_path):
    make_batch = windows(XS, YS, window=4, batch=2)
    options = {"loss": mean_squared_error, "optimizer": optax.sgd(1e-2), "run_dir": tmp_path, "progress": False}
    fit(MODEL, make_batch, steps=2, stateful=True, **options)
    with pytest.raises(ValueError, match=r"carry.*saved .*, expected nothing.*or another `stateful`; use the same"):
        fit(MODEL, make_batch, steps=5, resume=True, **options)


def test_what_cannot_be_walked_is_refused():
    with pytest.raises(ValueError, match="do not fill one window of 100 steps"):
        windows(XS, YS, window=100, batch=1)
    with pytest.raises(ValueError, match=r"windows: window must be a positive integer, got 2\.5"):
        windows(XS, YS, window=2.5, batch=1)
    with pytest.raises(ValueError, match="windows: batch must be a positive integer, got 0"):
        windows(XS, YS, window=2, batch=0)
    with pytest.raises(ValueError, match="a target for every step"):
        windows(XS, YS[1:], window=2, batch=1)
    with pytest.raises(ValueError, match="needs a model that streams"):
        make_train_step(seqjax.Bidirectional(MODEL), mean_squared_error, optax.sgd(0.1), stateful=True)
    step = make_train_step(MODEL, mean_squared_error, optax.sgd(0.1), stateful=True)
    params = MODEL.init(jax.random.key(0), jnp.asarray(XS))
    state = init_state(params, optax.sgd(0.1), MODEL.initial_carry(params, (3,)))
    with pytest.raises(ValueError, match="carry does not fit"):
        step(state, Batch(jnp.ones((4, 2, 2)), jnp.ones((4, 2, 3))), None)
