# SPDX-License-Identifier: Apache-2.0
"""One step: what it changes, what it reports, what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from seqjax.training import (
    AtLastStep,
    Batch,
    accuracy,
    clipped,
    cross_entropy,
    evaluate,
    init_state,
    make_eval_step,
    make_train_step,
    mean_absolute_error,
    mean_squared_error,
)
from tests.common import F64
from tests.training.runs import assert_same_bits

SGD = optax.sgd(0.1)
ADAM = clipped(optax.adam(0.1), norm=1e-3)
LINEAR = seqjax.Dense(1, use_bias=False, dtypes=F64)
RECURRENT = seqjax.Serial(seqjax.RNN(seqjax.Simple(3, dtypes=F64)), seqjax.Dense(1, dtypes=F64))


def draw(T=4, B=2, D=3, F=1, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(rng.normal(size=(T, B, D)), rng.normal(size=(T, B, F)))


def start(model, optimizer, batch, seed=0):
    return init_state(model.init(jax.random.key(seed), batch.xs), optimizer)


def linear_gradient(kernel, batch):
    """d/dw mean (x w - y)^2, by hand."""
    error = batch.xs @ kernel - batch.ys
    return 2 * np.einsum("tbd,tbf->df", batch.xs, error) / error.size


def test_step_follows_the_hand_computed_gradient():
    batch = draw()
    state = start(LINEAR, SGD, batch)
    kernel = np.asarray(state.params.kernel)
    after, metrics = make_train_step(LINEAR, mean_squared_error, SGD)(state, batch, None)
    gradient = linear_gradient(kernel, batch)
    np.testing.assert_allclose(after.params.kernel, kernel - 0.1 * gradient, rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], np.mean((batch.xs @ kernel - batch.ys) ** 2), rtol=1e-12)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(np.sum(gradient**2)), rtol=1e-12)
    assert (int(after.step), int(after.skipped), bool(metrics["clipped"]), bool(metrics["skipped"])) == (1, 0, 0, 0)


@pytest.mark.parametrize(("share", "expected"), [(0.5, True), (2.0, False)])
def test_grad_norm_is_the_one_before_clipping_and_clipping_is_reported(share, expected):
    batch = draw()
    state = start(LINEAR, SGD, batch)
    kernel = np.asarray(state.params.kernel)
    gradient = linear_gradient(kernel, batch)
    norm = np.sqrt(np.sum(gradient**2))
    optimizer = clipped(optax.sgd(0.1), norm=share * norm)
    step = make_train_step(LINEAR, mean_squared_error, optimizer)
    after, metrics = step(init_state(state.params, optimizer), batch, None)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-12)
    np.testing.assert_allclose(after.params.kernel, kernel - 0.1 * min(share, 1) * gradient, rtol=1e-12)
    assert bool(metrics["clipped"]) is expected
    assert int(after.clipped) == int(metrics["clipped_steps"]) == expected
    again, _ = step(after, batch, None)
    assert int(again.clipped) == 2 * expected


def test_an_update_that_waits_for_more_gradients_clips_nothing():
    batch = draw()
    optimizer = optax.MultiSteps(clipped(optax.sgd(0.1), norm=1e-3), 2)
    state = init_state(start(LINEAR, SGD, batch).params, optimizer)
    step, told = make_train_step(LINEAR, mean_squared_error, optimizer), []
    for _ in range(4):
        state, metrics = step(state, batch, None)
        told.append((bool(metrics["clipped"]), int(metrics["clipped_steps"])))
    assert told == [(False, 0), (True, 1), (False, 1), (True, 2)]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_no_bit_and_is_counted(poison):
    good = draw()
    bad = good._replace(xs=np.where(np.arange(4)[:, None, None] == 2, poison, good.xs))
    step = make_train_step(RECURRENT, mean_squared_error, ADAM)
    state, _ = step(start(RECURRENT, ADAM, good), good, None)
    counts = []
    before = state
    for batch in (bad, bad, good):
        state, metrics = step(state, batch, None)
        counts.append((int(state.step), int(state.skipped), int(state.skipped_in_row), bool(metrics["skipped"])))
        if batch is bad:
            assert_same_bits((state.params, state.opt_state), (before.params, before.opt_state))
            assert not metrics["clipped"]
            assert int(state.clipped) == int(before.clipped) == 1
    assert counts == [(2, 1, 1, True), (3, 2, 2, True), (4, 2, 0, False)]
    assert not np.array_equal(state.params[0].w_in, before.params[0].w_in)


def test_a_finite_loss_with_an_infinite_gradient_is_skipped():
    batch = draw()
    state = init_state(LINEAR.init(jax.random.key(0), batch.xs)._replace(kernel=jnp.zeros((3, 1))), SGD)
    step = make_train_step(LINEAR, lambda p, y, mask: jnp.sqrt(jnp.sum(p**2)), SGD)
    after, metrics = step(state, batch, None)
    assert metrics["loss"] == 0
    assert metrics["skipped"]
    np.testing.assert_array_equal(after.params.kernel, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_gradient_whose_square_leaves_the_optimizers_dtype_is_skipped(dtype):
    """Adam's second moment would be infinite from then on, and every update zero."""
    model, optimizer = seqjax.Dense(1, dtypes=seqjax.DTypes(params=dtype)), optax.adam(0.1)
    xs, ys = np.ones((3, 2, 2), dtype), np.ones((3, 2, 1), dtype)
    outlier = Batch(xs * (1e21 if dtype == "float32" else 1), ys * (200 if dtype == "float16" else 1))
    step = make_train_step(model, mean_absolute_error if dtype == "float32" else mean_squared_error, optimizer)
    before = init_state(model.init(jax.random.key(0), xs), optimizer)
    state, metrics = step(before, outlier, None)
    assert np.isfinite(metrics["grad_norm"])
    assert (bool(metrics["skipped"]), int(state.skipped)) == (True, 1)
    assert_same_bits((state.params, state.opt_state), (before.params, before.opt_state))
    state, metrics = step(state, Batch(xs, ys), None)
    assert not metrics["skipped"]
    assert not np.array_equal(state.params.kernel, before.params.kernel)


