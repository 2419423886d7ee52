# SPDX-License-Identifier: Apache-2.0
"""Keras 3 against seqjax, live: values and gradients of every layer, round trips, refusals by name."""

import os

from tests.common import F64

os.environ.setdefault("KERAS_BACKEND", "jax")

import contextlib
import importlib
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.interop.keras import from_keras, to_keras
from seqjax.interop.keras.activations import gelu
from seqjax.layers.last import Last
from seqjax.layers.regularize import BatchNormParams

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip("gradients are taken through Keras' JAX backend", allow_module_level=True)
L = keras.layers

MASK = np.arange(6)[:, None] < np.array([6, 3, 0, 1])  # [T, B]
GAPS = np.array([[1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool).T


@pytest.fixture(autouse=True)
def float64_policy(monkeypatch):
    # off TensorFlow, Keras computes some operations (tanh, moments) of float64 in float32: no reference without this
    monkeypatch.setitem(
        importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE, "float64", "float64"
    )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def inputs(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def built(layer, shape):
    """The layer, built on weights of zeros, as Keras' own random ones take long to compile."""
    with contextlib.ExitStack() as patches:
        for cls in (keras.initializers.GlorotUniform, keras.initializers.Orthogonal):
            draw = lambda self, shape, dtype=None, **kwargs: np.zeros(shape, dtype)  # noqa: E731
            patches.enter_context(unittest.mock.patch.object(cls, "__call__", draw))
        layer.build(shape)
    return layer


def scrambled(layer, shape, seed=1):
    """The layer, built, with random positive and negative weights everywhere, so that no zero hides an error."""
    built(layer, shape)
    random = np.random.default_rng(seed)
    weights = [(random.normal(size=w.shape) * 0.4).astype(w.dtype) for w in layer.get_weights()]
    if isinstance(layer, L.BatchNormalization):
        weights[3] = np.abs(weights[3]) + 0.5
    layer.set_weights(weights)
    return layer


def keras_function(layer, objective, mask=None):
    """Keras' outputs [T, B, ...], and gradients of the objective in its variables and in `xs [T, B, ...]`."""
    fixed = [variable.value for variable in layer.non_trainable_variables]
    flags = {} if mask is None else {"mask": jnp.asarray(mask.T)}

    def loss(variables, xs):
        ys, _ = layer.stateless_call(variables, fixed, jnp.swapaxes(xs, 0, 1), **flags)
        ys = jnp.swapaxes(ys, 0, 1) if ys.ndim == 3 else ys[None]
        return objective(ys), ys

    return differentiated(loss)


def seqjax_function(model, objective, mask=None):
    def loss(params, xs):
        carry = model.initial_carry(params, xs.shape[1:2])
        _, ys = model.apply(params, carry, xs, mask=None if mask is None else jnp.asarray(mask))
        return objective(ys), ys

    return differentiated(loss)


def differentiated(loss):
    """`f(params, xs)`: the objective, the outputs and the gradients, those of ids left out."""

    def function(params, xs):
        arguments = (0, 1) if jnp.issubdtype(xs.dtype, jnp.floating) else (0,)
        (value, ys), gradients = jax.value_and_grad(loss, arguments, has_aux=True)(params, xs)
        return value, ys, gradients

    return jax.jit(function)


def in_our_layout(layer, gradients):
    """Gradients of Keras' variables, one after the other; the two biases of a GRU are rows of one array there."""
    flat = []
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        flat += [*gradient] if variable.name == "bias" and gradient.ndim == 2 else [gradient]
    return flat


def trained_leaves(tree):
    """The leaves but for population statistics, which have no gradient and are no trainable variables of Keras."""

    def is_batch_norm(node):
        return isinstance(node, BatchNormParams)

    nodes = jax.tree.leaves(tree, is_leaf=is_batch_norm)
    return [leaf for node in nodes for leaf in (node[:2] if is_batch_norm(node) else [node])]


def assert_equal_numbers(layer, model, params, xs, mask=None, tolerance=1e-10):
    def objective(ys):
        """A random linear form; without masked steps, where Keras repeats the output before."""
        weights = np.random.default_rng(5).normal(size=ys.shape).astype(ys.dtype)
        weights = np.where(mask[..., None], weights, 0) if mask is not None and len(ys) == len(mask) else weights
        return jnp.sum(ys * weights)

    variables = [variable.value for variable in layer.trainable_variables]
    expected = keras_function(layer, objective, mask)(variables, xs)
    actual = seqjax_function(model, objective, mask)(params, xs)
    assert_equal_results(layer, actual, expected, tolerance, mask)


def assert_equal_results(layer, actual, expected, tolerance, mask=None):
    ys, expected_ys = np.asarray(actual[1]), np.asarray(expected[1])
    if mask is not None and len(ys) == len(mask):
        assert not ys[~mask].any()
        ys, expected_ys = ys[mask], expected_ys[mask]
    assert ys.dtype == expected_ys.dtype
    np.testing.assert_allclose(ys, expected_ys, rtol=tolerance, atol=tolerance)
    (params, *xs), (variables, *expected_xs) = actual[2], expected[2]
    gradients, expected_gradients = (*trained_leaves(params), *xs), (*in_our_layout(layer, variables), *expected_xs)
    for a, e in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(e).max())))


