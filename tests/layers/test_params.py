# SPDX-License-Identifier: Apache-2.0
"""Params, carries and keys that do not belong to a layer are refused by name."""

import re

import jax
import jax.numpy as jnp
import pytest

import seqjax
from seqjax.layers import Bidirectional, Conv1D, Embed

KEY = jax.random.key(0)
XS = jnp.ones((5, 2, 3), jnp.float32)
IDS = jnp.zeros((5, 2), int)


@pytest.mark.parametrize(
    ("drawn", "given", "xs", "message"),
    [
        (seqjax.Dense(2), seqjax.Dense(7), XS, "kernel of shape (D, 7), got (3, 2)"),
        (seqjax.Dense(2), seqjax.Dense(2, use_bias=False), XS, "has no bias with these options"),
        (seqjax.Dense(2, use_bias=False), seqjax.Dense(2), XS, "has bias with these options, and the params have none"),
        (Conv1D(2, 4), Conv1D(2, 2), XS, "kernel of shape (2, D, 2), got (4, 3, 2)"),
        (Conv1D(1, 2), Conv1D(1, 4), XS, "kernel of shape (4, D, 1), got (2, 3, 1)"),
        (Conv1D(1, 2, use_bias=False), Conv1D(1, 2), XS, "has bias"),
        (Embed(4, 2), Embed(10, 2), IDS, "table of shape (10, 2), got (4, 2)"),
        (seqjax.LayerNorm(use_scale=False), seqjax.LayerNorm(), XS, "has scale"),
        (seqjax.LayerNorm(), seqjax.BatchNorm(), XS, "has params BatchNormParams, got a LayerNormParams"),
    ],
)
def test_params_of_other_options_or_sizes_are_refused(drawn, given, xs, message):
    params = drawn.init(KEY, xs)
    carry = given.initial_carry(params, (2,))
    with pytest.raises(ValueError, match=re.escape(message)):
        given.apply(params, carry, xs)


@pytest.mark.parametrize("layer", [seqjax.Dense(2), Embed(4, 2), seqjax.LayerNorm(), seqjax.BatchNorm(), Conv1D(1, 1)])
def test_no_params_are_refused_by_the_layers_name(layer):
    with pytest.raises(ValueError, match=rf"{type(layer).__name__}.* has params \w+Params, got None"):
        layer.apply(None, (), IDS if isinstance(layer, Embed) else XS)


def test_a_carry_of_another_stride_loses_no_reset():
    every, second = Conv1D(1, 1), Conv1D(1, 1, stride=2)
    params = every.init(KEY, XS)
    with pytest.raises(ValueError, match=r"the carry does not fit.*start from initial_carry"):
        second.apply(params, every.initial_carry(params, (2,)), XS)


def test_a_layer_that_changes_time_is_refused_though_one_step_did_not_show_it():
    model = Bidirectional(Conv1D(1, 1, stride=2))
    params = model.init(KEY, XS[:1])
    with pytest.raises(ValueError, match=r"map 5 steps to \(3, 3\)"):
        model.apply(params, model.initial_carry(params, (2,)), XS)


@pytest.mark.parametrize(
    "model",
    [
        seqjax.RNN(seqjax.GRU(3)),
        seqjax.Serial(seqjax.RNN(seqjax.GRU(3)), seqjax.Dropout(0.1)),
        seqjax.Dropout(0.1),
        Bidirectional(seqjax.RNN(seqjax.GRU(3))),
    ],
)
@pytest.mark.parametrize("key", [0, True, "training", jax.random.split(KEY, 3)])
def test_what_is_not_one_key_is_refused(model, key):
    params = model.init(KEY, XS)
    with pytest.raises(ValueError, match="key must be one random key"):
        model.apply(params, model.initial_carry(params, (2,)), XS, key=key)


@pytest.mark.parametrize("model", [seqjax.RNN(seqjax.GRU(3)), seqjax.Serial(seqjax.Dense(3))])
def test_a_seed_in_place_of_a_key_is_refused(model):
    with pytest.raises(ValueError, match="key must be one random key"):
        model.init(0, XS)


@pytest.mark.parametrize("layer", [seqjax.RNN(seqjax.GRU(3)), Conv1D(2, 3), Conv1D(2, 3, padding="same")])
def test_a_batch_size_in_place_of_a_shape_is_refused(layer):
    with pytest.raises(ValueError, match=r"batch_shape must be a tuple, e\.g\. \(32,\)"):
        layer.initial_carry(layer.init(KEY, XS), 2)
