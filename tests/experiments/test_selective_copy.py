# SPDX-License-Identifier: Apache-2.0
"""Selective copying: its sequences, its exact chance level, and the command."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

from experiments.selective_copy import config, data, run
from experiments.selective_copy.models import entries
from experiments.selective_copy.task import CROSS_ENTROPY, METRIC, task
from experiments.study import drawn
from seqjax import training

TINY = ["--models", "mingru", "--length", "6", "--recalled", "2", "--layers", "1", "--width", "3", "--hidden-dim", "3",
        "--steps", "4", "--batch-size", "2", "--fresh", "10", "--evaluate-every", "2", "--seeds", "1"]  # fmt: skip


def test_symbols_at_random_steps_are_asked_for_in_their_order():
    xs, ys, mask, resets = data.sequences(9, 4, 300, np.random.default_rng(2))
    assert xs.shape == (13, 300)
    assert ys.shape == (13, 300)
    assert mask is None
    assert resets is None
    xs, ys = np.asarray(xs), np.asarray(ys)
    np.testing.assert_array_equal(xs[9:], 15)
    for b in range(300):
        np.testing.assert_array_equal(xs[:9, b][xs[:9, b] != 0], ys[9:, b])
    assert set(ys[9:].ravel()) == set(range(1, 15))


def test_every_step_holds_a_symbol_equally_often():
    xs = np.asarray(data.sequences(5, 2, 1000, np.random.default_rng(0)).xs)[:5]
    np.testing.assert_allclose((xs != 0).sum(1), 400, atol=5 * np.sqrt(1000 * 0.4 * 0.6))  # five standard deviations


def test_all_steps_may_hold_symbols():
    xs = np.asarray(data.sequences(4, 4, 10, np.random.default_rng(0)).xs)
    assert (xs[:4] > 0).all()


def test_chance_is_what_the_best_without_memory_reaches():
    symbols = jnp.zeros((3, 14), int).at[-1].set(np.arange(1, 15))  # each equally often
    alike = jnp.asarray(np.array([-80.0] + [0.0] * 14 + [-80.0], np.float32) * np.ones((3, 14, 1), np.float32))
    assert float(training.AtLastStep(training.cross_entropy)(alike, symbols)) == pytest.approx(math.log(14), rel=1e-6)
    assert pytest.approx(math.log(14), rel=1e-12) == data.CHANCE_CROSS_ENTROPY
    for guess in range(1, 15):
        always = jnp.asarray(np.eye(16, dtype=np.float32)[np.full((3, 14), guess)])
        assert float(training.AtLastStep(training.accuracy)(always, symbols)) == pytest.approx(
            data.CHANCE_ACCURACY, rel=1e-6
        )


def test_batches_are_pure_and_never_those_that_models_are_judged_by():
    make = task(length=12, recalled=3, batch_size=5).make_batch
    np.testing.assert_array_equal(make(1, 2).xs, make(1, 2).xs)
    others = [make(1, 3), make(2, 2), drawn.fresh(functools.partial(data.sequences, 12, 3), 5, seed=1)[0]]
    assert all(not np.array_equal(make(1, 2).xs, other.xs) for other in others)


@pytest.mark.parametrize("name", entries(3, 8))
def test_every_model_answers_at_every_step(name):
    model = entries(2, 8)[name].build(4, 64)
    xs = jax.ShapeDtypeStruct((25, 3), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), xs)
    carry = jax.eval_shape(lambda p: model.initial_carry(p, (3,)), params)
    assert jax.eval_shape(model.apply, params, carry, xs)[1].shape == (25, 3, 16)


def test_more_symbols_than_steps_are_refused(capsys):
    with pytest.raises(ValueError, match="do not fit"):
        task(length=4, recalled=5)
    with pytest.raises(SystemExit) as exit_:
        run.main(["--length", "4", "--recalled", "5"])
    assert exit_.value.code == 2
    assert "do not fit" in capsys.readouterr().err


def test_the_paper_preset_is_the_published_protocol():
    paper = config.COMMAND.presets["paper"]
    assert (paper.length, paper.recalled, paper.layers, paper.steps) == (4096, 16, 3, 400_000)
    assert {row.name: row.published for row in run.variants(paper)} == {
        "mingru": {METRIC: "0.995"},
        "minlstm": {METRIC: "0.960"},
    }


def test_the_command_trains_reports_and_resumes(tmp_path):
    run_dir = tmp_path / "run"
    assert run.main([*TINY, "--run-dir", str(run_dir)]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["baselines"] == {"chance (exact: 1/14)": pytest.approx(1 / 14)}
    assert set(summary["rows"][0]["outcomes"][0]["values"]) >= {METRIC, CROSS_ENTROPY}
    assert (run_dir / "learning.png").stat().st_size > 1000
    result = run_dir / "mingru" / "0" / "result.json"
    before = result.read_bytes(), result.stat().st_mtime_ns
    assert run.main(["--resume", str(run_dir)]) == 0
    assert (result.read_bytes(), result.stat().st_mtime_ns) == before