def assert_same(actual, expected):
    """The same model and, bit for bit, the same params."""
    assert actual[0] == expected[0]
    assert jax.tree.structure(actual[1]) == jax.tree.structure(expected[1])
    for a, e in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        assert a.dtype == e.dtype
        assert np.array_equal(a, e)


# -- every layer: values, gradients, round trip ------------------------------------------------

LAYERS = {
    "simple": lambda: L.SimpleRNN(3, return_sequences=True),
    "simple-relu-no-bias-last": lambda: L.SimpleRNN(3, activation="relu", use_bias=False),
    "lstm": lambda: L.LSTM(3, return_sequences=True),
    "lstm-hard-sigmoid": lambda: L.LSTM(3, recurrent_activation="hard_sigmoid", activation="softsign", use_bias=False),
    "gru-after": lambda: L.GRU(3, return_sequences=True),
    "gru-before": lambda: L.GRU(3, reset_after=False, return_sequences=True),
    "bidirectional-lstm": lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)),
    "bidirectional-gru-last-concat": lambda: L.Bidirectional(L.GRU(3, use_bias=False)),
    "bidirectional-simple-last-mean": lambda: L.Bidirectional(L.SimpleRNN(3), merge_mode="ave"),
    "bidirectional-two-kinds-sum": lambda: L.Bidirectional(
        L.SimpleRNN(3, return_sequences=True),
        merge_mode="sum",
        backward_layer=L.GRU(3, go_backwards=True, return_sequences=True),
    ),
    "rnn-of-stacked-cells": lambda: L.RNN([L.SimpleRNNCell(3), L.SimpleRNNCell(2)], return_sequences=True),
    "conv-valid-stride": lambda: L.Conv1D(3, 4, strides=2, padding="valid", activation="relu"),
    "conv-same-stride": lambda: L.Conv1D(3, 4, strides=2, padding="same"),
    "conv-same-dilation": lambda: L.Conv1D(3, 2, dilation_rate=3, padding="same", use_bias=False),
    "conv-causal-dilation": lambda: L.Conv1D(3, 2, dilation_rate=2, padding="causal"),
    "dense-softmax": lambda: L.Dense(3, activation="softmax"),
    "time-distributed-dense": lambda: L.TimeDistributed(L.Dense(3, use_bias=False, activation="leaky_relu")),
    "layer-norm": lambda: L.LayerNormalization(),
    "batch-norm": lambda: L.BatchNormalization(),
    "layer-norm-scale-alone": lambda: L.LayerNormalization(center=False, epsilon=1e-6, axis=2),
    "activation-gelu": lambda: L.Activation("gelu"),
}
MASKED = {
    "simple": MASK, "simple-relu-no-bias-last": GAPS, "lstm": GAPS, "gru-after": MASK,
    "gru-before": GAPS, "bidirectional-lstm": MASK, "bidirectional-gru-last-concat": MASK,
    "bidirectional-simple-last-mean": GAPS,
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_kerass_values_and_gradients_and_comes_back_exactly(name):
    layer = scrambled(LAYERS[name](), (None, None, 2))
    model, params = from_keras(layer)
    assert_equal_numbers(layer, model, params, inputs(6, 4, 2), MASKED.get(name))
    assert_same(from_keras(to_keras(model, params)), (model, params))


@pytest.mark.parametrize("T", [5, 6, 7])
def test_same_padding_with_a_stride_stands_where_tensorflow_puts_it(T):
    layer = scrambled(L.Conv1D(2, 3, strides=2, padding="same"), (None, None, 2))
    model, params = from_keras(layer)
    expected = np.swapaxes(layer(np.swapaxes(inputs(T, 3, 2), 0, 1)), 0, 1)
    np.testing.assert_allclose(model.apply(params, (), jnp.asarray(inputs(T, 3, 2)))[1], expected, atol=1e-12)


def test_a_float32_sequential_is_equal_and_comes_back_exactly():
    keras.config.set_dtype_policy("float32")
    layer = keras.Sequential(
        [
            L.Embedding(7, 4),
            L.SpatialDropout1D(0.1),
            L.BatchNormalization(),
            L.Bidirectional(L.SimpleRNN(3, return_sequences=True, dropout=0.2)),
            L.LayerNormalization(),
            L.SimpleRNN(3),
            L.Activation("elu"),
            L.Dense(2, activation="hard_sigmoid"),
        ]
    )
    scrambled(layer, (None, None))
    layer.layers[2].moving_variance.assign(np.full(4, 0.7, "float32"))
    model, params = from_keras(layer)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    ids = np.random.default_rng(3).integers(0, 7, (6, 3)).astype("int32")
    assert_equal_numbers(layer, model, params, ids, tolerance=1e-5)
    assert_same(from_keras(to_keras(model, params)), (model, params))


def test_an_embedding_is_equal_in_float64_and_comes_back_exactly():
    layer = scrambled(L.Embedding(7, 4), (None, None))
    model, params = from_keras(layer)
    assert_equal_numbers(layer, model, params, np.random.default_rng(3).integers(0, 7, (6, 3)).astype("int32"))
    assert_same(from_keras(to_keras(model, params)), (model, params))


# -- the mission's five models, trained in Keras -----------------------------------------------


class LNSimpleRNNCell(L.Layer):
    """The layer-normalized cell of Geron's notebook, with Keras' default epsilon."""

    def __init__(self, units, activation="tanh", **kwargs):
        super().__init__(**kwargs)
        self.state_size = self.output_size = units
        self.simple_rnn_cell = L.SimpleRNNCell(units, activation=None)
        self.layer_norm = L.LayerNormalization()
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        self.simple_rnn_cell.build(input_shape)
        self.layer_norm.build((None, self.output_size))

    def call(self, inputs, states):
        outputs, _ = self.simple_rnn_cell(inputs, states)
        norm_outputs = self.activation(self.layer_norm(outputs))
        return norm_outputs, [norm_outputs]


class PeepholeLSTMCell(L.Layer):
    """Gers and Schmidhuber 2000, written with Keras' operations; gates in the order i, f, c, o."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.state_size, self.output_size = units, [units, units], units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4 * self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, 4 * self.units), name="recurrent_kernel")
        self.bias = self.add_weight(shape=(4 * self.units,), name="bias", initializer="zeros")
        self.peephole = self.add_weight(shape=(3, self.units), name="peephole", initializer="glorot_uniform")

    def call(self, inputs, states):
        h, c = states
        ops = keras.ops
        i, f, g, o = ops.split(ops.matmul(inputs, self.kernel) + ops.matmul(h, self.recurrent_kernel) + self.bias, 4, 1)
        i, f = ops.sigmoid(i + self.peephole[0] * c), ops.sigmoid(f + self.peephole[1] * c)
        c = f * c + i * ops.tanh(g)
        h = ops.sigmoid(o + self.peephole[2] * c) * ops.tanh(c)
        return h, [h, c]


def from_ln_cell(cell):
    (w_in, w_rec, bias), (scale, offset) = cell.simple_rnn_cell.weights, cell.layer_norm.weights
    arrays = (jnp.asarray(v.numpy()) for v in (w_in, w_rec, bias, scale, offset))
    found = seqjax.Simple(cell.output_size, normalize="layer", epsilon=cell.layer_norm.epsilon)
    return found, seqjax.cells.SimpleParams(*arrays)


def from_peephole_cell(cell):
    params = seqjax.cells.LSTMParams(*(jnp.asarray(v.numpy()) for v in cell.weights))
    return seqjax.PeepholeLSTM(cell.units), params


CUSTOM = {LNSimpleRNNCell: from_ln_cell, PeepholeLSTMCell: from_peephole_cell}
BACK = {
    seqjax.Simple: lambda cell, params: (
        LNSimpleRNNCell(cell.hidden_dim, dtype="float32"),
        [np.asarray(leaf) for leaf in jax.tree.leaves(params)],
    ),
    seqjax.PeepholeLSTM: lambda cell, params: (
        PeepholeLSTMCell(cell.hidden_dim, dtype="float32"),
        [np.asarray(leaf) for leaf in jax.tree.leaves(params)],
    ),
}
FORECASTERS = {
    "layer-normalized": [
        lambda: L.RNN(LNSimpleRNNCell(20), return_sequences=True),
        lambda: L.RNN(LNSimpleRNNCell(20), return_sequences=True),
    ],
    "lstm": [lambda: L.LSTM(20, return_sequences=True), lambda: L.LSTM(20, return_sequences=True)],
    "peephole": [
        lambda: L.RNN(PeepholeLSTMCell(20), return_sequences=True),
        lambda: L.RNN(PeepholeLSTMCell(20), return_sequences=True),
    ],
    "gru": [lambda: L.GRU(20, return_sequences=True), lambda: L.GRU(20, return_sequences=True)],
    "conv-gru": [
        lambda: L.Conv1D(20, kernel_size=4, strides=2, padding="valid"),
        lambda: L.GRU(20, return_sequences=True),
        lambda: L.GRU(20, return_sequences=True),
    ],
}


def forecasting_task(T=20, horizon=10):
    """Sums of two sines [T, B, 1] and at every step the ten values that follow [T, B, 10]."""
    f1, f2, o1, o2 = np.random.default_rng(0).random((4, 8, 1))
    t = np.linspace(0, 1, T + horizon)
    series = 0.5 * np.sin((t - o1) * (10 * f1 + 10)) + 0.2 * np.sin((t - o2) * (20 * f2 + 20))
    targets = np.stack([series[:, k : k + T] for k in range(1, horizon + 1)], -1)
    return series[:, :T, None].astype("float32"), targets.astype("float32")


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_forecaster_trained_in_keras_is_equal_in_values_and_gradients(name):
    keras.config.set_dtype_policy("float32")
    xs, targets = forecasting_task()
    xs, targets = jnp.swapaxes(xs, 0, 1), jnp.swapaxes(targets[:, 3::2] if name == "conv-gru" else targets, 0, 1)
    layers = [make() for make in FORECASTERS[name]]
    keras_model = scrambled(keras.Sequential([*layers, L.TimeDistributed(L.Dense(10))]), (None, None, 1))

    def objective(ys):
        return jnp.mean((ys - targets) ** 2)

    step, variables = keras_function(keras_model, objective), keras_model.trainable_variables
    losses = []
    for _ in range(5):
        value, _, (gradients, _) = step([variable.value for variable in variables], xs)
        losses.append(float(value))
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign(np.asarray(variable.value) - np.float32(0.05) * np.asarray(gradient))
    assert losses[-1] < 0.9 * losses[0]
    model, params = from_keras(keras_model, custom=CUSTOM)
    expected = step([variable.value for variable in variables], xs)
    assert_equal_results(keras_model, seqjax_function(model, objective)(params, xs), expected, 1e-5)
    back = to_keras(model, params, custom=BACK)
    assert_same(from_keras(back, custom=CUSTOM), (model, params))
    for a, b in zip(back.get_weights(), keras_model.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("from_file", [False, True])
def test_masked_outputs_are_zeros_in_keras_too_once_written(from_file, tmp_path):
    model = seqjax.Serial(
        seqjax.RNN(seqjax.GRU(3, dtypes=F64)),
        seqjax.Bidirectional(seqjax.RNN(seqjax.LSTM(2, dtypes=F64))),
        seqjax.RNN(seqjax.Simple(2, dtypes=F64)),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs(6, 4, 2))
    params = jax.tree.map(lambda leaf: jnp.asarray(inputs(*leaf.shape)), shapes)
    for end in ((), (Last(),)):
        ended = seqjax.Serial(*model.layers, *end)
        given = (*params, *(() for _ in end))
        written = to_keras(ended, given)
        if from_file:
            written.save(tmp_path / "model.keras")
            written = keras.models.load_model(tmp_path / "model.keras")
        for mask in (MASK, GAPS):
            expected = written(np.swapaxes(inputs(6, 4, 2), 0, 1), mask=jnp.asarray(mask.T))
            expected = np.swapaxes(expected, 0, 1) if expected.ndim == 3 else np.asarray(expected)[None]
            carry = ended.initial_carry(given, (4,))
            ys = ended.apply(given, carry, jnp.asarray(inputs(6, 4, 2)), mask=jnp.asarray(mask))[1]
            np.testing.assert_allclose(ys, expected, rtol=1e-10, atol=1e-14)


def test_the_generic_lstm_has_the_same_numbers_with_imported_weights():
    layer = scrambled(L.LSTM(20, return_sequences=True), (None, None, 1))
    model, params = from_keras(layer)
    generic = seqjax.RNN(model.cell, engine=seqjax.engines.Scan(adjoint=False))
    assert_equal_numbers(layer, generic, params, inputs(6, 3, 1))


# -- what is mapped how ------------------------------------------------------------------------


def test_models_print_as_what_they_are():
    def model(layer):
        return from_keras(built(layer, (None, None, 2)))[0]

    keras.config.set_dtype_policy("float32")
    assert repr(model(L.GRU(4))) == "Serial(RNN(GRU(4, reset='after')), Last())"
    assert repr(model(L.GRU(4, reset_after=False, return_sequences=True))) == "RNN(GRU(4))"
    assert model(L.LSTM(4, unit_forget_bias=False)).layers[0].cell.bias_init == "zeros"
    assert repr(model(L.LayerNormalization())) == "LayerNorm(epsilon=0.001)"
    assert repr(model(L.TimeDistributed(L.Dense(3, activation="linear")))) == "Dense(3)"
    assert repr(model(L.Dropout(0.25, noise_shape=(None, 1, None)))) == "Dropout(0.25, variational=True)"
    both = model(L.Bidirectional(L.SimpleRNN(3, dropout=0.5, return_sequences=True), merge_mode="mul"))
    assert repr(both) == "Bidirectional(Serial(Dropout(0.5, variational=True), RNN(Simple(3))), merge='mul')"
    assert model(L.Dense(2, activation="gelu")).activation is gelu, "Keras' gelu is exact, jax.nn.gelu is not"


def test_mixed_precision_keeps_float32_params_and_computes_in_bfloat16():
    layer = keras.Sequential([keras.Input((None, 2)), L.GRU(3, dtype="mixed_bfloat16"), L.Dense(1, dtype="float32")])
    model, params = from_keras(layer)
    assert model.layers[0].cell.dtypes == seqjax.DTypes("float32", compute="bfloat16")
    assert model.layers[2].dtypes == seqjax.DTypes("float32", compute="float32")
    xs = jnp.asarray(inputs(4, 3, 2, dtype="float32"))
    ys = jax.jit(lambda params, xs: model.apply(params, model.initial_carry(params, (3,)), xs)[1])(params, xs)
    assert ys.dtype == "float32"
    np.testing.assert_allclose(ys[0], layer(np.swapaxes(xs, 0, 1)), atol=0.02)
    assert_same(from_keras(to_keras(model, params)), (model, params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_recurrent_layers_with_params_of_16_bits_are_written_and_can_be_saved(dtype, tmp_path):
    dtypes = seqjax.DTypes(dtype)
    model = seqjax.Serial(
        seqjax.Bidirectional(seqjax.RNN(seqjax.LSTM(2, dtypes=dtypes))),
        seqjax.RNN(seqjax.GRU(3, "after", dtypes=dtypes)),
        seqjax.RNN(seqjax.Simple(2, dtypes=dtypes)),
    )
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((5, 2, 3), dtype)))
    params = jax.tree.map(lambda leaf: jnp.asarray(inputs(*leaf.shape).astype(dtype)), shapes)
    written = to_keras(model, params)
    assert_same(from_keras(written), (model, params))
    written.save(tmp_path / "model.keras")
    assert_same(from_keras(keras.models.load_model(tmp_path / "model.keras")), (model, params))
    again = keras.models.clone_model(written)  # new weights, drawn as the configuration says
    assert all(np.asarray(kernel, "float32").any() for kernel in again.layers[-1].get_weights()[:2])


# -- refusals ----------------------------------------------------------------------------------

REFUSED = {
    "go_backwards": lambda: L.LSTM(3, go_backwards=True),
    "stateful": lambda: L.GRU(3, stateful=True),
    "return_state": lambda: L.GRU(3, return_state=True),
    "recurrent_dropout": lambda: L.LSTM(3, recurrent_dropout=0.1),
    "zero_output_for_mask": lambda: L.SimpleRNN(3, zero_output_for_mask=True),
    "kernel_regularizer": lambda: L.Dense(3, kernel_regularizer="l2"),
    "recurrent_constraint": lambda: L.LSTM(3, recurrent_constraint="max_norm"),
    "trainable": lambda: L.Dense(3, trainable=False),
    "groups": lambda: L.Conv1D(4, 2, groups=2),
    "rms_scaling": lambda: L.LayerNormalization(rms_scaling=True),
    "axis": lambda: L.LayerNormalization(axis=1),
    "center": lambda: L.BatchNormalization(center=False),
    "activation='mish'": lambda: L.Dense(3, activation="mish"),
    "merge_mode": lambda: L.Bidirectional(L.GRU(3), merge_mode=None),
    "Conv1D": lambda: L.TimeDistributed(L.Conv1D(3, 2)),
    "MaxPooling1D": lambda: L.MaxPooling1D(2),
    "mask= to apply": lambda: L.Masking(),
    "never run": lambda: L.Lambda(lambda x: x),
    "noise_shape": lambda: L.Dropout(0.5, noise_shape=(1, None, None)),
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(word):
    layer = built(REFUSED[word](), (2, 4, 6, 2) if word == "Conv1D" else (2, 6, 2))
    with pytest.raises(ValueError, match=word) as error:
        from_keras(layer)
    assert type(layer).__name__ in str(error.value)


def test_a_mask_that_keras_makes_of_ids_is_refused_with_advice():
    layer = L.Embedding(5, 2, mask_zero=True)
    built(layer, (None, None))
    with pytest.raises(ValueError, match=r"mask_zero=True.*mask=\(ids != 0\)"):
        from_keras(layer)
    assert from_keras(layer, ignore=("mask_zero",))[0] == seqjax.Embed(5, 2, dtypes=F64)


def test_ignore_leaves_out_what_is_the_callers_business_and_nothing_else():
    layer = L.GRU(3, stateful=True, recurrent_dropout=0.2, kernel_regularizer="l2", trainable=False)
    built(layer, (2, 6, 2))
    ignore = ("stateful", "recurrent_dropout", "kernel_regularizer", "trainable")
    assert from_keras(layer, ignore=ignore)[0].layers[0].cell.hidden_dim == 3
    sequential = keras.Sequential([keras.Input((None, 2)), L.Masking(), L.Dense(1)])
    assert len(from_keras(sequential, ignore=("Masking",))[0].layers) == 1
    with pytest.raises(ValueError, match="go_backwards"):
        from_keras(layer, ignore=("go_backwards",))
    with pytest.raises(ValueError, match=r"ignore is a tuple of .*'mask_zero'.*, got 'mask_zero'"):
        from_keras(layer, ignore="mask_zero")


def test_a_users_own_class_is_refused_by_name_without_a_mapping():
    layer = L.RNN(LNSimpleRNNCell(3))
    built(layer, (None, None, 2))
    with pytest.raises(ValueError, match=r"custom=\{LNSimpleRNNCell"):
        from_keras(layer)

    class LSTM(L.LSTM):
        """Named as Keras' own, and free to compute anything."""

    with pytest.raises(ValueError, match="LSTM"):
        from_keras(LSTM(3))


def test_a_layer_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match=r"LSTM.*build"):
        from_keras(L.LSTM(3))


