# SPDX-License-Identifier: Apache-2.0
"""Dropout, BatchNorm and calibrate: NumPy values, padding, what is random and what has a gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from seqjax.dtypes import DTypes
from seqjax.layers.batch_major import BatchMajor
from seqjax.layers.compose import Serial
from seqjax.layers.conv import Conv1D
from seqjax.layers.pointwise import Dense, Embed
from seqjax.layers.regularize import BatchNorm, BatchNormParams, Dropout, calibrate
from seqjax.testing import assert_close
from tests.common import F64

KEY = jax.random.key(7)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def lengths_mask(T, *lengths):
    return np.arange(T)[:, None] < np.array(lengths)


def batch_norm_params(D):
    """Unlike those that `init` gives, so that each of them shows."""
    return BatchNormParams(*(jnp.linspace(a, a + 1.0, D) for a in (0.5, -2.0, 3.0, 0.25)))


# -- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "key"), [(Dropout(0.4), None), (Dropout(0.0), KEY), (Dropout(0, True), KEY)])
def test_dropout_without_key_or_rate_is_the_identity(layer, key):
    xs = random(0, 4, 2, 3)
    _, ys = layer.apply((), (), xs, key=key)
    np.testing.assert_array_equal(ys, xs)


@pytest.mark.parametrize("variational", [False, True])
def test_rate_is_the_probability_of_dropping(variational):
    rate, xs = 0.2, jnp.ones((3, 100, 200))
    _, ys = Dropout(rate, variational).apply((), (), xs, key=KEY)
    np.testing.assert_allclose(np.unique(ys), [0, 1 / (1 - rate)], rtol=1e-15)
    draws = ys[:1] if variational else ys
    four_sigma = 4 * math.sqrt(rate * (1 - rate) / draws.size)
    assert float((draws == 0).mean()) == pytest.approx(rate, abs=four_sigma)


def test_variational_dropout_holds_one_mask_for_a_sequence():
    xs = jnp.ones((6, 4, 50))
    _, ys = Dropout(0.5, variational=True).apply((), (), xs, key=KEY)
    np.testing.assert_array_equal(ys, np.broadcast_to(ys[0], ys.shape))
    assert (ys[0, 0] != ys[0, 1]).any()


def test_ordinary_dropout_draws_at_every_step():
    _, ys = Dropout(0.5).apply((), (), jnp.ones((2, 50)), key=KEY)
    assert (ys[0] != ys[1]).any()


def test_dropout_is_a_function_of_its_key():
    layer, xs = Dropout(0.5), jnp.ones((5, 20))
    _, ys = layer.apply((), (), xs, key=KEY)
    np.testing.assert_array_equal(jax.jit(layer.apply)((), (), xs, key=KEY)[1], ys)
    assert (layer.apply((), (), xs, key=jax.random.key(8))[1] != ys).any()


def test_dropout_gradient_is_the_mask():
    layer, xs = Dropout(0.5), random(0, 5, 20)
    ys, transpose = jax.vjp(lambda x: layer.apply((), (), x, key=KEY)[1], xs)
    np.testing.assert_allclose(transpose(jnp.ones_like(ys))[0], np.where(ys == 0, 0.0, 2.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dropout_keeps_the_dtype(dtype):
    assert Dropout(0.3).apply((), (), jnp.ones((3, 2), dtype), key=KEY)[1].dtype == dtype


# -- batch normalization -------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_batch_norm_in_training_against_numpy(batch):
    xs, params = 5 + 2 * random(0, 6, *batch, 4), batch_norm_params(4)
    _, ys = BatchNorm(epsilon=1e-3, dtypes=F64).apply(params, (), xs, key=KEY)
    axes = tuple(range(xs.ndim - 1))
    unit = (xs - xs.mean(axes)) / np.sqrt(xs.var(axes) + 1e-3)
    np.testing.assert_allclose(ys, params.scale * unit + params.offset, rtol=1e-12, atol=1e-12)


def test_batch_norm_in_evaluation_uses_the_population():
    xs, params = random(0, 6, 2, 4), batch_norm_params(4)
    _, ys = BatchNorm(epsilon=1e-3, dtypes=F64).apply(params, (), xs)
    unit = (xs - np.asarray(params.mean)) / np.sqrt(np.asarray(params.var) + 1e-3)
    np.testing.assert_allclose(ys, params.scale * unit + params.offset, rtol=1e-12)
    _, one = BatchNorm(epsilon=1e-3, dtypes=F64).apply(params, (), xs[:1, 0])
    np.testing.assert_allclose(one[0], ys[0, 0], rtol=1e-14)


def test_batch_norm_begins_as_the_identity_of_evaluation():
    xs = random(0, 6, 2)
    layer = BatchNorm(epsilon=1e-12, dtypes=F64)
    np.testing.assert_allclose(layer.apply(layer.init(KEY, xs), (), xs)[1], xs, rtol=1e-11)


def test_batch_norm_params_may_be_donated():
    params = BatchNorm().init(KEY, jnp.ones((4, 2, 3), "float32"))
    doubled = jax.jit(lambda params: jax.tree.map(lambda leaf: 2 * leaf, params), donate_argnums=0)(params)
    assert doubled.var.tolist() == [2, 2, 2]


def test_batch_statistics_leave_out_padding():
    xs, mask, params = random(0, 5, 3, 2), lengths_mask(5, 5, 2, 0), batch_norm_params(2)
    layer = BatchNorm(dtypes=F64)
    _, ys = layer.apply(params, (), np.where(mask[..., None], xs, np.nan), mask=jnp.array(mask), key=KEY)
    _, alone = layer.apply(params, (), xs[mask], key=KEY)
    np.testing.assert_allclose(ys[mask], alone, rtol=1e-12)
    assert not ys[~mask].any()


@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_padding_with_nan_poisons_no_gradient(key):
    xs, mask, params = random(0, 5, 2, 3), lengths_mask(5, 5, 3), batch_norm_params(3)
    layer = BatchNorm(dtypes=F64)

    @jax.jit
    def gradients(xs):
        def loss(params, xs):
            return jnp.sum(layer.apply(params, (), xs, mask=jnp.array(mask), key=key)[1] ** 3)

        return jax.grad(loss, (0, 1))(params, xs)

    clean = gradients(np.where(mask[..., None], xs, 9.0))
    poisoned = gradients(np.where(mask[..., None], xs, np.nan))
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
    assert not poisoned[1][~mask].any()
    assert poisoned[1][mask].all()


@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_population_statistics_have_no_gradient(key):
    xs, params, layer = random(0, 5, 2, 3), batch_norm_params(3), BatchNorm(dtypes=F64)
    gradient = jax.grad(lambda p: jnp.sum(layer.apply(p, (), xs, key=key)[1] ** 3))(params)
    assert not gradient.mean.any()
    assert not gradient.var.any()
    assert gradient.scale.all()
    assert gradient.offset.all()


@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_batch_norm_gradients_match_finite_differences(key):
    layer, params, mask = BatchNorm(dtypes=F64), batch_norm_params(2), jnp.array(lengths_mask(4, 4, 2, 3))

    @jax.jit
    def outputs(scale, offset, xs):
        return layer.apply(params._replace(scale=scale, offset=offset), (), xs, mask=mask, key=key)[1]

    args = (params.scale, params.offset, jnp.array(random(0, 4, 3, 2)))
    check_grads(outputs, args, 1, rtol=1e-6, atol=1e-6, eps=1e-5)


def test_batch_norm_takes_statistics_of_bfloat16_in_float32():
    # bfloat16 has 8 bits: the mean, 259, is none of its numbers
    xs = jnp.array([[256.0], [258.0], [260.0], [262.0]], "bfloat16")
    layer = BatchNorm(dtypes=DTypes(compute="bfloat16"))
    params = layer.init(KEY, xs)
    _, ys = layer.apply(params, (), xs, key=KEY)
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_allclose(ys[:, 0].astype(float), np.array([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5), rtol=2**-8)
    calibrated = layer.calibrate(params, (), xs)
    assert (calibrated.mean.tolist(), calibrated.var.tolist(), calibrated.mean.dtype) == ([259], [5], jnp.float32)


def test_chunks_equal_the_whole_in_evaluation():
    xs, params, layer = random(0, 5, 2, 3), batch_norm_params(3), BatchNorm(dtypes=F64)
    carry, first = layer.apply(params, layer.initial_carry(params, (2,)), xs[:2])
    _, second = layer.apply(params, carry, xs[2:])
    np.testing.assert_allclose(jnp.concatenate([first, second]), layer.apply(params, (), xs)[1], rtol=1e-14)


def test_an_all_masked_batch_is_zeros_not_nan():
    xs, mask = jnp.ones((3, 2, 1)), jnp.zeros((3, 2), bool)
    layer = BatchNorm(dtypes=F64)
    _, ys = jax.jit(layer.apply)(layer.init(KEY, xs), (), xs, mask=mask, key=KEY)
    assert not ys.any()


# -- calibrate -----------------------------------------------------------------------------------


def test_calibrate_takes_statistics_over_all_batches_together():
    layer, D = BatchNorm(dtypes=F64), 3
    batches = [
        random(0, 5, 2, D),
        (random(1, 7, 3, D), lengths_mask(7, 7, 4, 1)),
        random(2, 4, D),
        random(3, 5, 1, 2, D),
    ]
    params = layer.init(KEY, batches[0])
    calibrated = calibrate(layer, params, iter(batches))
    samples = np.concatenate(
        [batches[0].reshape(-1, D), batches[1][0][batches[1][1]], batches[2], batches[3].reshape(-1, D)]
    )
    np.testing.assert_allclose(calibrated.mean, samples.mean(0), rtol=1e-12)
    np.testing.assert_allclose(calibrated.var, samples.var(0), rtol=1e-12)
    np.testing.assert_array_equal(calibrated.scale, params.scale)
    assert params.mean.tolist() == [0, 0, 0]


def test_calibrated_evaluation_equals_training_on_the_same_batch():
    layer, xs = BatchNorm(dtypes=F64), 3 + random(0, 6, 2, 4)
    params = calibrate(layer, batch_norm_params(4), [xs])
    np.testing.assert_allclose(
        layer.apply(params, (), xs)[1], layer.apply(params, (), xs, key=KEY)[1], rtol=1e-12, atol=1e-12
    )


def test_calibrate_goes_through_a_model_layer_by_layer():
    model = Serial(Dense(3, dtypes=F64), BatchNorm(dtypes=F64), Dense(2, dtypes=F64), BatchNorm(dtypes=F64))
    xs = random(0, 6, 2, 4)
    params = calibrate(model, model.init(KEY, xs), [xs[:, :1], xs[:, 1:]])
    hidden = xs @ np.asarray(params[0].kernel)
    unit = (hidden - hidden.mean((0, 1))) / np.sqrt(hidden.var((0, 1)) + 1e-5)
    second = unit @ np.asarray(params[2].kernel)
    np.testing.assert_allclose(params[1].mean, hidden.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(params[3].mean, second.mean((0, 1)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(params[3].var, second.var((0, 1)), rtol=1e-9)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_calibrate_sees_the_mask_of_a_convolution_s_outputs(padding):
    model = Serial(Conv1D(2, 3, stride=2, padding=padding, dtypes=F64), BatchNorm(dtypes=F64))
    long, short = random(0, 9, 2), random(1, 5, 2)
    params = model.init(KEY, long)
    calibrated = calibrate(model, params, [long, short])
    outputs = np.concatenate([model.layers[0].apply(params[0], (), xs)[1] for xs in (long, short)])
    assert len(outputs) == (4 + 2 if padding == "valid" else 5 + 3)
    np.testing.assert_allclose(calibrated[1].mean, outputs.mean(0), rtol=1e-12)
    np.testing.assert_allclose(calibrated[1].var, outputs.var(0), rtol=1e-12)


def test_calibrate_takes_batches_as_the_model_does():
    model, xs = Serial(Conv1D(2, 3, dtypes=F64), BatchNorm(dtypes=F64)), random(0, 6, 4, 2)
    params = model.init(KEY, xs)
    found = calibrate(BatchMajor(model), params, [xs.swapaxes(0, 1), (xs[:3].swapaxes(0, 1), None)])
    assert_close(found, calibrate(model, params, [xs, xs[:3]]), 1e-12)


def test_calibrate_knows_ids_by_their_dtype():
    model = Serial(Embed(5, 3, dtypes=F64), BatchNorm(dtypes=F64))
    ids = [np.array([[0, 1], [2, 3]]), np.array([4, 4, 4])]
    params = model.init(KEY, ids[0])
    table = np.asarray(params[0].table)
    calibrated = calibrate(model, params, ids)
    np.testing.assert_allclose(calibrated[1].mean, table[[0, 1, 2, 3, 4, 4, 4]].mean(0), rtol=1e-12)


# -- shapes, dtypes, errors ----------------------------------------------------------------------


@pytest.mark.parametrize("layer", [Dropout(0.1), Dropout(0.1, variational=True), BatchNorm()], ids=repr)
def test_init_works_on_shapes_alone_and_float32_stays_float32(layer):
    like = jax.ShapeDtypeStruct((7, 2, 4), "float32")
    params = jax.eval_shape(layer.init, KEY, like)
    for key in (None, KEY):
        ys = jax.eval_shape(lambda p, x, key=key: layer.apply(p, (), x, key=key)[1], params, like)
        assert (ys.shape, ys.dtype) == (like.shape, jnp.float32)
    assert eval(repr(layer)) == layer
    assert hash(eval(repr(layer))) == hash(layer)


def test_dropout_hides_nan_in_padding():
    mask = lengths_mask(3, 3, 1)
    xs = np.where(mask[..., None], random(0, 3, 2, 2), np.nan)
    for key in (None, KEY):
        _, ys = Dropout(0.5).apply((), (), xs, mask=jnp.array(mask), key=key)
        assert not ys[~mask].any()
        assert not np.isnan(ys).any()
    gradient = jax.grad(lambda x: Dropout(0.5).apply((), (), x, mask=jnp.array(mask), key=KEY)[1].sum())(xs)
    assert set(np.unique(gradient[mask])) == {0, 2}
    assert not gradient[~mask].any()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1, 5, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=r"0 <= rate < 1, got"):
        Dropout(rate)


@pytest.mark.parametrize("epsilon", [0, -1e-5, math.nan])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be positive and finite, got"):
        BatchNorm(epsilon)


def test_inputs_that_do_not_fit_are_refused():
    xs, layer = jnp.ones((4, 2, 3), "float32"), BatchNorm()
    params = layer.init(KEY, xs)
    with pytest.raises(ValueError, match=r"initialized for 3 features.*with 5"):
        layer.apply(params, (), jnp.ones((4, 2, 5), "float32"))
    with pytest.raises(ValueError, match="computes in float32, got float64"):
        layer.apply(params, (), jnp.ones((4, 2, 3), "float64"))
    with pytest.raises(ValueError, match="mask must have the shape"):
        layer.apply(params, (), xs, mask=jnp.ones((4,), bool))
    with pytest.raises(ValueError, match=r"Dropout\(0.1\) needs floating-point inputs, got int32"):
        Dropout(0.1).apply((), (), jnp.ones((4, 3), "int32"))


def test_a_batch_without_a_variance_is_refused():
    layer, xs = BatchNorm(), jnp.ones((1, 3), "float32")
    params = layer.init(KEY, xs)
    with pytest.raises(ValueError, match=r"at least 2 steps or sequences.*got xs of shape \(1, 3\)"):
        layer.apply(params, (), xs, key=KEY)
    assert layer.apply(params, (), xs)[1].shape == (1, 3)
    with pytest.raises(ValueError, match="at least 2 steps for a variance; the mask leaves 1"):
        calibrate(layer, params, [(jnp.ones((2, 2, 3), "float32"), jnp.array(lengths_mask(2, 1, 0)))])


def test_batches_that_cannot_go_together_are_refused():
    layer, xs = BatchNorm(), jnp.ones((4, 2, 3), "float32")
    params = layer.init(KEY, xs)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        calibrate(layer, params, [])
    with pytest.raises(ValueError, match="one feature size and dtype, got"):
        calibrate(layer, params, [xs, xs[..., :2]])
    with pytest.raises(ValueError, match="one feature size and dtype, got"):
        calibrate(layer, params, [xs, xs.astype("bfloat16")])
    strided = Serial(Conv1D(3, 3, stride=2, padding="same"), layer)
    with pytest.raises(
        ValueError, match=r"batches of \[3, 4\] steps to 4, .* of stride 2, would look at other windows"
    ):
        calibrate(strided, strided.init(KEY, xs), [xs, xs[:3]])
    with pytest.raises(ValueError, match=r"mask must have the shape \[T, ...\] .*\(4, 2\), got \(2, 4\)"):
        calibrate(layer, params, [(xs, jnp.ones((2, 4), bool))])
