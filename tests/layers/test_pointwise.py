# SPDX-License-Identifier: Apache-2.0
"""Dense, LayerNorm, Embed, Activation against NumPy, and the laws that hold for layers without a carry."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import seqjax
from seqjax.dtypes import DTypes
from seqjax.layers.pointwise import Activation, Dense, DenseParams, Embed, EmbedParams, LayerNorm, LayerNormParams
from tests.common import F64

LAYERS = [
    Dense(3, activation="tanh", bias_init="normal", dtypes=F64),
    Dense(2, use_bias=False, dtypes=F64),
    LayerNorm(dtypes=F64),
    LayerNorm(use_scale=False, use_offset=False, dtypes=F64),
    Activation("sigmoid"),
    Activation(jnp.sqrt),  # its slope at zero, where padding is hidden, is infinite
    Dense(2, activation=jnp.sqrt, kernel_init="ones", dtypes=F64),
]
NAMES = [f"{type(layer).__name__}-{i}" for i, layer in enumerate(LAYERS)]


def inputs(*shape, seed=0):
    """Positive, so that every function is defined on them."""
    return np.random.default_rng(seed).uniform(0.5, 2.0, shape)


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_dense_is_the_affine_map_at_every_step(batch):
    xs = inputs(4, *batch, 2)
    kernel, bias = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]]), np.array([0.1, -0.2, 0.3])
    _, ys = Dense(3, activation="tanh", dtypes=F64).apply(DenseParams(jnp.array(kernel), jnp.array(bias)), (), xs)
    expected = np.tanh(np.einsum("...d,df->...f", xs, kernel) + bias)
    np.testing.assert_allclose(ys, expected, rtol=1e-14)


def test_dense_by_hand():
    params = DenseParams(jnp.array([[2.0], [1.0]]), jnp.array([-1.0]))
    _, ys = Dense(1, activation="relu", dtypes=F64).apply(params, (), jnp.array([[1.0, 3.0], [-4.0, 1.0]]))
    assert ys.tolist() == [[4.0], [0.0]]


def test_dense_without_bias_has_none():
    params = Dense(3, use_bias=False).init(jax.random.key(0), jnp.ones((4, 2)))
    assert params.bias is None
    assert params.kernel.shape == (2, 3)


def test_dense_draws_glorot_uniform_kernels_and_zero_biases():
    params = Dense(300).init(jax.random.key(0), jnp.ones((1, 200)))
    limit = math.sqrt(6 / (200 + 300))
    assert np.abs(params.kernel).max() <= limit
    assert np.std(params.kernel) == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert not params.bias.any()


def test_layer_norm_against_numpy():
    xs, scale, offset = inputs(5, 3, 4), inputs(4, seed=1), inputs(4, seed=2)
    layer = LayerNorm(epsilon=1e-3, dtypes=F64)
    _, ys = layer.apply(LayerNormParams(jnp.array(scale), jnp.array(offset)), (), xs)
    mean, var = xs.mean(-1, keepdims=True), xs.var(-1, keepdims=True)
    np.testing.assert_allclose(ys, scale * (xs - mean) / np.sqrt(var + 1e-3) + offset, rtol=1e-12)


def test_layer_norm_begins_with_unit_scale_and_zero_offset():
    params = LayerNorm().init(jax.random.key(0), jnp.ones((2, 3)))
    assert params.scale.tolist() == [1, 1, 1]
    assert params.offset.tolist() == [0, 0, 0]
    assert LayerNorm(use_scale=False, use_offset=False).init(jax.random.key(0), jnp.ones((2, 3))) == (None, None)


def test_layer_norm_takes_statistics_of_bfloat16_in_float32():
    # bfloat16 has 8 bits: the mean, 259, is none of its numbers
    xs = jnp.array([[256.0, 258.0, 260.0, 262.0]], jnp.bfloat16)
    layer = LayerNorm(dtypes=DTypes(compute="bfloat16"))
    _, ys = layer.apply(layer.init(jax.random.key(0), xs), (), xs)
    expected = np.array([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5)
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_allclose(ys[0].astype(float), expected, rtol=2**-8)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_embed_looks_up_rows(dtype):
    table = np.arange(12.0).reshape(4, 3)
    ids = np.array([[3, 0], [1, 1]], dtype)
    _, ys = Embed(4, 3, dtypes=F64).apply(EmbedParams(jnp.array(table)), (), ids)
    np.testing.assert_array_equal(ys, table[ids])


def test_embed_gradient_counts_the_uses_of_a_row():
    layer, ids = Embed(4, 2, dtypes=F64), jnp.array([3, 1, 3])
    params = layer.init(jax.random.key(0), ids)
    gradient = jax.grad(lambda p: layer.apply(p, (), ids)[1].sum())(params)
    assert gradient.table.tolist() == [[0, 0], [1, 1], [0, 0], [2, 2]]


def test_embed_never_wraps_or_clips_ids():
    layer = Embed(4, 2)
    params = layer.init(jax.random.key(0), jnp.array([0]))
    for outside in (-1, 4):
        ids = jnp.array([0, outside])
        with pytest.raises(ValueError, match=rf"ids in \[0, 4\), got {outside}"):
            layer.apply(params, (), ids)
        _, ys = jax.jit(layer.apply)(params, (), ids)
        assert np.isnan(ys[1]).all()
        np.testing.assert_array_equal(ys[0], params.table[0])


def test_embed_ignores_ids_in_padding():
    layer, ids, mask = Embed(4, 2), jnp.array([[1, 2], [-1, 3]]), jnp.array([[True, True], [False, True]])
    params = layer.init(jax.random.key(0), ids)
    for apply in (layer.apply, jax.jit(layer.apply)):
        _, ys = apply(params, (), ids, mask=mask)
        assert ys[1, 0].tolist() == [0, 0]
        np.testing.assert_array_equal(ys[1, 1], params.table[3])


def test_activation_by_name_or_function():
    xs = inputs(3, 2) - 1
    np.testing.assert_allclose(Activation("tanh").apply((), (), xs)[1], np.tanh(xs), rtol=1e-15)
    np.testing.assert_allclose(Activation(jnp.square).apply((), (), xs)[1], xs * xs, rtol=1e-15)


# -- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_padding_with_nan_poisons_no_value_and_no_gradient(layer):
    clean, mask = inputs(4, 2, 3), np.ones((4, 2), bool)
    mask[2:, 0] = False
    poisoned = np.where(mask[..., None], clean, np.nan)
    params = layer.init(jax.random.key(0), clean)

    def loss(params, xs):
        ys = layer.apply(params, (), xs, mask=jnp.array(mask))[1]
        return jnp.sum(jnp.arange(1.0, 1 + ys.size).reshape(ys.shape) * ys), ys

    gradients, ys = jax.grad(loss, (0, 1), has_aux=True)(params, poisoned)
    expected, clean_ys = jax.grad(loss, (0, 1), has_aux=True)(params, clean)
    assert not ys[2:, 0].any()
    assert ys[:, 1].any()
    np.testing.assert_array_equal(ys, clean_ys)
    jax.tree.map(np.testing.assert_array_equal, gradients, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not gradients[1][2:, 0].any()


@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_a_padded_sequence_gives_what_it_gives_alone(layer):
    xs = inputs(5, 2, 3)
    params = layer.init(jax.random.key(0), xs)
    mask = jnp.arange(5)[:, None] < jnp.array([5, 2])
    _, ys = layer.apply(params, (), xs, mask=mask)
    _, alone = layer.apply(params, (), xs[:2, 1])
    np.testing.assert_allclose(ys[:2, 1], alone, rtol=1e-14)


@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_chunks_equal_the_whole(layer):
    xs = inputs(5, 2, 3)
    params = layer.init(jax.random.key(0), xs)
    carry, first = layer.apply(params, layer.initial_carry(params, (2,)), xs[:2])
    carry, second = layer.apply(params, carry, xs[2:])
    assert carry == ()
    assert layer.streams
    np.testing.assert_allclose(jnp.concatenate([first, second]), layer.apply(params, (), xs)[1], rtol=1e-14)


@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_gradients_match_finite_differences(layer):
    xs = inputs(3, 2, 4)
    params, mask = layer.init(jax.random.key(0), xs), jnp.array([[True, True], [True, False], [True, True]])
    params = jax.tree.map(lambda p: p + 0.1, params)

    @jax.jit
    def outputs(params, xs):
        return layer.apply(params, (), xs, mask=mask)[1]

    check_grads(outputs, (params, jnp.array(xs)), 1, rtol=1e-6, atol=1e-6, eps=1e-5)


@pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
def test_vmap_and_jit_equal_the_batched_call(layer):
    xs = jnp.array(inputs(3, 5, 4))
    params, mask = layer.init(jax.random.key(0), xs), jnp.arange(3)[:, None] < jnp.array([3, 1, 2, 3, 0])
    _, ys = layer.apply(params, (), xs, mask=mask)

    @jax.jit
    def mapped(xs, mask):
        return jax.vmap(lambda x, m: layer.apply(params, (), x, mask=m)[1], in_axes=1, out_axes=1)(xs, mask)

    np.testing.assert_allclose(mapped(xs, mask), ys, rtol=1e-13)


@pytest.mark.parametrize(
    ("layer", "like"),
    [
        (Dense(3, activation="relu"), jax.ShapeDtypeStruct((7, 2, 4), "float32")),
        (LayerNorm(), jax.ShapeDtypeStruct((7, 2, 4), "float32")),
        (Embed(9, 4), jax.ShapeDtypeStruct((7, 2), "int32")),
        (Activation("gelu"), jax.ShapeDtypeStruct((7, 2, 4), "float32")),
    ],
    ids=repr,
)
def test_init_works_on_shapes_alone_and_float32_stays_float32(layer, like):
    params = jax.eval_shape(layer.init, jax.random.key(0), like)
    drawn = layer.init(jax.random.key(0), like)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)]
    assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(drawn)]
    ys = jax.eval_shape(lambda p, x: layer.apply(p, (), x)[1], params, like)
    assert (ys.shape[:2], ys.dtype) == ((7, 2), jnp.float32)


@pytest.mark.parametrize(
    "layer",
    [
        Dense(4),
        LayerNorm(),
        Activation("tanh"),
        seqjax.BatchNorm(),
        seqjax.Dropout(0.5),
        seqjax.Last(),
        seqjax.Conv1D(4, 2),
        seqjax.Residual(Dense(4)),
        seqjax.Residual(seqjax.RNN(seqjax.GRU(4))),
    ],
    ids=repr,
)
def test_numpys_float64_is_taken_eagerly_as_under_jit(layer):
    with jax.enable_x64(False):
        xs = inputs(5, 2, 4)
        params = layer.init(jax.random.key(0), xs)
        carry = layer.initial_carry(params, (2,))
        ys = layer.apply(params, carry, xs)[1]
        assert isinstance(ys, jax.Array)
        assert ys.dtype == jnp.float32
        np.testing.assert_allclose(ys, jax.jit(layer.apply)(params, carry, xs)[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [lambda d: Dense(3, activation="silu", dtypes=d), lambda d: LayerNorm(dtypes=d)])
def test_bfloat16_computation_stays_bfloat16(make):
    layer, xs = make(DTypes(compute="bfloat16")), inputs(5, 2, 8).astype("float32")
    params = layer.init(jax.random.key(0), xs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    _, ys = layer.apply(params, (), jnp.array(xs))
    _, exact = make(DTypes()).apply(params, (), jnp.array(xs))
    assert ys.dtype == jnp.bfloat16
    assert np.abs(ys.astype("float32") - exact).max() <= 2**-5 * np.abs(exact).max()


def test_embed_computes_in_the_dtype_asked_for():
    layer, ids = Embed(4, 2, dtypes=DTypes(compute="bfloat16")), jnp.array([1, 2])
    params = layer.init(jax.random.key(0), ids)
    assert params.table.dtype == jnp.float32
    assert layer.apply(params, (), ids)[1].dtype == jnp.bfloat16


def test_layers_print_as_their_code_and_equal_ones_hash_alike():
    for layer in (Dense(3, activation="relu"), LayerNorm(epsilon=0.001), Embed(9, 4), Activation("gelu")):
        again = eval(repr(layer))
        assert again == layer
        assert hash(again) == hash(layer)
    assert repr(Dense(10)) == "Dense(10)"


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0), "features must be a positive integer, got 0"),
        (lambda: Dense(2.0), "features must be a positive integer, got 2.0"),
        (lambda: Dense(2, activation="tanhh"), "unknown activation 'tanhh'.*'tanh'"),
        (lambda: Activation("swash"), "unknown activation 'swash'.*'silu'"),
        (lambda: LayerNorm(epsilon=0.0), "epsilon must be positive and finite, got 0.0"),
        (lambda: LayerNorm(epsilon=math.nan), "epsilon must be positive and finite, got nan"),
        (lambda: Embed(0, 3), "num must be a positive integer, got 0"),
        (lambda: Embed(3, True), "features must be a positive integer, got True"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layer", [Dense(3), LayerNorm(), LayerNorm(use_scale=False)], ids=repr)
def test_inputs_that_do_not_fit_are_refused(layer):
    good = jnp.ones((4, 2, 3), "float32")
    params = layer.init(jax.random.key(0), good)
    with pytest.raises(ValueError, match=r"initialized for 3 features.*with 5"):
        layer.apply(params, (), jnp.ones((4, 2, 5), "float32"))
    with pytest.raises(ValueError, match="computes in float32, got float64"):
        layer.apply(params, (), jnp.ones((4, 2, 3), "float64"))
    with pytest.raises(ValueError, match="computes in float32, got int32"):
        layer.apply(params, (), jnp.ones((4, 2, 3), "int32"))
    with pytest.raises(ValueError, match="no steps"):
        layer.apply(params, (), good[:0])
    with pytest.raises(ValueError, match=r"mask must have the shape.*\(4, 2\), got \(2, 4\)"):
        layer.apply(params, (), good, mask=jnp.ones((2, 4), bool))
    with pytest.raises(ValueError, match="at least a time and a feature axis"):
        layer.init(jax.random.key(0), jnp.ones(4, "float32"))


@pytest.mark.parametrize("layer", [Activation("tanh"), LayerNorm(use_scale=False, use_offset=False)], ids=repr)
def test_layers_without_weights_refuse_integers(layer):
    params = layer.init(jax.random.key(0), jnp.ones((4, 3), "float32"))
    with pytest.raises(ValueError, match="needs floating-point inputs, got int32"):
        layer.apply(params, (), jnp.ones((4, 3), "int32"))


def test_embed_refuses_what_is_no_id():
    layer = Embed(4, 2)
    params = layer.init(jax.random.key(0), jnp.array([0]))
    with pytest.raises(ValueError, match=r"takes integer ids.*got float32"):
        layer.apply(params, (), jnp.ones((4, 2), "float32"))
    with pytest.raises(ValueError, match=r"takes integer ids.*of shape \(\)"):
        layer.init(jax.random.key(0), jnp.array(1))
    with pytest.raises(ValueError, match="mask must have the shape"):
        layer.apply(params, (), jnp.array([[1, 2]]), mask=jnp.ones((2,), bool))
