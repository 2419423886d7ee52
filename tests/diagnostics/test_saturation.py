# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.cells import LambdaCell, RecurrentDropout, Zoneout
from seqjax.diagnostics import gate_values, saturation, trajectories
from tests.common import F64
from tests.diagnostics.by_hand import LEAKY, leaky, lstm_gates, lstm_step, random_params


def look(cell, params, xs, function=saturation, **flags):
    def run(params, xs, flags):
        (seen,) = trajectories(seqjax.RNN(cell), params, xs, **flags)
        return function(seen)

    return jax.jit(run)(params, xs, flags)


def test_gates_of_an_lstm_are_those_of_its_equations():
    cell = seqjax.LSTM(2, dtypes=F64)
    params = random_params(cell, 1, scale=2.0)
    xs = np.random.default_rng(1).normal(size=(6, 3, 1))
    mask = np.random.default_rng(2).random((6, 3)) < 0.7
    h = c = np.zeros((3, 2))
    expected = {name: [] for name in ("i", "f", "g", "o", "phi_c")}
    for t in range(6):
        found = lstm_gates(params, h, c, xs[t])
        after = lstm_step(params, h, c, xs[t])
        for name, values in zip(expected, (*found, np.tanh(after[1])), strict=True):
            expected[name].append(np.where(mask[t][:, None], values, np.nan))
        h, c = (np.where(mask[t][:, None], new, old) for new, old in zip(after, (h, c), strict=True))
    xs = np.where(mask[..., None], xs, np.nan)
    got = look(RecurrentDropout(cell, 0.5), params, xs, lambda seen: (
        {name: gate.values for name, gate in gate_values(seen).items()}, saturation(seen, 0.2)), mask=jnp.array(mask),
    )  # fmt: skip
    assert set(got[0]) == set(expected)
    for name, steps in expected.items():
        values = np.stack(steps)
        np.testing.assert_allclose(got[0][name][mask], values[mask], rtol=1e-10)
        low = 0 if name in "ifo" else -1
        np.testing.assert_allclose(got[1][name].low, (values[mask] <= low + 0.2).mean(0), rtol=1e-6)
        np.testing.assert_allclose(got[1][name].high, (values[mask] >= 0.8).mean(0), rtol=1e-6)
    assert sum(float(gate.fraction) for gate in got[1].values()) > 0


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (seqjax.Simple(2), ["h"]),
        (seqjax.Simple(2, normalize="batch"), ["h"]),
        (seqjax.PeepholeLSTM(2, proj_dim=1), ["f", "g", "i", "o", "phi_c"]),
        (Zoneout(seqjax.GRU(2, reset="after", normalize="layer"), 0.1), ["g", "r", "z"]),
        (seqjax.DiagonalGRU(2), ["g", "r", "z"]),
        (seqjax.DiagonalLSTM(2), ["f", "g", "o", "phi_c"]),
        (seqjax.MinGRU(2), ["z"]),
        (seqjax.MinLSTM(2), ["f"]),
        (seqjax.RGLRU(2), ["i", "r"]),
        (seqjax.LRU(2), []),
        (seqjax.GRU(2, activation=jnp.sin), ["r", "z"]),
        (LambdaCell(lambda key, d: (), lambda p, h, x: (h + x, h), lambda p, b: jnp.zeros((*b, 1), jnp.float32)), []),
    ],
)
def test_gates_have_their_names(cell, names):
    xs = jnp.ones((3, 1), jnp.float32)
    params = jax.eval_shape(lambda key: cell.init(key, 1), jax.random.key(0))

    def run(params, xs):
        (seen,) = trajectories(seqjax.RNN(cell), params, xs)
        return saturation(seen)

    assert sorted(jax.eval_shape(run, params, xs)) == names


def test_gates_of_heads_are_side_by_side():
    cell = seqjax.cells.MultiHead(seqjax.GRU(2), 2)
    model, xs = seqjax.RNN(cell), jax.random.normal(jax.random.key(1), (5, 3, 2), jnp.float32)
    params = model.init(jax.random.key(0), xs)
    (whole,) = trajectories(model, params, xs)
    found = gate_values(whole)
    assert {name: gate.values.shape for name, gate in found.items()} == dict.fromkeys("zrg", (5, 3, 4))
    first = seqjax.RNN(seqjax.GRU(2))
    (alone,) = trajectories(first, jax.tree.map(lambda a: a[0], params), xs)
    np.testing.assert_allclose(found["g"].values[..., :2], gate_values(alone)["g"].values, atol=1e-6)


def test_relu_that_is_off_is_at_its_lower_bound():
    cell = seqjax.IndRNN(2, dtypes=F64)
    params = cell.init(jax.random.key(0), 1)._replace(w_in=np.array([[1.0, -1.0]]), w_rec=np.zeros(2), bias=np.zeros(2))
    found = look(cell, params, np.array([[2.0], [2.0], [-2.0], [0.01]]))["h"]
    np.testing.assert_allclose(found.low, [0.25, 0.75])
    np.testing.assert_allclose(found.high, [0, 0])


def test_linear_activation_has_no_bounds():
    assert look(LEAKY, leaky(0.5), np.ones((3, 1))) == {}


@pytest.mark.parametrize("epsilon", [-0.01, 0.5, np.nan])
def test_an_epsilon_out_of_range_is_refused(epsilon):
    (seen,) = trajectories(seqjax.RNN(LEAKY), leaky(0.5), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"epsilon must be from 0 to below 0\.5"):
        saturation(seen, epsilon)


@dataclasses.dataclass(frozen=True)
class Leaky(seqjax.Cell):
    """h_t = f ⊗ h_{t-1} + (1 - f) ⊗ x_t with f = σ(w), which it names."""

    def init(self, key, in_dim):
        return jnp.array([-9.0, 0.0])

    def initial_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, 2))

    def step(self, params, h, x, key=None):
        f = jax.nn.sigmoid(params)
        h = f * h + (1 - f) * x
        return h, h

    def gate_values(self, params, h, x):
        return {"f": (jnp.broadcast_to(jax.nn.sigmoid(params), h.shape), "sigmoid")}


@pytest.mark.parametrize(("cell", "low"), [(Leaky(), [1, 0]), (seqjax.cells.MultiHead(Leaky(), 2), [1, 0, 1, 0])])
def test_the_gates_that_a_cell_of_ones_own_names_are_seen(cell, low):
    model, xs = seqjax.RNN(cell), jnp.ones((4, 3, 2))
    (seen,) = trajectories(model, model.init(jax.random.key(0), xs), xs)
    assert saturation(seen)["f"].low.tolist() == low
