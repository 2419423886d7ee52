# SPDX-License-Identifier: Apache-2.0
"""The baselines reproduce the published and measured figures of the synthetic task."""

import numpy as np
import pytest

from experiments.forecast import baselines, data, sources


@pytest.fixture(scope="module")
def task():
    return data.synthetic_task()


def test_persistence_one_step_ahead_is_the_published_figure():
    series = sources.synthetic(10_000, 51)[7_000:9_000]
    assert np.mean((series[:, -2] - series[:, -1]) ** 2) == pytest.approx(0.020211367, abs=5e-10)


def test_persistence_of_the_last_ten_is_the_published_figure(task):
    truth = data.targets(task.valid, 50)
    found = baselines.score(baselines.persistence(task.valid, 50), truth, 1.0)
    assert found["mse_last"] == pytest.approx(0.25697, abs=5e-6)


def test_least_squares_of_the_last_ten_is_the_measured_figure(task):
    truth = data.targets(task.valid, 50)
    found = baselines.score(baselines.LeastSquares.fit(task.train)(task.valid), truth, 1.0)
    assert found["mse_last"] == pytest.approx(0.015488, abs=5e-7)


def test_least_squares_of_every_step_is_its_own_regression(task):
    series = task.train[:500]
    linear = baselines.LeastSquares.fit(series)
    made = linear(task.valid[:20])
    for t in (0, 3, 17, 49):
        seen = np.c_[np.ones(500), series[:, : t + 1].astype(np.float64)]
        weights = np.linalg.lstsq(seen, series[:, t + 1 : t + 11].astype(np.float64), rcond=None)[0]
        expected = np.c_[np.ones(20), task.valid[:20, : t + 1].astype(np.float64)] @ weights
        np.testing.assert_allclose(made[:, t], expected, rtol=1e-8, atol=1e-10)


def test_least_squares_sees_nothing_that_is_yet_to_come(task):
    linear = baselines.LeastSquares.fit(task.train[:500])
    changed = task.valid[:5].copy()
    changed[:, 20:] = 1e3
    np.testing.assert_array_equal(linear(changed)[:, :20], linear(task.valid[:5])[:, :20])


def test_least_squares_of_a_series_without_noise_is_exact():
    steps = np.arange(400)
    series = np.lib.stride_tricks.sliding_window_view(np.sin(0.3 * steps), 25)
    made = baselines.LeastSquares.fit(series)(series)
    np.testing.assert_allclose(made[:, 1:], data.targets(series, 15)[:, 1:], atol=1e-9)


def test_score_is_in_scaled_and_in_own_units():
    truth = np.zeros((1, 2, 10))
    forecasts = np.stack([np.full(10, 1.0), np.full(10, -3.0)])[None]
    found = baselines.score(forecasts, truth, 2.0)
    assert found == {"mse": 5.0, "mse_last": 9.0, "mae_last": 6.0}


def test_baselines_are_judged_at_the_steps_of_a_strided_model(task):
    found = baselines.reach(task, "[3::2]")["persistence"]
    errors = data.targets(task.valid, 50)[:, 3::2] - task.valid[:, 3:50:2, None].astype(np.float64)
    assert found["valid_mse"] == pytest.approx(np.mean(errors**2), rel=1e-6)
    assert found["valid_mse_last"] == pytest.approx(0.25697, abs=5e-6)
