# SPDX-License-Identifier: Apache-2.0
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from seqjax import training
from seqjax.diagnostics import clip_history


def line(step, norm, clipped=False, skipped=False, so_far=0):
    flags = {"clipped": clipped, "skipped": skipped, "skipped_steps": so_far}
    return {"step": step, "loss": 1.0, "grad_norm": norm, **flags}


def test_blocks_of_a_run():
    lines = [line(1, 5.0, True), line(2, None, skipped=True, so_far=1), line(3, 1.0, so_far=1)]
    lines += [line(4, 3.0, True, so_far=1), line(5, 2.0, True, so_far=1)]
    history = clip_history(lines, blocks=2)
    assert history.steps.tolist() == [3, 5]
    np.testing.assert_allclose(history.clipped, [1 / 3, 1])
    np.testing.assert_allclose(history.skipped, [1 / 3, 0])
    np.testing.assert_allclose(history.norms, [3, 2.5])
    assert (history.clip_fraction, history.skip_count) == (pytest.approx(0.6), 1)


def test_more_blocks_than_lines():
    history = clip_history([line(7, None, skipped=True), {"step": 8, "valid": 1.0}])
    assert history.steps.tolist() == [7]
    assert np.isnan(history.norms).tolist() == [True]


def test_metrics_of_a_training_run_are_read(tmp_path):
    def make_batch(seed, t):
        return training.Batch(jnp.ones((2, 1), jnp.float32), jnp.full((2, 1), 1e3 if t < 2 else 0.0, jnp.float32))

    training.fit(
        seqjax.Dense(1), make_batch, steps=4, loss=training.mean_squared_error, run_dir=tmp_path,
        optimizer=training.clipped(optax.sgd(0.0), norm=10.0),
    )  # fmt: skip
    lines = training.read_metrics(tmp_path / "metrics.jsonl")
    assert lines == training.read_metrics(tmp_path)  # the run's directory, as `load` takes it
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["clipped"] is True
    assert clip_history(lines, blocks=2).clipped.tolist() == [1, 0]


def test_steps_that_were_skipped_between_lines_count():
    def make_batch(seed, t):
        xs = jnp.full((4, 2, 1), np.nan if t % 10 == 3 else 1, jnp.float32)
        return training.Batch(xs, jnp.zeros((4, 2, 1), jnp.float32))

    run = training.fit(
        seqjax.Dense(1), make_batch, steps=40, loss=training.mean_squared_error, optimizer=optax.sgd(0.1), log_every=20
    )
    assert clip_history(run.history).skip_count == int(run.state.skipped) == 4


@pytest.mark.parametrize(("lines", "blocks"), [([], 3), ([{"step": 1}], 3), ([line(1, 1.0)], 0)])
def test_nothing_to_read_is_refused(lines, blocks):
    with pytest.raises(ValueError, match=r"metrics of a run|blocks must be a positive integer"):
        clip_history(lines, blocks)
