# SPDX-License-Identifier: Apache-2.0
"""MinGRU and MinLSTM against their published equations, in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.cells.minimal import MinCarry, MinGRU, MinGRUParams, MinLSTM, MinLSTMParams, min_lstm_coefficients
from seqjax.engines.associative import Associative
from tests.common import F64, sigmoid

D, H, B = 2, 3, 4


def positive(x):
    """g of the log form, appendix B.3."""
    return np.where(x >= 0, x + 0.5, sigmoid(x))


CANDIDATES = {"direct": lambda x: x, "log": positive}


def draw(gates, steps=2, seed=0):
    random = np.random.default_rng(seed)
    w, b = random.normal(size=(D, gates * H)), random.normal(size=gates * H)
    return w, b, random.normal(size=(steps, B, D)), random.normal(size=(B, H))


def run(cell, params, h, xs):
    """The states of some steps, by `step` and by the affine capability."""
    params, carry = jax.tree.map(jnp.asarray, params), MinCarry(jnp.asarray(h))
    states = []
    for x in xs:
        z = cell.project(params, jnp.asarray(x))
        decay, drive = cell.coefficients(params, z)
        affine = decay.h * carry.h + drive.h
        carry, y = cell.step(params, carry, z)
        np.testing.assert_allclose(affine, carry.h, rtol=1e-14)
        np.testing.assert_array_equal(cell.readout(params, carry, z), y)
        states.append(y)
    return np.stack(states)


@pytest.mark.parametrize("mode", CANDIDATES)
def test_min_gru(mode):
    w, b, xs, h = draw(2)
    (w_z, w_h), (b_z, b_h) = np.split(w, 2, axis=1), np.split(b, 2)
    expected = []
    for x in xs:
        z = sigmoid(x @ w_z + b_z)
        expected.append((1 - z) * (expected[-1] if expected else h) + z * CANDIDATES[mode](x @ w_h + b_h))
    actual = run(MinGRU(H, mode=mode, dtypes=F64), MinGRUParams(w, b), h, xs)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("mode", CANDIDATES)
def test_min_lstm(mode):
    w, b, xs, h = draw(3)
    (w_i, w_f, w_h), (b_i, b_f, b_h) = np.split(w, 3, axis=1), np.split(b, 3)
    expected = []
    for x in xs:
        i, f = sigmoid(x @ w_i + b_i), sigmoid(x @ w_f + b_f)
        before = expected[-1] if expected else h
        expected.append(f / (f + i) * before + i / (f + i) * CANDIDATES[mode](x @ w_h + b_h))
    actual = run(MinLSTM(H, mode=mode, dtypes=F64), MinLSTMParams(w, b), h, xs)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def published_log_scan(log_decay, log_drive, log_h0):
    """log h_t = a*_t + logcumsumexp(log b_t - a*_t), a*_t = Σ log a (appendix B.1, after Heinsen 2023)."""
    total = np.concatenate([np.zeros_like(log_decay[:1]), np.cumsum(log_decay, 0)])
    values = np.concatenate([log_h0[None], log_drive])
    return np.exp(total + np.logaddexp.accumulate(values - total, 0))[1:]


@pytest.mark.parametrize("cell", [MinGRU(H, mode="log", dtypes=F64), MinLSTM(H, mode="log", dtypes=F64)], ids=repr)
def test_log_mode_equals_the_published_scan_over_logarithms(cell):
    gates = 2 if isinstance(cell, MinGRU) else 3
    w, b, xs, h = draw(gates, steps=20)
    h = np.exp(h)  # a positive carry
    pre = np.split(xs @ w + b, gates, axis=-1)

    def log_sigmoid(x):
        return -np.logaddexp(0, -x)

    if gates == 2:
        log_decay, log_input = log_sigmoid(-pre[0]), log_sigmoid(pre[0])
    else:
        difference = np.logaddexp(0, -pre[1]) - np.logaddexp(0, -pre[0])
        log_decay, log_input = -np.logaddexp(0, difference), -np.logaddexp(0, -difference)
    expected = published_log_scan(log_decay, log_input + np.log(positive(pre[-1])), np.log(h))
    kind = MinGRUParams if gates == 2 else MinLSTMParams
    params = jax.tree.map(jnp.asarray, kind(w, b))
    carry, ys = Associative().run(cell, params, MinCarry(jnp.asarray(h)), jnp.asarray(xs))
    np.testing.assert_allclose(ys, expected, rtol=1e-10)
    np.testing.assert_allclose(carry.h, expected[-1], rtol=1e-10)


def test_log_mode_is_direct_mode_shifted_by_a_half_where_candidates_are_not_negative():
    w, b, xs, h = draw(2)
    w, xs = np.abs(w), np.abs(xs)
    shifted = np.concatenate([b[:H], np.abs(b[H:])])
    log = run(MinGRU(H, mode="log", dtypes=F64), MinGRUParams(w, shifted), h, xs)
    direct = run(MinGRU(H, dtypes=F64), MinGRUParams(w, shifted + np.repeat([0, 0.5], H)), h, xs)
    np.testing.assert_allclose(log, direct, rtol=1e-13)


@pytest.mark.parametrize("cell", [MinGRU(1, mode="log"), MinLSTM(1, mode="log"), MinLSTM(1)], ids=repr)
@pytest.mark.parametrize("scale", [-1e4, -100.0, 100.0, 1e4])
def test_saturated_gates_give_finite_values_and_gradients(cell, scale):
    shapes = jax.eval_shape(lambda key: cell.init(key, 1), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)

    def loss(params, x):
        carry = cell.initial_carry(params, ())
        return Associative().run(cell, params, carry, jnp.stack([x, -x]))[1].sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, jnp.array([scale], jnp.float32))
    for leaf in (value, *jax.tree.leaves(gradients)):
        assert np.isfinite(leaf).all()


def test_min_lstm_gates_are_normalized_where_both_underflow():
    """f' = f / (f + i) -> e^(k_f - k_i) / (1 + e^(k_f - k_i)) for k -> -∞, where f and i are 0 in float32."""
    i_x, f_x = jnp.float32(-200.0), jnp.float32(-199.0)
    decay, drive = min_lstm_coefficients(jnp.stack([i_x, f_x, jnp.float32(1)]))
    np.testing.assert_allclose(decay.h, sigmoid(1.0), rtol=1e-5)
    np.testing.assert_allclose(drive.h, sigmoid(-1.0), rtol=1e-5)


