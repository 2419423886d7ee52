# SPDX-License-Identifier: Apache-2.0
"""`fold` reduces a stream's outputs as if all of them had been there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seqjax
from seqjax.testing import assert_close, jitter
from tests.common import F64

MODEL = seqjax.Serial(seqjax.RNN(seqjax.LSTM(4, dtypes=F64)), seqjax.RNN(seqjax.GRU(3, dtypes=F64)))
STRIDED = seqjax.Serial(
    seqjax.Conv1D(3, width=4, stride=2, padding="causal", dtypes=F64), seqjax.RNN(seqjax.GRU(3, dtypes=F64))
)


def setup(model, T, seed=0):
    random = np.random.default_rng(seed)
    xs = jnp.asarray(random.normal(size=(T, 2, 2)))
    params = jitter(model.init(jax.random.key(0), xs), random)
    carry = jitter(model.initial_carry(params, (2,)), random) if model is MODEL else model.initial_carry(params, (2,))
    mask, resets = (jnp.asarray(random.random((T, 2)) < rate) for rate in (0.8, 0.2))
    steps = -(-T // model.stride)
    return params, carry, xs, mask, resets, jnp.asarray(random.normal(size=(steps, 2, 3)))


def error(total, ys, targets):
    return total + jnp.sum(jnp.sin(ys) * targets)


@pytest.mark.parametrize("model", [MODEL, STRIDED], ids=["stack", "strided"])
@settings(max_examples=3, deadline=None)
@given(T=st.integers(1, 23), segment=st.integers(1, 8))
def test_fold_equals_the_whole_in_value_and_gradients(model, T, segment):
    params, carry, xs, mask, resets, targets = setup(model, T)

    def whole(params, carry, xs):
        after, ys = model.apply(params, carry, xs, mask=mask, resets=resets)
        return error(0.0, ys, targets), after

    def folded(params, carry, xs):
        after, total = seqjax.fold(
            model, params, carry, xs, error, jnp.zeros(()),
            segment=segment * model.stride, extras=targets, mask=mask, resets=resets,
        )  # fmt: skip
        return total, after

    diff = (0, 1, 2) if model is MODEL else (0, 2)
    expected, actual = (jax.jit(jax.value_and_grad(f, diff, has_aux=True))(params, carry, xs) for f in (whole, folded))
    assert_close(actual, expected, 1e-10)


def test_extras_may_be_as_long_as_the_inputs():
    params, carry, xs, *_ = setup(STRIDED, 12)

    def add(total, ys, pair):
        return total + pair.sum()

    _, total = seqjax.fold(STRIDED, params, carry, xs, add, jnp.zeros(()), segment=4, extras=xs)
    np.testing.assert_allclose(total, xs.sum(), atol=1e-12)


def test_a_segment_may_be_a_number_of_numpy():
    params, carry, xs, *_ = setup(MODEL, 7)
    folds = [
        seqjax.fold(MODEL, params, carry, xs, lambda total, ys: total + ys.sum(), jnp.zeros(()), segment=segment)
        for segment in (3, np.int64(3))
    ]
    jax.tree.map(np.testing.assert_array_equal, *folds)


def test_a_carry_in_a_list_stays_one():
    params, carry, xs, *_, targets = setup(MODEL, 9)
    total = functools.partial(
        seqjax.fold, MODEL, params, xs=xs, fn=error, init=jnp.zeros(()), segment=4, extras=targets
    )
    in_a_list, expected = total(carry=list(carry)), total(carry=carry)
    assert isinstance(in_a_list[0], list)
    assert_close((tuple(in_a_list[0]), in_a_list[1]), expected, 1e-12)


def test_a_gradient_needs_memory_for_a_segment_not_for_the_sequence():
    model = seqjax.RNN(seqjax.GRU(32, dtypes=F64))

    def temporaries(T):
        xs = jax.ShapeDtypeStruct((T, 1, 1), jnp.float64)
        params = jax.eval_shape(lambda key: model.init(key, xs), jax.random.key(0))
        carry = jax.eval_shape(lambda p: model.initial_carry(p, (1,)), params)

        def loss(params, carry, xs):
            fn = lambda total, ys: total + jnp.sum(ys**2)  # noqa: E731
            return seqjax.fold(model, params, carry, xs, fn, jnp.zeros(()), segment=100)[1]

        return jax.jit(jax.grad(loss)).lower(params, carry, xs).compile().memory_analysis().temp_size_in_bytes

    outputs = 100_000 * 32 * 8
    assert temporaries(100_000) < outputs / 10


def test_a_length_that_is_not_known_is_refused():
    params, carry, *_ = setup(MODEL, 4)
    xs = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 2, 2"), jnp.float64)
    reduced = jax.jit(lambda xs: seqjax.fold(MODEL, params, carry, xs, lambda t, ys: t + ys.sum(), 0.0, segment=2)[1])
    with pytest.raises(ValueError, match=r"length it knows, got T = t; export apply"):
        jax.export.export(reduced)(xs)


def test_a_cell_is_no_layer():
    with pytest.raises(ValueError, match=r"fold takes seqjax Layers, got GRU\(4\); a Cell becomes one as RNN"):
        seqjax.fold(seqjax.GRU(4), None, None, jnp.ones((3, 2)), lambda t, y: t, jnp.zeros(()), segment=1)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (seqjax.Bidirectional(MODEL), {"segment": 4}, "does not"),
        (STRIDED, {"segment": 3}, "multiple of the model's stride 2"),
        (MODEL, {"segment": 0}, "positive integer"),
        (MODEL, {"segment": True}, "positive integer"),
        (MODEL, {"segment": 2.0}, "positive integer"),
        (MODEL, {"segment": 4, "extras": 2.0}, "expected 12 steps"),
        (MODEL, {"segment": 4, "extras": jnp.ones((5, 2))}, "expected 12 steps"),
    ],
)
def test_what_cannot_be_folded_is_refused(model, options, message):
    xs = jnp.ones((12, 2, 2))
    params = model.init(jax.random.key(0), xs)
    with pytest.raises(ValueError, match=message):
        seqjax.fold(model, params, model.initial_carry(params, (2,)), xs, lambda t, y, *e: t, jnp.zeros(()), **options)
