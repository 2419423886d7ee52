# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cells.diagonal import DiagonalGRU, DiagonalLSTM
from seqjax.dtypes import DTypes
from seqjax.engines.scan import Scan
from seqjax.testing import example
from tests.common import F64, assert_equals_loop, sigmoid

CELLS = [DiagonalGRU(3, dtypes=F64), DiagonalLSTM(3, dtypes=F64)]


def numpy_gru(params, h, x):
    w_in, w, b = (np.asarray(p) for p in params)
    a_z, a_r, a_g = np.split(x @ w_in + b, 3, axis=-1)
    z, r = sigmoid(a_z + w[0] * h), sigmoid(a_r + w[1] * h)
    h = z * h + (1 - z) * np.tanh(a_g + w[2] * r * h)
    return h, h


def numpy_lstm(params, c, x):
    w_in, w, b = (np.asarray(p) for p in params)
    a_f, a_g, a_o = np.split(x @ w_in + b, 3, axis=-1)
    f = sigmoid(a_f + w[0] * c)
    c = f * c + (1 - f) * np.tanh(a_g + w[1] * c)
    return c, sigmoid(a_o + w[2] * c) * np.tanh(c)


@pytest.mark.parametrize(("cell", "oracle"), [(CELLS[0], numpy_gru), (CELLS[1], numpy_lstm)])
def test_steps_follow_the_equations(cell, oracle):
    params, carry, xs, *_ = example(cell, T=5, batch_shape=(2,))
    state = np.asarray(carry[0])
    for x in xs:
        state, output = oracle(params, state, np.asarray(x))
        carry, y = cell.step(params, carry, cell.project(params, x))
        np.testing.assert_allclose(carry[0], state, rtol=1e-12)
        np.testing.assert_allclose(y, output, rtol=1e-12)


@pytest.mark.parametrize("cell", [*CELLS, DiagonalGRU(3, activation="relu", use_bias=False, dtypes=F64)])
def test_the_hand_written_transpose_gives_autodiffs_gradients(cell):
    assert "adjoint" in cell.capabilities
    assert_equals_loop(cell, Scan(), *example(cell, T=4, masked=True, with_resets=True), tolerance=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_the_jacobian_is_diagonal_and_that_of_autodiff(cell):
    params, carry, xs, *_ = example(cell, batch_shape=())
    z = cell.project(params, xs[0])
    dense = jax.jacfwd(lambda state: cell.step(params, type(carry)(state), z)[0][0])(carry[0])
    np.testing.assert_allclose(jnp.diag(cell.step_jacobian(params, carry, z)[0]), dense, atol=1e-14)


def test_the_forget_gate_starts_open():
    bias = DiagonalLSTM(2).init(jax.random.key(0), 1).bias
    assert bias.tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("cell_type", [DiagonalGRU, DiagonalLSTM])
def test_recurrent_weights_start_within_one(cell_type):
    weights = np.asarray(cell_type(500).init(jax.random.key(0), 1).w_rec)
    assert np.abs(weights).max() <= 1
    assert weights.std() == pytest.approx(3**-0.5, rel=0.1)


@pytest.mark.parametrize("cell_type", [DiagonalGRU, DiagonalLSTM])
def test_bfloat16_compute_keeps_a_float32_carry(cell_type):
    cell = cell_type(3, dtypes=DTypes(compute="bfloat16", carry="float32"))
    params = cell.init(jax.random.key(0), 2)
    z = cell.project(params, jnp.ones(2))
    carry, y = cell.step(params, cell.initial_carry(params, ()), z)
    assert (carry[0].dtype, y.dtype) == (jnp.float32, jnp.bfloat16)
    assert cell.step_jacobian(params, carry, z)[0].dtype == jnp.float32


@pytest.mark.parametrize("cell_type", [DiagonalGRU, DiagonalLSTM])
def test_an_activation_without_known_slope_offers_no_closed_forms(cell_type):
    cell = cell_type(3, activation=jnp.sin)
    params, carry, xs, *_ = example(cell)
    assert cell.capabilities == frozenset()
    with pytest.raises(ValueError, match="does not offer 'jacobian'"):
        cell.step_jacobian(params, carry, cell.project(params, xs[0]))


@pytest.mark.parametrize("cell_type", [DiagonalGRU, DiagonalLSTM])
def test_a_size_that_is_no_size_is_refused(cell_type):
    with pytest.raises(ValueError, match=f"{cell_type.__name__}: hidden_dim must be a positive integer"):
        cell_type(0)


@pytest.mark.parametrize("cell_type", [DiagonalGRU, DiagonalLSTM])
def test_a_cell_prints_as_its_code(cell_type):
    assert repr(cell_type(20)) == f"{cell_type.__name__}(20)"