def test_params_that_an_update_takes_out_of_their_dtype_are_kept():
    model = seqjax.Dense(1, dtypes=seqjax.DTypes(params="float16"))
    batch = Batch(np.ones((3, 2, 2), "float16"), np.ones((3, 2, 1), "float16"))
    params = model.init(jax.random.key(0), batch.xs)._replace(kernel=jnp.full((2, 1), -60_000, "float16"))
    optimizer = optax.stateless(lambda grads, params: jax.tree.map(lambda p: jnp.full_like(p, -60_000), params))
    state, metrics = make_train_step(model, lambda p, y, mask: jnp.float32(0), optimizer)(
        init_state(params, optimizer), batch, None
    )
    assert metrics["skipped"]
    assert_same_bits(state.params, params)


def test_an_update_that_is_not_finite_is_skipped():
    batch = draw()
    optimizer = optax.scale(np.inf)
    state = start(LINEAR, optimizer, batch)
    after, metrics = make_train_step(LINEAR, mean_squared_error, optimizer)(state, batch, None)
    assert np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"]
    assert_same_bits(after.params, state.params)


def test_gradients_whose_squares_overflow_are_reported_and_clipped():
    model, optimizer = seqjax.Dense(1, use_bias=False), clipped(optax.sgd(1.0), norm=1.0)
    batch = Batch(np.array([[3e19, 4e19]], np.float32), np.zeros((1, 1), np.float32))
    state = init_state(model.init(jax.random.key(0), batch.xs)._replace(kernel=jnp.zeros((2, 1), "float32")), optimizer)
    after, metrics = make_train_step(model, lambda p, y, mask: p.sum(), optimizer)(state, batch, None)
    assert float(metrics["grad_norm"]) == pytest.approx(5e19, rel=1e-6)
    np.testing.assert_allclose(after.params.kernel, [[-0.6], [-0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.polyak_sgd(1.0),
        optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()),
        clipped(optax.lbfgs(), norm=10.0),
    ],
    ids=["polyak", "plateau", "lbfgs"],
)
def test_an_optimizer_that_asks_for_the_loss_is_given_it(optimizer):
    batch = draw()
    step, state = make_train_step(LINEAR, mean_squared_error, optimizer), start(LINEAR, optimizer, batch)
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch, None)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert int(state.skipped) == 0


