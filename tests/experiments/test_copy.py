# SPDX-License-Identifier: Apache-2.0
"""Copy memory: its sequences, its exact chance level, and the command."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

from experiments.copy import config, data, run
from experiments.copy.models import MODELS, ring
from experiments.copy.task import METRIC, RECALL, task
from experiments.study import drawn
from seqjax import training

TINY = ["--models", "simple", "--length", "5", "--hidden-dim", "3", "--steps", "4", "--batch-size", "2",
        "--fresh", "10", "--evaluate-every", "2", "--seeds", "1"]  # fmt: skip


def test_ten_symbols_a_pause_and_a_request_to_repeat_them():
    xs, ys, mask, resets = data.sequences(3, 40, np.random.default_rng(1))
    assert xs.shape == (23, 40, 10)
    assert ys.shape == (23, 40)
    assert xs.dtype == jnp.float32
    assert mask is None
    assert resets is None
    np.testing.assert_array_equal(xs.sum(-1), 1)
    tokens = np.asarray(xs.argmax(-1))
    assert set(tokens[:10].ravel()) == set(range(1, 9))
    np.testing.assert_array_equal(tokens[10:12], 0)  # T - 1 blanks
    np.testing.assert_array_equal(tokens[12:], 9)  # eleven times
    np.testing.assert_array_equal(ys[:13], 0)
    np.testing.assert_array_equal(ys[13:], tokens[:10])


@pytest.mark.parametrize(("T", "rounded"), [(500, 0.0400), (1000, 0.0204), (2000, 0.0103)])
def test_chance_is_ten_logarithms_of_eight_over_all_steps(T, rounded):
    assert round(data.chance(T), 4) == rounded


def test_chance_is_what_the_best_without_memory_reaches():
    ys = np.asarray(data.sequences(30, 25, np.random.default_rng(0)).ys)
    logits = np.full((50, 25, 10), -80.0, np.float32)
    logits[:40, :, 0] = 80.0  # a blank for certain
    logits[40:, :, 1:9] = 0.0  # eight symbols alike
    assert float(training.cross_entropy(jnp.asarray(logits), jnp.asarray(ys))) == pytest.approx(
        data.chance(30), rel=1e-5
    )
    assert data.chance(30) == pytest.approx(10 * math.log(8) / 50, rel=1e-12)


def test_batches_are_pure_and_never_those_that_models_are_judged_by():
    make = task(length=5, batch_size=3).make_batch
    np.testing.assert_array_equal(make(1, 2).xs, make(1, 2).xs)
    others = [make(1, 3), make(2, 2), drawn.fresh(functools.partial(data.sequences, 5), 3, seed=1)[0]]
    assert all(not np.array_equal(make(1, 2).xs, other.xs) for other in others)


def test_slow_eigenvalues_outlast_the_pause():
    nu_log, _ = ring(1000)(jax.random.key(0), (2, 500), jnp.float32)
    kept = np.exp(-np.exp(np.asarray(nu_log, np.float64))) ** 1020
    assert 0.49 < kept.min() < 0.55
    assert 0.95 < kept.max() < 0.985


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_at_every_step(name):
    model = MODELS[name].build(4, 100)
    xs = jax.ShapeDtypeStruct((25, 3, 10), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), xs)
    carry = jax.eval_shape(lambda p: model.initial_carry(p, (3,)), params)
    assert jax.eval_shape(model.apply, params, carry, xs)[1].shape == (25, 3, 10)


def test_a_task_refuses_what_it_cannot_make():
    with pytest.raises(ValueError, match="length must be at least 1"):
        task(length=0)


def test_published_figures_stand_only_beside_their_own_length():
    paper, default = (run.variants(config.COMMAND.presets[name]) for name in ("paper", "default"))
    assert {row.name: row.published for row in paper if row.published} == {
        "gru": {METRIC: "0.0197"},
        "lstm": {METRIC: "0.0204"},
    }
    assert not any(row.published for row in default)


def test_the_command_trains_reports_and_resumes(tmp_path):
    run_dir = tmp_path / "run"
    assert run.main([*TINY, "--run-dir", str(run_dir)]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["baselines"] == {"chance (exact)": pytest.approx(10 * math.log(8) / 25)}
    assert summary["also"] == {RECALL: {"chance (exact)": pytest.approx(1 / 8)}}
    assert set(summary["rows"][0]["outcomes"][0]["values"]) >= {METRIC, RECALL}
    assert (run_dir / "learning.png").stat().st_size > 1000
    result = run_dir / "simple" / "0" / "result.json"
    before = result.read_bytes(), result.stat().st_mtime_ns
    assert run.main(["--resume", str(run_dir)]) == 0
    assert (result.read_bytes(), result.stat().st_mtime_ns) == before


def test_bad_input_ends_with_status_2_and_names_the_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        run.main(["--models", "none"])
    assert exit_.value.code == 2
    assert "--models" in capsys.readouterr().err
