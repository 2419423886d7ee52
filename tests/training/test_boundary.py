# SPDX-License-Identifier: Apache-2.0
"""What is given wrong is named, with what to give instead."""

import dataclasses

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
    fit,
    init_state,
    make_eval_step,
    make_train_step,
    mean_squared_error,
)
from tests.training.runs import MODEL, OPTIMIZER, assert_same_bits, make_batch

BATCH = make_batch(0, 0)
PARAMS = MODEL.init(jax.random.key(0), BATCH.xs)
EVAL_STEP = make_eval_step(MODEL, {"mse": mean_squared_error})


def step(state=None, batch=BATCH, key=None):
    return make_train_step(MODEL, mean_squared_error, OPTIMIZER)(state or init_state(PARAMS, OPTIMIZER), batch, key)


def fitted(make_batch=make_batch, **options):
    return fit(MODEL, make_batch, **{"steps": 1, "loss": mean_squared_error, "optimizer": OPTIMIZER, **options})


def test_a_tuple_of_its_fields_is_a_batch_wherever_one_is_taken():
    assert_same_bits(step(batch=tuple(BATCH)), step())
    assert_same_bits(fitted(lambda seed, t: tuple(make_batch(seed, t))).state, fitted().state)
    assert evaluate(EVAL_STEP, PARAMS, [tuple(BATCH)]) == evaluate(EVAL_STEP, PARAMS, [BATCH])


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A loss that cannot be hashed."""

    weights: np.ndarray

    def __call__(self, predictions, targets, mask):
        return mean_squared_error(predictions, targets, mask)


WRONG = {
    "batch dict": (lambda: step(batch=BATCH._asdict()), r"a batch is Batch\(xs, ys, mask, resets\).*got a dict"),
    "batch xs": (lambda: step(batch=BATCH.xs), r"a batch is .*got float32\[4, 3, 2\]"),
    "params": (lambda: step(PARAMS), r"a TrainState, init_state\(params, optimizer\), got a tuple"),
    "seed": (lambda: step(key=0), r"key must be one random key, such as jax.random.key\(0\), or None, got int"),
    "two keys": (lambda: step(key=jax.random.split(jax.random.key(0))), r"one random key.*got key<fry>\[2\]"),
    "batches": (lambda: fitted([BATCH, BATCH]), r"make_batch must be a function, .*make_batch\(seed, t\).*a list"),
    "loss": (lambda: fitted(loss="mse"), r"loss must be a function, .*loss\(predictions, targets, mask\).*'mse'"),
    "evaluate": (lambda: fitted(evaluate=[BATCH]), r"evaluate must be a function, .*evaluate\(params\).*a list"),
    "rate": (lambda: fitted(optimizer=1e-3), r"optimizer must be an optax transformation .*got 0.001"),
    "step loss": (lambda: make_train_step(MODEL, None, OPTIMIZER), r"loss must be a function.*got None"),
    "step rate": (lambda: make_train_step(MODEL, mean_squared_error, 0.1), r"optimizer must be an optax"),
    "state rate": (lambda: init_state(PARAMS, optax.sgd), r"optimizer must be an optax transformation"),
    "clipped rate": (lambda: clipped(0.1, norm=1.0), r"optimizer must be an optax transformation .*got 0.1"),
    "measure": (lambda: make_eval_step(MODEL, accuracy), r"by name, such as {'accuracy': accuracy}, got <function"),
    "measure name": (lambda: make_eval_step(MODEL, {"a": "b"}), r"a must be a function.*got 'b'"),
    "loss's value": (lambda: fitted(loss=lambda p, t, m: 3.0), r"the loss must be a .*scalar, shape \(\), got 3.0"),
    "loss's shape": (lambda: fitted(loss=lambda p, t, m: (p - t).mean(0)), r"the loss must .*got float32\[3, 1\]"),
    "loss and more": (lambda: fitted(loss=lambda p, t, m: ((p - t).mean(), 1)), r"the loss must .*got a tuple"),
    "measure's shape": (
        lambda: evaluate(make_eval_step(MODEL, {"a": lambda p, t, m: p - t}), PARAMS, [BATCH]),
        r"the metric 'a' must be a floating-point scalar",
    ),
    "loss with arrays": (
        lambda: make_train_step(MODEL, Weighted(np.ones(2)), OPTIMIZER),
        r"loss must be hashable .*tuples",
    ),
    "no xs": (lambda: step(batch=Batch(None, BATCH.ys)), r"xs must be an array .*got None"),
    "listed xs": (lambda: fitted(lambda s, t: ([[[1.0]]], BATCH.ys)), r"xs must be an array .*got \["),
    "training seed": (lambda: fitted(seed="a"), r"seed must be an integer, got 'a'"),
    "resume": (lambda: fitted(resume=2.0, run_dir="nowhere"), r"resume must be an integer, got 2.0"),
    "no layer": (lambda: make_eval_step(3, {"a": accuracy}), r"make_eval_step takes seqjax Layers, got 3"),
    "params as model": (lambda: make_eval_step(PARAMS, {"a": accuracy}), r"takes seqjax Layers, got a tuple"),
    "model as step": (lambda: evaluate(MODEL, PARAMS, [BATCH]), r"step must be a function.*make_eval_step"),
    "state as params": (lambda: evaluate(EVAL_STEP, init_state(PARAMS, OPTIMIZER), [BATCH]), r"state.params"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_training_cannot_take_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("loss", "ys", "message"),
    [
        (cross_entropy, np.zeros(8, int), r"takes ys \[B, T, ...\], got int\d\d\[8\].*labels \[B, 1\]"),
        (mean_squared_error, np.zeros((8, 3), np.float32), r"time-major.*were given as float32\[8, 3\]"),
        (cross_entropy, np.zeros((8, 5), int), r"time-major.*were given as int\d\d\[8, 5\]"),
    ],
    ids=["one axis", "no time", "every step"],
)
def test_targets_of_a_batch_major_model_are_named_as_they_were_given(loss, ys, message):
    model = seqjax.BatchMajor(seqjax.Serial(seqjax.RNN(seqjax.GRU(4)), seqjax.Last(), seqjax.Dense(3)))
    batch = Batch(jnp.ones((8, 5, 2), jnp.float32), ys)
    params = model.init(jax.random.key(0), batch.xs)
    with pytest.raises(ValueError, match=message):
        make_train_step(model, loss, OPTIMIZER)(init_state(params, OPTIMIZER), batch, None)
    with pytest.raises(ValueError, match=message):
        make_eval_step(model, {"loss": loss})(params, batch)


def test_a_mask_of_a_batch_major_model_is_refused_as_it_was_given():
    model = seqjax.BatchMajor(seqjax.RNN(seqjax.GRU(3)))
    xs, mask = jnp.ones((8, 5, 2), jnp.float32), jnp.ones((5, 8), bool)
    params = model.init(jax.random.key(0), xs)
    message = r"mask \[B, T, ...\], \(8, 5\), got \(5, 8\)"
    with pytest.raises(ValueError, match=message):
        make_train_step(model, mean_squared_error, OPTIMIZER)(
            init_state(params, OPTIMIZER), Batch(xs, jnp.zeros((8, 5, 3)), mask), None
        )
    with pytest.raises(ValueError, match=message):
        seqjax.diagnostics.trajectories(model, params, xs, mask=mask)
    with pytest.raises(ValueError, match=message):
        seqjax.layers.calibrate(model, params, [(xs, mask)])


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_a_label_for_a_sequence_is_no_target_of_each_step(shape):
    with pytest.raises(ValueError, match=r"one target a step, 5 steps, got int\d\d\[.*\]; .* use Last .*\[1, B\]"):
        AtLastStep(cross_entropy)(jnp.zeros((5, 3, 2)), jnp.zeros(shape, int))
