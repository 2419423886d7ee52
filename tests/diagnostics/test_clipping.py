# SPDX-License-Identifier: Apache-2.0
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from seqjax import training
from seqjax.diagnostics import clip_history


def line(step, norm, clipped=0, skipped=0):
    return {"step": step, "loss": 1.0, "grad_norm": norm, "clipped_steps": clipped, "skipped_steps": skipped}


def test_blocks_of_a_run():
    lines = [line(1, 5.0, 1), line(2, None, 1, 1), line(3, 1.0, 1, 1), line(4, 3.0, 2, 1), line(5, 2.0, 3, 1)]
    history = clip_history(lines, blocks=2)
    assert history.steps.tolist() == [3, 5]
    np.testing.assert_allclose(history.clipped, [1 / 3, 1])
    np.testing.assert_allclose(history.skipped, [1 / 3, 0])
    np.testing.assert_allclose(history.norms, [3, 2.5])
    assert (history.clip_fraction, history.skip_count) == (pytest.approx(0.6), 1)


def test_more_blocks_than_lines():
    history = clip_history([line(7, None, 0, 7), {"step": 8, "valid": 1.0}])
    assert (history.steps.tolist(), history.skipped.tolist()) == ([7], [1])
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


@pytest.mark.parametrize("every", [1, 7, 20])
def test_steps_between_lines_count(every):
    """Of every ten steps one is skipped, and three have an error of 1 and a gradient that is clipped."""

    def make_batch(seed, t):
        xs = jnp.full((4, 2, 1), np.nan if t % 10 == 3 else 1, jnp.float32)
        return training.Batch(xs, jnp.full((4, 2, 1), t % 10 in (1, 2, 6), jnp.float32))

    model, optimizer = seqjax.Dense(1, kernel_init="zeros"), training.clipped(optax.sgd(0.0), norm=1.0)
    loss = training.mean_squared_error
    run = training.fit(model, make_batch, steps=40, loss=loss, optimizer=optimizer, log_every=every)
    history = clip_history(run.history)
    assert (history.clip_fraction, history.skip_count) == (12 / 40, 4)
    blocks = np.diff(history.steps, prepend=0)
    for parts, count in ((history.clipped, 12), (history.skipped, 4)):
        np.testing.assert_allclose(np.sum(parts * blocks), count)
    np.testing.assert_allclose(clip_history(run.history, blocks=1).clipped, 0.3)


@pytest.mark.parametrize(("lines", "blocks"), [([], 3), ([{"step": 1}], 3), ([line(1, 1.0)], 0)])
def test_nothing_to_read_is_refused(lines, blocks):
    with pytest.raises(ValueError, match=r"metrics of a run|blocks must be a positive integer"):
        clip_history(lines, blocks)
