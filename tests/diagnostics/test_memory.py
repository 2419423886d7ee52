# SPDX-License-Identifier: Apache-2.0
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import diagnostics
from seqjax.diagnostics import gradient_flow, memory_horizon, memory_profile, trajectories
from seqjax.layers.conv import ConvParams
from tests.common import F64
from tests.diagnostics.by_hand import LEAKY, differences, leaky, lstm_step, random_params


def profile(model, params, xs, **flags):
    return np.asarray(jax.jit(lambda params, xs, flags: memory_profile(model, params, xs, **flags))(params, xs, flags))


def test_linear_recurrence_is_forgotten_by_its_factor():
    got = profile(seqjax.RNN(LEAKY), leaky(0.8), np.ones((40, 2, 1)))
    np.testing.assert_allclose(got, np.tile(0.8 ** np.arange(40)[:, None], (1, 2)), rtol=1e-12)
    found = memory_horizon(jnp.asarray(got))
    assert found.lag.tolist() == [math.ceil(math.log(0.01) / math.log(0.8))] * 2
    assert found.reached.all()


def test_lags_behind_a_strided_front_end_are_input_steps():
    front = seqjax.Conv1D(1, 2, stride=2, dtypes=F64)  # outputs at x_0, x_2, ...: x[2o - 1] + x[2o]
    params = (ConvParams(np.ones((2, 1, 1)), np.zeros(1)), leaky(0.5))
    got = profile(seqjax.Serial(front, seqjax.RNN(LEAKY)), params, np.ones((8, 1)))
    np.testing.assert_allclose(got, [0, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125], rtol=1e-12)  # no output has seen x_7


def test_lags_count_from_the_last_unmasked_step():
    mask = seqjax.mask_from_lengths(jnp.array([3, 5, 0]), 5)
    xs = np.where(mask[..., None], 1.0, np.nan)
    got = profile(seqjax.RNN(LEAKY), leaky(0.5), xs, mask=mask)
    np.testing.assert_allclose(got[:, 0], [1, 0.5, 0.25, np.nan, np.nan])
    np.testing.assert_allclose(got[:, 1], [1, 0.5, 0.25, 0.125, 0.0625])
    assert np.isnan(got[:, 2]).all()
    found = memory_horizon(jnp.asarray(got[:, :2]), 0.3)
    assert found.lag.tolist() == [2, 2]
    assert memory_horizon(jnp.asarray(got[:, :2]), 0.1).reached.tolist() == [False, True]


def test_what_explodes_is_remembered():
    # 3^lag: its square leaves float32 from lag 41 on, itself from lag 81 on, where 0 times infinity is NaN
    model, xs = seqjax.RNN(seqjax.Simple(2, activation="identity")), np.zeros((100, 2), np.float32)
    params = model.init(jax.random.key(0), xs)
    params = params._replace(w_in=jnp.eye(2, dtype="float32"), w_rec=3 * jnp.eye(2, dtype="float32"))
    got = profile(model, params, xs)
    np.testing.assert_allclose(got[:80], np.sqrt(2) * 3.0 ** np.arange(80), rtol=1e-5)
    assert np.isposinf(got[81:]).all()
    found = memory_horizon(jnp.asarray(got))
    assert (int(found.lag), bool(found.reached)) == (100, False)
    mask = seqjax.mask_from_lengths(jnp.array(90), 100)
    got = profile(model, params, xs, mask=mask)
    assert np.isposinf(got[81:90]).all()
    assert np.isnan(got[90:]).all()
    assert not memory_horizon(jnp.asarray(got)).reached


def test_norm_is_that_of_finite_differences():
    cell, steps = seqjax.LSTM(2, dtypes=F64), 4
    params = random_params(cell, 3)
    xs = np.random.default_rng(1).normal(size=(steps, 3))

    def output(flat):
        h = c = np.zeros(2)
        for x in flat.reshape(steps, 3):
            h, c = lstm_step(params, h, c, x)
        return h

    expected = [np.linalg.norm(differences(output, xs.ravel())[:, 3 * t : 3 * t + 3]) for t in range(steps)][::-1]
    model = seqjax.RNN(cell)
    np.testing.assert_allclose(profile(model, params, xs), expected, rtol=1e-7)
    # 400 projections: a relative standard deviation of 3.5% at most
    drawn = {"projections": 400, "projection_key": jax.random.key(0)}
    estimate = jax.jit(lambda xs: memory_profile(model, params, xs, **drawn))(xs)
    np.testing.assert_allclose(estimate, expected, rtol=0.15)


@pytest.mark.parametrize(
    ("curve", "lag", "reached"),
    [
        ([1.0, 0.1, 0.005, 0.02, 0.001], 4, True),  # it rises again at lag 3
        ([0.001, 1.0, 0.001, 0.001], 2, True),
        ([1.0, 0.5, 0.02], 3, False),
        ([0.0, 0.0], 0, True),
        ([1.0, 0.01], 1, True),  # at the fraction, not above it
        ([np.inf, 1.0, 0.5], 1, True),
        ([1.0, 2.0, np.inf, np.inf, np.nan], 4, False),
    ],
)
def test_horizon_is_where_the_profile_stays_below(curve, lag, reached):
    found = memory_horizon(jnp.array(curve))
    assert (int(found.lag), bool(found.reached)) == (lag, reached)


def test_bad_input_is_refused():
    model, ids = seqjax.Serial(seqjax.Embed(5, 2), seqjax.RNN(LEAKY)), jnp.zeros((3, 1), jnp.int32)
    with pytest.raises(ValueError, match="no derivative in ids"):
        memory_profile(model, None, ids)
    with pytest.raises(ValueError, match="xs must be an array, got list"):
        memory_profile(seqjax.RNN(LEAKY), leaky(0.5), [[1.0]])
    with pytest.raises(ValueError, match="need a key; give projection_key="):
        memory_profile(seqjax.RNN(LEAKY), leaky(0.5), jnp.ones((3, 1)), projections=3)
    with pytest.raises(ValueError, match="projections must be a positive integer"):
        memory_profile(seqjax.RNN(LEAKY), leaky(0.5), jnp.ones((3, 1)), projections=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got"):
        memory_horizon(jnp.ones(3), fraction)


def test_a_key_is_one_of_training_in_every_diagnostic():
    functions = [getattr(diagnostics, name) for name in diagnostics.__all__ if name.islower()]
    assert {f for f in functions if "key" in inspect.signature(f).parameters} == {gradient_flow, trajectories}