def test_polyaks_step_is_the_loss_over_the_squared_gradient():
    batch, optimizer = draw(), optax.polyak_sgd(1e3)
    state = start(LINEAR, optimizer, batch)
    kernel = np.asarray(state.params.kernel)
    gradient = linear_gradient(kernel, batch)
    after, metrics = make_train_step(LINEAR, mean_squared_error, optimizer)(state, batch, None)
    expected = kernel - float(metrics["loss"]) / np.sum(gradient**2) * gradient
    np.testing.assert_allclose(after.params.kernel, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(1e-3, mu_dtype="float32"), optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.01, 10))],
    ids=["wider moments", "a schedule"],
)
def test_optimizers_that_promote_train_half_precision_under_strict_promotion(optimizer):
    model = seqjax.Dense(1, dtypes=seqjax.DTypes("bfloat16"))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, "bfloat16"), draw())
    state = start(model, optimizer, batch)
    after, metrics = make_train_step(model, mean_squared_error, optimizer)(state, batch, None)
    assert not metrics["skipped"]
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


def test_training_on_padding_equals_training_on_the_trimmed_sequence():
    batch = draw(T=6, B=1)
    padded = Batch(
        np.concatenate([batch.xs, np.full((3, 1, 3), np.nan)]),
        np.concatenate([batch.ys, np.full((3, 1, 1), np.nan)]),
        mask=np.arange(9)[:, None] < 6,
    )
    step = make_train_step(RECURRENT, mean_squared_error, SGD)
    state = start(RECURRENT, SGD, batch)
    trimmed, _ = step(state, batch, None)
    masked, metrics = step(state, padded, None)
    assert not metrics["skipped"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), trimmed.params, masked.params)


def test_the_loss_sees_the_mask_of_the_outputs():
    model = seqjax.Conv1D(1, width=2, stride=2, padding="valid", dtypes=F64)
    seen = []

    def loss(predictions, targets, mask):
        jax.debug.callback(lambda m: seen.append(m.tolist()), mask)
        return mean_squared_error(predictions, targets, mask)

    mask = np.array([1, 1, 1, 0, 1, 1], bool)[:, None]  # windows (0, 1), (2, 3), (4, 5)
    batch = Batch(draw(T=6, B=1).xs, np.zeros((3, 1, 1)), mask=mask)
    state = start(model, SGD, batch)
    jax.block_until_ready(make_train_step(model, loss, SGD)(state, batch, None))
    jax.effects_barrier()
    assert seen == [[[True], [False], [True]]]


def test_step_t_uses_the_runs_key_folded_with_t():
    model = seqjax.Serial(seqjax.Dropout(0.5), LINEAR)
    batch, key = draw(T=20), jax.random.key(7)
    step = make_train_step(model, mean_squared_error, optax.sgd(0.0))
    state = start(model, optax.sgd(0.0), batch)
    for t in range(2):
        state, metrics = step(state, batch, key)
        _, ys = model.apply(
            state.params, model.initial_carry(state.params, (2,)), batch.xs, key=jax.random.fold_in(key, t)
        )
        np.testing.assert_allclose(metrics["loss"], np.mean((ys - batch.ys) ** 2), rtol=1e-12)


def test_without_a_key_nothing_is_dropped():
    model = seqjax.Serial(seqjax.Dropout(0.5), LINEAR)
    batch = draw()
    state = start(model, SGD, batch)
    _, metrics = make_train_step(model, mean_squared_error, SGD)(state, batch, None)
    kernel = np.asarray(state.params[1].kernel)
    np.testing.assert_allclose(metrics["loss"], np.mean((batch.xs @ kernel - batch.ys) ** 2), rtol=1e-12)


def test_steps_of_one_shape_are_traced_once():
    traces = []

    def loss(predictions, targets, mask):
        traces.append(predictions.shape)
        return mean_squared_error(predictions, targets, mask)

    # A python float among the params is weakly typed and must not cause a second trace.
    model = seqjax.Dense(1, bias_init=lambda key, shape, dtype: jnp.broadcast_to(0.0, shape))
    batch = jax.tree.map(lambda leaf: leaf.astype(np.float32), draw())
    params = model.init(jax.random.key(0), batch.xs)
    params = params._replace(bias=jnp.full((1,), 0.0))
    step = make_train_step(model, loss, SGD)
    state = init_state(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), SGD)
    for _ in range(3):
        state, _ = step(state, batch, None)
    assert len(traces) == 1


