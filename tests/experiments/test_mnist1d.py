# SPDX-License-Identifier: Apache-2.0
"""One-dimensional digits: the known data, the published model to the parameter, a run that is resumed."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mnist1d")

from experiments.mnist1d import data, run, task
from experiments.mnist1d.models import MODELS


@pytest.fixture(scope="module")
def digits():
    return data.load()


def test_the_data_are_the_known_ones(digits):
    assert digits.train_xs.shape == (4000, 40)
    assert digits.test_xs.shape == (1000, 40)
    assert np.bincount(digits.train_ys).min() > 300
    both = np.concatenate([digits.train_xs, digits.test_xs])
    np.testing.assert_allclose([both.mean(), both.std()], [0, 1], atol=1e-5)


def make_others(options):
    """A generator that seeds the global random numbers, as the package's does, and draws other digits."""
    random.seed(1)
    np.random.seed(1)
    draw = np.random.default_rng(0).normal
    return {"x": draw(size=(4, 40)), "y": np.arange(4), "x_test": draw(size=(2, 40)), "y_test": np.arange(2)}


def test_other_data_are_refused_and_random_numbers_go_on_as_before(monkeypatch):
    monkeypatch.setattr("mnist1d.data.make_dataset", make_others)
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    with pytest.raises(ValueError, match=r"mnist1d==0\.0\.2\.post1"):
        data.load.__wrapped__()
    assert (random.random(), np.random.random()) == expected


def test_shuffled_sequences_are_one_permutation_of_the_steps(digits):
    shuffled = data.load(shuffled=True)
    same = np.abs(digits.train_xs.T[:, None] - shuffled.train_xs.T[None]).max(-1) < 1e-5  # [step, step]
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) == 1).all()
    assert not same.diagonal().all()
    np.testing.assert_array_equal(digits.train_ys, shuffled.train_ys)


def test_the_published_model_has_5134_parameters():
    """Two directions of 18 x 1 and 18 x 6 weights and two biases of 18; 480 x 10 and 10 of the linear map."""
    params = jax.eval_shape(lambda: MODELS["gru"].build().init(jax.random.key(0), jnp.zeros((40, 2, 1), jnp.float32)))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 2 * (18 + 18 * 6 + 2 * 18) + 480 * 10 + 10 == 5134


def test_an_epoch_shows_every_sequence_once(digits):
    seen = [data.batch(digits, size=500, seed=3, step=step) for step in range(8)]
    xs = np.concatenate([xs[..., 0].T for xs, _ in seen])
    order = np.lexsort(xs.T)
    np.testing.assert_array_equal(xs[order], digits.train_xs[np.lexsort(digits.train_xs.T)])
    assert not np.array_equal(seen[0][0], data.batch(digits, size=500, seed=3, step=8)[0])


def test_a_run_reports_every_seed(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(data, "load", lambda shuffled: data.Digits(*(part[:100] for part in digits)))
    monkeypatch.setattr(task, "CHUNK", 50)
    where = tmp_path / "run"
    tiny = ["--models", "gru", "--hidden-dim", "2", "--batch-size", "10", "--steps", "2", "--seeds", "2"]
    assert run.main([*tiny, "--run-dir", str(where)]) == 0
    (row,) = json.loads((where / "summary.json").read_text())["rows"]
    assert [found["replicate"] for found in row["outcomes"]] == [0, 1]
    assert all(0 <= found["values"]["accuracy"] <= 1 for found in row["outcomes"])
    assert run.main(["--resume", str(where), "--seeds", "1"]) == 2


def test_the_published_figure_stands_beside_its_own_protocol_alone():
    assert run.variant("gru", run.Config()).published == {"accuracy": MODELS["gru"].published[False]}
    assert run.variant("gru", run.Config(hidden_dim=7)).published == {}
    assert run.variant("gru", run.PRESETS["smoke"]).published == {}


@pytest.mark.parametrize(("models", "message"), [("gru,gru", "one is named twice"), ("gru,elman", "elman.*choose")])
def test_models_that_there_are_not_and_one_given_twice_are_refused(models, message):
    with pytest.raises(ValueError, match=f"--models: .*{message}"):
        run.Config(models=models)
