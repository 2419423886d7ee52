# SPDX-License-Identifier: Apache-2.0
"""Each cell against its published equations, written out gate by gate in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import activations
from seqjax.cells import gates
from tests.common import F64, sigmoid

H, D, B = 3, 2, 4


def layer_norm(a, scale, offset):
    return scale * (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) + offset


class Weights:
    """Params drawn in NumPy, and their gates by letter."""

    def __init__(self, cell, gates):
        random = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
        self.params = jax.tree.map(lambda s: random.normal(size=s.shape) * 0.7, shapes)
        self.gates = gates

    def __call__(self, field, gate):
        value = getattr(self.params, field)
        return 0.0 if value is None else np.split(value, len(self.gates), axis=-1)[self.gates.index(gate)]

    def combine(self, gate, x, h, extra=0.0):
        """N(W_x x + W_h h + extra + b)."""
        a = x @ self("w_in", gate) + h @ self("w_rec", gate) + extra + self("bias", gate)
        return a if self.params.scale is None else layer_norm(a, self("scale", gate), self("offset", gate))


def step(cell, params, carry, x):
    params, carry, x = jax.tree.map(jnp.asarray, (params, carry, x))
    return cell.step(params, carry, cell.project(params, x))


def inputs(*dims):
    random = np.random.default_rng(1)
    return [random.normal(size=(B, d)) for d in dims]


@pytest.mark.parametrize("normalize", [None, "layer"])
@pytest.mark.parametrize(
    ("activation", "phi"), [("tanh", np.tanh), ("relu", lambda a: np.maximum(a, 0)), ("sigmoid", sigmoid)]
)
def test_simple(normalize, activation, phi):
    cell = seqjax.Simple(H, activation=activation, normalize=normalize, dtypes=F64)
    w = Weights(cell, "h")
    x, h = inputs(D, H)
    expected = phi(w.combine("h", x, h))
    carry, y = step(cell, w.params, seqjax.cells.SimpleCarry(h), x)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    np.testing.assert_allclose(carry.h, expected, atol=1e-12)


def test_simple_with_batch_statistics_in_training_and_population_statistics_in_evaluation():
    cell = seqjax.Simple(H, normalize="batch", dtypes=F64)
    w = Weights(cell, "h")
    p = w.params._replace(var=np.abs(w.params.var) + 0.5)
    x, h = inputs(D, H)
    a = x @ p.w_in + h @ p.w_rec + p.bias
    trained = np.tanh(p.scale * (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5) + p.offset)
    evaluated = np.tanh(p.scale * (a - p.mean) / np.sqrt(p.var + 1e-5) + p.offset)
    params, carry, x = jax.tree.map(jnp.asarray, (p, seqjax.cells.SimpleCarry(h), x))
    z = cell.project(params, x)
    np.testing.assert_allclose(cell.step(params, carry, z, jax.random.key(0))[1], trained, atol=1e-12)
    np.testing.assert_allclose(cell.step(params, carry, z)[1], evaluated, atol=1e-12)


def test_batch_statistics_of_bfloat16_are_those_of_float32():
    # bfloat16 has 8 bits: the mean, 259, is none of its numbers
    xs = jnp.array([[[256.0], [258.0], [260.0], [262.0]]], "bfloat16")
    cell = seqjax.Simple(1, "identity", normalize="batch", w_in_init="ones", dtypes=seqjax.DTypes(compute="bfloat16"))
    params = cell.init(jax.random.key(0), 1)
    carry = cell.initial_carry(params, (4,))
    params = cell.calibrate(params, carry, xs)
    assert (params.mean.tolist(), params.var.tolist(), params.mean.dtype) == ([259], [5], jnp.float32)
    for key in (None, jax.random.key(0)):
        _, y = cell.step(params, carry, cell.project(params, xs[0]), key)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y[:, 0].astype(float), np.array([-3.0, -1.0, 1.0, 3.0]) / np.sqrt(5), rtol=2**-8)


@pytest.mark.parametrize("proj_dim", [None, 2])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("normalize", [None, "layer"])
@pytest.mark.parametrize("peephole", [False, True])
def test_lstm(peephole, normalize, use_bias, proj_dim):
    kind = seqjax.PeepholeLSTM if peephole else seqjax.LSTM
    cell = kind(H, normalize=normalize, use_bias=use_bias, proj_dim=proj_dim, dtypes=F64)
    w = Weights(cell, "ifgo")
    x, h, c = inputs(D, proj_dim or H, H)
    p_i, p_f, p_o = w.params.peephole if peephole else (0.0, 0.0, 0.0)
    i = sigmoid(w.combine("i", x, h, p_i * c))
    f = sigmoid(w.combine("f", x, h, p_f * c))
    g = np.tanh(w.combine("g", x, h))
    c_new = f * c + i * g
    o = sigmoid(w.combine("o", x, h, p_o * c_new))
    h_new = o * np.tanh(c_new)
    if proj_dim:
        h_new = h_new @ w.params.w_proj
    carry, y = step(cell, w.params, seqjax.cells.LSTMCarry(h, c), x)
    np.testing.assert_allclose(carry.c, c_new, atol=1e-12)
    np.testing.assert_allclose(carry.h, h_new, atol=1e-12)
    np.testing.assert_allclose(y, h_new, atol=1e-12)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("normalize", [None, "layer"])
@pytest.mark.parametrize("reset", ["before", "after"])
def test_gru(reset, normalize, use_bias):
    cell = seqjax.GRU(H, reset=reset, normalize=normalize, use_bias=use_bias, dtypes=F64)
    w = Weights(cell, "zrg")
    x, h = inputs(D, H)
    second = {gate: w("bias_rec", gate) if reset == "after" else 0.0 for gate in "zrg"}
    z = sigmoid(w.combine("z", x, h, second["z"]))
    r = sigmoid(w.combine("r", x, h, second["r"]))
    if reset == "before":
        g = np.tanh(w.combine("g", x, r * h))
    else:
        g = np.tanh(w.combine("g", x, 0 * h, r * (h @ w("w_rec", "g") + second["g"])))
    expected = z * h + (1 - z) * g
    carry, y = step(cell, w.params, seqjax.cells.GRUCarry(h), x)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    np.testing.assert_allclose(carry.h, expected, atol=1e-12)


def test_lstm_of_one_unit_by_pen_and_paper():
    # all weights 1, bias 0, x = 1, h = 0, c = 2: every gate sees 1
    params = seqjax.cells.LSTMParams(jnp.ones((1, 4)), jnp.ones((1, 4)), jnp.zeros(4))
    carry, y = seqjax.cells.lstm_step(
        params, seqjax.cells.LSTMCarry(jnp.zeros(1), jnp.full(1, 2.0)), (jnp.ones(1),) * 4
    )
    s, t = 0.7310585786300049, 0.7615941559557649  # sigmoid(1), tanh(1)
    np.testing.assert_allclose(carry.c, [2 * s + s * t], rtol=1e-12)
    np.testing.assert_allclose(y, [s * np.tanh(2 * s + s * t)], rtol=1e-12)


@pytest.mark.parametrize(("cell", "count"), [(seqjax.LSTM(H, dtypes=F64), 4), (seqjax.GRU(H, dtypes=F64), 3)])
def test_a_linear_combination_may_come_whole_or_gate_by_gate(cell, count):
    params = cell.init(jax.random.key(0), D)
    carry = jax.tree.map(lambda a: a + 0.5, cell.initial_carry(params, (B,)))
    (x,) = inputs(D)
    whole = jnp.asarray(x) @ params.w_in + params.bias
    outputs = [
        cell.step(params, carry, z) for z in (whole, tuple(jnp.split(whole, count, -1)), cell.project(params, x))
    ]
    for other in outputs[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), outputs[0], other)


@pytest.mark.parametrize("width", [1, 7, 32, 33])  # below 128 bytes and from there on
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gates_side_by_side_are_a_concatenation(width, dtype):
    pieces = [jnp.asarray(np.random.default_rng(k).normal(size=(2, 3, width)), dtype) for k in range(4)]
    together = gates.side_by_side(*pieces)
    assert together.dtype == dtype
    np.testing.assert_array_equal(together, np.concatenate([np.asarray(piece) for piece in pieces], axis=-1))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_sigmoid_by_tanh_is_exact_to_roundings_of_one(dtype):
    x = jnp.asarray(np.linspace(-40, 40, 4001), dtype)
    exact, given = sigmoid(np.asarray(x, "float64")), np.asarray(activations.sigmoid(x), "float64")
    inside = jnp.finfo("float32" if dtype == "bfloat16" else dtype).eps  # narrow ones are computed in float32
    assert (np.abs(given - exact) <= 3 * inside + (jnp.finfo(dtype).eps * exact if dtype == "bfloat16" else 0)).all()


def test_recurrent_dropout_touches_the_recurrent_products_alone():
    cell = seqjax.GRU(H, dtypes=F64)
    dropped = seqjax.cells.RecurrentDropout(cell, 0.5)
    w = Weights(cell, "zrg")
    x, h = inputs(D, H)
    key = jax.random.key(3)
    params, carry, x_ = jax.tree.map(jnp.asarray, (w.params, seqjax.cells.GRUCarry(h), x))
    _, y = dropped.step(params, carry, dropped.project(params, x_), key)
    seen = np.where(np.asarray(jax.random.bernoulli(key, 0.5, h.shape)), h / 0.5, 0)
    z = sigmoid(w.combine("z", x, seen))
    r = sigmoid(w.combine("r", x, seen))
    g = np.tanh(w.combine("g", x, r * seen))
    np.testing.assert_allclose(y, z * h + (1 - z) * g, atol=1e-12)


def test_zoneout_keeps_units_at_its_rate_and_mixes_them_in_evaluation():
    cell = seqjax.LSTM(200, dtypes=F64)
    noisy = seqjax.cells.Zoneout(cell, 0.25, c_rate=0.75)
    params = cell.init(jax.random.key(0), D)
    x = jnp.ones((B, D))
    carry = jax.tree.map(lambda a: a + 5.0, cell.initial_carry(params, (B,)))
    z = cell.project(params, x)
    plain, _ = cell.step(params, carry, z)
    after, y = noisy.step(params, carry, z, jax.random.key(1))
    for name, rate in (("h", 0.25), ("c", 0.75)):
        kept = np.asarray(getattr(after, name) == 5.0)
        np.testing.assert_array_equal(np.where(kept, 5.0, getattr(plain, name)), getattr(after, name))
        assert abs(kept.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / kept.size)
    np.testing.assert_array_equal(y, after.h)
    evaluated, _ = noisy.step(params, carry, z)
    np.testing.assert_allclose(evaluated.h, 0.25 * 5 + 0.75 * plain.h, atol=1e-12)
    np.testing.assert_allclose(evaluated.c, 0.75 * 5 + 0.25 * plain.c, atol=1e-12)
