# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cells.indrnn import IndRNN
from seqjax.dtypes import DTypes
from seqjax.engines.scan import Scan
from seqjax.initializers import Uniform
from seqjax.testing import example
from tests.common import F64, assert_equals_loop


def test_steps_follow_the_published_equation():
    cell = IndRNN(3, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=5, batch_shape=(2,))
    w_in, u, b, h = (np.asarray(a) for a in (*params, carry.h))
    for x in xs:
        h = np.maximum(np.asarray(x) @ w_in + u * h + b, 0)
        carry, y = cell.step(params, carry, cell.project(params, x))
        np.testing.assert_allclose(y, h, rtol=1e-12)
        np.testing.assert_array_equal(carry.h, y)


@pytest.mark.parametrize("cell", [IndRNN(3, dtypes=F64), IndRNN(3, activation="tanh", use_bias=False, dtypes=F64)])
def test_the_hand_written_transpose_gives_autodiffs_gradients(cell):
    assert "adjoint" in cell.capabilities
    assert_equals_loop(cell, Scan(), *example(cell, T=4, masked=True, with_resets=True), tolerance=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_step_jacobian_is_that_of_autodiff(activation):
    cell = IndRNN(4, activation=activation, dtypes=F64)
    params, carry, xs, *_ = example(cell, batch_shape=())
    z = cell.project(params, xs[0])
    dense = jax.jacfwd(lambda h: cell.step(params, carry._replace(h=h), z)[0].h)(carry.h)
    np.testing.assert_allclose(jnp.diag(cell.step_jacobian(params, carry, z).h), dense, atol=1e-14)


def test_recurrent_weights_start_within_the_unit_interval():
    weights = IndRNN(500).init(jax.random.key(0), 1).w_rec
    assert float(weights.min()) >= 0
    assert float(weights.max()) <= 1
    assert float(weights.std()) == pytest.approx(12**-0.5, rel=0.1)


def test_bfloat16_compute_keeps_a_float32_carry():
    cell = IndRNN(3, dtypes=DTypes(compute="bfloat16", carry="float32"))
    params = cell.init(jax.random.key(0), 2)
    carry, y = cell.step(params, cell.initial_carry(params, ()), cell.project(params, jnp.ones(2)))
    assert (carry.h.dtype, y.dtype) == (jnp.float32, jnp.bfloat16)
    assert cell.step_jacobian(params, carry, cell.project(params, jnp.ones(2))).h.dtype == jnp.float32


def test_an_activation_without_known_slope_offers_no_closed_forms():
    cell = IndRNN(3, activation=jnp.sin)
    params, carry, xs, *_ = example(cell)
    assert cell.capabilities == frozenset()
    assert cell.jacobian_structure == "diagonal"
    with pytest.raises(ValueError, match="does not offer 'jacobian'"):
        cell.step_jacobian(params, carry, cell.project(params, xs[0]))


@pytest.mark.parametrize("bad", [{"hidden_dim": 0}, {"hidden_dim": 3, "activation": "no"}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=r"positive integer|unknown activation"):
        IndRNN(**bad)


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match="low < high"):
        Uniform(1.0, 1.0)