def test_a_functional_model_is_refused():
    xs = keras.Input((None, 2))
    with pytest.raises(ValueError, match="Functional"):
        from_keras(keras.Model(xs, L.Dense(1)(xs)))


UNWRITABLE = {
    "this cell": seqjax.RNN(seqjax.MinGRU(3)),
    "normalize=": seqjax.RNN(seqjax.GRU(3, normalize="layer")),
    "proj_dim": seqjax.RNN(seqjax.LSTM(3, proj_dim=2)),
    "Residual": seqjax.Residual(seqjax.Dense(2)),
    "Last": Last(),
    "gelu": seqjax.Dense(2, activation="gelu"),
    "carry": seqjax.RNN(seqjax.GRU(3, dtypes=seqjax.DTypes(compute="bfloat16", carry="float32"))),
}


@pytest.mark.parametrize("word", UNWRITABLE)
def test_what_keras_has_not_is_refused_by_name(word):
    model = UNWRITABLE[word]
    params = model.init(jax.random.key(0), jnp.ones((4, 2), "float32"))
    with pytest.raises(ValueError, match=word):
        to_keras(model, params)


def test_params_of_another_model_are_refused():
    params = seqjax.GRU(3, "after").init(jax.random.key(0), 2)
    for cell, match in ((seqjax.GRU(4, "after"), "w_in must have shape"), (seqjax.GRU(3), "has no bias_rec")):
        with pytest.raises(ValueError, match=match):
            to_keras(seqjax.RNN(cell), params)