def test_init_state_has_strong_types_and_buffers_of_its_own():
    params = (jnp.asarray(1.0), jnp.ones(3))
    optimizer = optax.chain(optax.trace(0.9), optax.contrib.schedule_free_sgd(0.1))
    state = init_state(params, optimizer)
    leaves = jax.tree.leaves(state)
    assert not any(leaf.weak_type for leaf in leaves)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in [*leaves, *params]]
    assert len(set(pointers)) == len(pointers)


def test_a_donated_state_trains_to_the_same_bits():
    batch = draw()
    ends = []
    for donate in (False, True):
        step = make_train_step(RECURRENT, mean_squared_error, ADAM, donate=donate)
        state = start(RECURRENT, ADAM, batch)
        for _ in range(3):
            state, _ = step(state, batch, None)
        ends.append(state)
    assert_same_bits(*ends)


def test_batch_major_trains_as_time_major_does():
    batch = draw(T=5, B=2)._replace(mask=np.arange(5)[:, None] < np.array([5, 3]))
    swapped = jax.tree.map(lambda leaf: np.swapaxes(leaf, 0, 1), batch)
    loss = AtLastStep(mean_squared_error)
    state = start(RECURRENT, SGD, batch)
    expected, _ = make_train_step(RECURRENT, loss, SGD)(state, batch, None)
    got, _ = make_train_step(seqjax.BatchMajor(RECURRENT), loss, SGD)(state, swapped, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), expected.params, got.params)


def test_ids_without_a_feature_axis_are_trained_on():
    model = seqjax.Serial(seqjax.Embed(5, 3), seqjax.RNN(seqjax.Simple(4)), seqjax.Dense(5))
    ids = np.random.default_rng(0).integers(0, 5, (7, 2)).astype(np.int32)
    batch = Batch(ids, np.roll(ids, -1, axis=0))
    optimizer = optax.adam(0.1)
    state = start(model, optimizer, batch)
    step = make_train_step(model, cross_entropy, optimizer)
    state, first = step(state, batch, None)
    for _ in range(20):
        state, last = step(state, batch, None)
    assert last["loss"] < first["loss"] / 2


def test_evaluation_weighs_batches_by_the_steps_each_mean_is_over():
    model = seqjax.Dense(3, dtypes=F64)
    rng = np.random.default_rng(0)
    batches = [
        Batch(rng.normal(size=(4, B, 2)), rng.integers(0, 3, (4, B)), mask=rng.uniform(size=(4, B)) < share)
        for B, share in ((5, 0.2), (2, 0.9))
    ]
    params = model.init(jax.random.key(0), batches[0].xs)
    hits, last_hits, of_two = [], [], []
    for xs, ys, mask, _ in batches:
        right = (xs @ np.asarray(params.kernel)).argmax(-1) == ys
        hits += right[mask].tolist()
        last_hits += [right[np.flatnonzero(m)[-1], b] for b, m in enumerate(mask.T) if m.any()]
        of_two += [hit for b, m in enumerate(mask.T) for hit in right[np.flatnonzero(m)[-2:], b]]
    measures = {"accuracy": accuracy, "last": AtLastStep(accuracy), "last two": AtLastStep(accuracy, 2)}
    got = evaluate(make_eval_step(model, measures), params, batches)
    expected = {"accuracy": np.mean(hits), "last": np.mean(last_hits), "last two": np.mean(of_two)}
    assert got == pytest.approx(expected, rel=1e-12)


def test_evaluation_draws_nothing_at_random():
    model = seqjax.Serial(seqjax.Dropout(0.9), LINEAR)
    batch = draw()
    params = model.init(jax.random.key(0), batch.xs)
    kernel = np.asarray(params[1].kernel)
    got = evaluate(make_eval_step(model, {"mse": mean_squared_error}), params, [batch])
    assert got == pytest.approx({"mse": np.mean((batch.xs @ kernel - batch.ys) ** 2)}, rel=1e-12)


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no batches"):
        evaluate(make_eval_step(LINEAR, {}), (), iter(()))
