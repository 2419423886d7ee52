# SPDX-License-Identifier: Apache-2.0
"""The forecasting experiment as a task that cells are compared on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from experiments.forecast import baselines, data, plots, sources
from experiments.forecast.models import CELLS, STANDARD
from experiments.forecast.task import learn, task
from experiments.study.style import line


@pytest.fixture(scope="module")
def made():
    return task()


def test_persistence_is_the_published_figure(made):
    assert made.baselines["persistence"] == pytest.approx(0.25697, abs=5e-6)
    assert made.baselines["least squares"] == pytest.approx(0.015488, abs=5e-7)


def test_the_name_of_a_task_says_which_unit_its_measures_have(made):
    windows = data.load_task("synthetic", None, "greensboro", 50).limited(64)
    reached = {"": baselines.reach(windows, "")}
    assert made.name == "synthetic series, ten steps ahead"
    known = dataclasses.replace(windows, name="temperature", unit="°C")
    assert learn(known, reached).name == "temperature, ten steps ahead (MSE: scaled; MAE: °C)"


def test_a_model_has_one_colour_in_all_pictures():
    names = [*STANDARD, *CELLS]
    drawn = plots.lines(names)
    assert [(drawn[name]["color"], drawn[name]["ls"]) for name in names] == [
        (line(place)["color"], line(place)["ls"]) for place in range(len(names))
    ]


def test_batches_are_windows_with_the_ten_values_after_each_step(made):
    batch = made.make_batch(0, 0)
    assert (batch.xs.shape, batch.ys.shape) == ((50, 32, 1), (50, 32, 10))
    np.testing.assert_array_equal(batch.xs[1:, :, 0], batch.ys[:-1, :, 0])
    first = np.asarray(batch.xs[:, 0, 0])
    assert (sources.synthetic(10_000, 60)[:7_000, :50] == first).all(1).sum() == 1


def test_measures_of_a_model_that_forecasts_zero_are_the_mean_squares(made):
    model = made.model(seqjax.Simple(2))
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((50, 32, 1), jnp.float32))
    found = made.evaluator(model)(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params))
    valid = sources.synthetic(10_000, 60)[7_000:9_000].astype(np.float64)
    assert found["valid_mse_last"] == pytest.approx(np.mean(valid[:, 50:] ** 2), rel=1e-6)
    steps = [np.mean(valid[:, t + 1 : t + 11] ** 2) for t in range(50)]
    assert found["valid_mse"] == pytest.approx(np.mean(steps), rel=1e-6)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="must be 1 to 7000, the training windows, got 8000"):
        task(batch_size=8000)
