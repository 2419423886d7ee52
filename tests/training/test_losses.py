# SPDX-License-Identifier: Apache-2.0
"""Losses against NumPy, with and without masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.training import (
    AtLastStep,
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    huber,
    mean_absolute_error,
    mean_squared_error,
)
from seqjax.training.losses import last_valid
from tests.common import sigmoid

T, B, F = 5, 3, 4


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def numpy_huber(p, y):
    error = np.abs(p - y)
    return np.where(error <= 1, error**2 / 2, error - 0.5)


def numpy_binary_cross_entropy(p, y):
    q = sigmoid(p)
    return -(y * np.log(q) + (1 - y) * np.log(1 - q))


def numpy_cross_entropy(p, y):
    return -np.take_along_axis(log_softmax(p), y[..., None], -1)


# loss, the same for every element in NumPy, whether the targets are labels
LOSSES = [
    pytest.param(mean_squared_error, lambda p, y: (p - y) ** 2, False, id="mean_squared_error"),
    pytest.param(mean_absolute_error, lambda p, y: np.abs(p - y), False, id="mean_absolute_error"),
    pytest.param(huber, numpy_huber, False, id="huber"),
    pytest.param(binary_cross_entropy, numpy_binary_cross_entropy, False, id="binary_cross_entropy"),
    pytest.param(cross_entropy, numpy_cross_entropy, True, id="cross_entropy"),
    pytest.param(accuracy, lambda p, y: (p.argmax(-1) == y)[..., None], True, id="accuracy"),
]


def draw(labels):
    rng = np.random.default_rng(0)
    predictions = 2 * rng.normal(size=(T, B, F))
    targets = rng.integers(0, F, (T, B)) if labels else rng.uniform(size=(T, B, F))
    mask = rng.uniform(size=(T, B)) < 0.6
    return predictions, targets, mask


@pytest.mark.parametrize(("loss", "elementwise", "labels"), LOSSES)
def test_value_is_the_mean_over_all_steps_and_features(loss, elementwise, labels):
    predictions, targets, _ = draw(labels)
    np.testing.assert_allclose(loss(predictions, targets), elementwise(predictions, targets).mean(), rtol=1e-12)


@pytest.mark.parametrize(("loss", "elementwise", "labels"), LOSSES)
def test_masked_value_is_the_mean_over_valid_steps(loss, elementwise, labels):
    predictions, targets, mask = draw(labels)
    expected = elementwise(predictions, targets)[mask].mean()
    np.testing.assert_allclose(loss(predictions, targets, jnp.asarray(mask)), expected, rtol=1e-12)


@pytest.mark.parametrize(("loss", "elementwise", "labels"), LOSSES)
def test_nan_in_masked_steps_poisons_no_value_and_no_gradient(loss, elementwise, labels):
    predictions, targets, mask = draw(labels)
    bad_predictions = np.where(mask[..., None], predictions, np.nan)
    bad_targets = np.where(mask, targets, -(10**6)) if labels else np.where(mask[..., None], targets, np.inf)
    value, gradient = jax.value_and_grad(loss)(
        jnp.asarray(bad_predictions), jnp.asarray(bad_targets), jnp.asarray(mask)
    )
    np.testing.assert_allclose(value, elementwise(predictions, targets)[mask].mean(), rtol=1e-12)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize(("loss", "elementwise", "labels"), LOSSES)
def test_no_valid_step_gives_zero_and_zero_gradient(loss, elementwise, labels):
    predictions, targets, mask = draw(labels)
    value, gradient = jax.value_and_grad(loss)(
        jnp.full_like(predictions, jnp.nan), jnp.asarray(targets), jnp.zeros_like(mask)
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(predictions))


@pytest.mark.parametrize(("loss", "elementwise", "labels"), LOSSES)
def test_half_precision_is_summed_in_float32(loss, elementwise, labels):
    predictions, targets, mask = draw(labels)
    half = jnp.asarray(predictions, jnp.bfloat16)
    targets = jnp.asarray(targets if labels else targets.astype(np.float32))
    value = loss(half, targets, jnp.asarray(mask))
    assert value.dtype == jnp.float32
    expected = elementwise(np.asarray(half, np.float64), np.asarray(targets))[mask].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_last_step_is_each_sequences_own():
    predictions, targets, _ = draw(False)
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)  # last valid: 3, 2, none
    expected = np.mean([(predictions[3, 0] - targets[3, 0]) ** 2, (predictions[2, 1] - targets[2, 1]) ** 2])
    np.testing.assert_allclose(AtLastStep(mean_squared_error)(predictions, targets, jnp.asarray(mask)), expected)


def test_last_step_without_a_mask_is_the_last():
    predictions, targets, _ = draw(True)
    expected = numpy_cross_entropy(predictions[-1], targets[-1]).mean()
    np.testing.assert_allclose(AtLastStep(cross_entropy)(predictions, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("mask", [None, np.ones((T, B), bool)])
def test_last_step_takes_targets_of_as_many_steps(mask):
    predictions, targets, _ = draw(False)
    with pytest.raises(ValueError, match=r"one target a step, 5 steps, got float64\[4, 3, 4\].*subsample"):
        AtLastStep(mean_squared_error)(predictions, targets[1:], mask)


def test_the_last_steps_are_each_sequences_own_too():
    predictions, targets, _ = draw(False)
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    last = [(1, 0), (3, 0), (0, 1), (2, 1)]  # (step, sequence): two of the first's three, both of the second's
    expected = np.mean([(predictions[at] - targets[at]) ** 2 for at in last])
    measure = AtLastStep(mean_squared_error, 2)
    np.testing.assert_allclose(measure(predictions, targets, jnp.asarray(mask)), expected)
    np.testing.assert_allclose(measure(predictions, targets), np.mean((predictions[3:] - targets[3:]) ** 2))


@pytest.mark.parametrize(("given", "wrong"), [((3,), "loss must be a function, .* got 3"), ((accuracy, 0), "steps")])
def test_last_step_takes_a_loss_and_a_number_of_steps(given, wrong):
    with pytest.raises(ValueError, match=f"AtLastStep: {wrong}"):
        AtLastStep(*given)


def test_last_valid_of_an_empty_sequence_is_nothing():
    assert not last_valid(jnp.zeros((4, 2), bool)).any()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((T, B)), r"predictions \(5, 3, 4\) and targets \(5, 3\) must have the same shape.*subsample the"),
        (np.zeros((T, B, F), np.float32), "predictions are float64, targets float32; cast one"),
    ],
)
def test_targets_that_would_broadcast_or_promote_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        mean_squared_error(jnp.zeros((T, B, F)), jnp.asarray(targets))


@pytest.mark.parametrize("targets", [np.zeros((T, B)), np.zeros((T, B, 1), int), np.zeros(T, int)])
@pytest.mark.parametrize("loss", [cross_entropy, accuracy])
def test_labels_of_wrong_form_are_refused(loss, targets):
    with pytest.raises(ValueError, match=rf"{loss.__name__} takes integer labels of shape \(5, 3\)"):
        loss(jnp.zeros((T, B, F)), jnp.asarray(targets))


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
@pytest.mark.parametrize("label", [-1, F, 100])
def test_labels_that_are_no_class_never_pass_for_one(label, dtype):
    predictions, targets, mask = draw(labels=True)
    targets = targets.astype(dtype)
    targets[0, 0], mask[0, 0] = label, False
    hidden = cross_entropy(predictions, targets, jnp.asarray(mask))
    np.testing.assert_allclose(hidden, numpy_cross_entropy(predictions, targets % F)[mask].mean())
    for loss in (cross_entropy, accuracy):
        with pytest.raises(
            ValueError, match=rf"{loss.__name__} takes labels in \[0, 4\), got {label} .* mask the steps"
        ):
            loss(predictions, targets)
        assert np.isnan(jax.jit(loss)(predictions, targets))


@pytest.mark.parametrize("loss", [cross_entropy, accuracy])
def test_logits_that_are_nan_are_of_no_class(loss):
    predictions, targets, _ = draw(labels=True)
    predictions[0, 0, 1] = np.nan
    assert np.isnan(loss(predictions, targets))


@pytest.mark.parametrize("mask", [np.ones((T, B, 1), bool), np.ones((B, T), bool), np.ones((T, B))])
def test_a_mask_of_wrong_form_is_refused(mask):
    with pytest.raises(ValueError, match=r"mask must be bool \(5, 3\)"):
        mean_squared_error(jnp.zeros((T, B, F)), jnp.zeros((T, B, F)), jnp.asarray(mask))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_labels_of_any_integer_type_are_counted(dtype):
    logits = jnp.asarray([[0.0, 1.0], [3.0, 2.0], [0.0, 1.0]], "float32")
    assert float(accuracy(logits, jnp.asarray([1, 1, 1], dtype))) == pytest.approx(2 / 3)