def test_log_mode_keeps_a_positive_state_positive():
    w, b, xs, _ = draw(2, steps=50)
    params = jax.tree.map(jnp.asarray, MinGRUParams(w, b))
    cell = MinGRU(H, mode="log", dtypes=F64)
    _, ys = Associative().run(cell, params, cell.initial_carry(params, (B,)), jnp.asarray(3 * xs))
    assert (np.asarray(ys) > 0).all()


def test_ten_thousand_steps_of_decay_near_one_stay_finite_in_float32():
    cell = MinGRU(2)
    params = MinGRUParams(jnp.zeros((1, 4), jnp.float32), jnp.array([-8, -8, 1, -1], jnp.float32))

    def loss(params):
        xs = jnp.zeros((10_000, 1), jnp.float32)
        return Associative().run(cell, params, cell.initial_carry(params, ()), xs)[1][-1]

    value, transpose = jax.jit(functools.partial(jax.vjp, loss))(params)
    write = sigmoid(-8.0)
    expected = 1 - (1 - write) ** 10_000
    tolerance = 10_000 * 2.0**-24  # the decay is rounded to float32, and 10,000 of them multiply
    np.testing.assert_allclose(value, [expected, -expected], rtol=tolerance)
    (gradient,) = transpose(jnp.ones(2, jnp.float32))
    slope = 10_000 * (1 - expected) * write  # d/db of 1 - (1 - σ(b))^T
    np.testing.assert_allclose(gradient.bias, [slope, -slope, expected, expected], rtol=tolerance)


def test_forget_gate_and_chrono_biases_mean_what_they_do_for_an_lstm():
    forget = MinLSTM(2, bias_init=seqjax.initializers.ForgetGate(3.0)).init(jax.random.key(0), D).bias
    np.testing.assert_array_equal(forget, [0, 0, 3, 3, 0, 0])
    i, f, g = MinLSTM(2, bias_init=seqjax.initializers.Chrono(100)).init(jax.random.key(0), D).bias.reshape(3, 2)
    np.testing.assert_array_equal(i, -f)
    assert (f > 0).all()
    assert (g == 0).all()
    z, g = MinGRU(500, bias_init=seqjax.initializers.Chrono(100)).init(jax.random.key(0), D).bias.reshape(2, 500)
    decay = 1 / (1 + np.exp(z))  # 1 - σ(b_z), that of a memory of u steps: u / (u + 1)
    assert 0.5 <= decay.min() < 0.7
    assert 98 / 99 < decay.max() <= 99 / 100
    assert (g == 0).all()
    with pytest.raises(ValueError, match="Chrono fills the bias of an LSTM"):
        seqjax.IndRNN(2, bias_init=seqjax.initializers.Chrono(100)).init(jax.random.key(0), D)


def test_params_have_the_documented_shapes_and_no_bias_on_request():
    def shapes(cell):
        return jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))

    assert shapes(MinGRU(H)).w_in.shape == (D, 2 * H)
    params = shapes(MinLSTM(H, use_bias=False))
    assert params.w_in.shape == (D, 3 * H)
    assert params.bias is None


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
@pytest.mark.parametrize(
    ("dtypes", "state", "output"),
    [
        (seqjax.DTypes(), "float32", "float32"),
        (F64, "float64", "float64"),
        (seqjax.DTypes(compute="bfloat16"), "float32", "bfloat16"),
        (seqjax.DTypes("bfloat16"), "float32", "bfloat16"),
    ],
    ids=repr,
)
def test_state_is_float32_at_least_and_output_of_the_compute_dtype(kind, dtypes, state, output):
    cell = kind(H, dtypes=dtypes)

    def step(key, x):
        params = cell.init(key, D)
        carry = cell.initial_carry(params, (B,))
        return carry, *cell.step(params, carry, cell.project(params, x))

    carry, after, y = jax.eval_shape(step, jax.random.key(0), jax.ShapeDtypeStruct((B, D), output))
    assert carry.h.dtype == after.h.dtype == state
    assert y.dtype == output


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
def test_unknown_options_are_refused(kind):
    with pytest.raises(ValueError, match="hidden_dim must be a positive integer"):
        kind(0)
    with pytest.raises(ValueError, match=r"mode must be one of \['direct', 'log'\]"):
        kind(3, mode="exp")
    with pytest.raises(ValueError, match="keeps its state in float32 or float64"):
        kind(3, dtypes=seqjax.DTypes(carry="bfloat16"))
