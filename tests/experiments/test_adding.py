# SPDX-License-Identifier: Apache-2.0
"""The adding problem: its sequences, its chance level, its curriculum, and the command."""

import fractions
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

import seqjax
from experiments.adding import config, data, run
from experiments.adding.models import MODELS, closed
from experiments.adding.task import METRIC, task
from experiments.study import drawn

TINY = ["--models", "mingru-closed", "--length", "12", "--hidden-dim", "3", "--steps", "4", "--batch-size", "2",
        "--fresh", "10", "--evaluate-every", "2", "--seeds", "1"]  # fmt: skip


@pytest.mark.parametrize("T", [2, 7, 12])
def test_one_number_of_each_half_is_marked_and_their_sum_is_the_target(T):
    xs, ys, mask, resets = data.sequences(T, 50, np.random.default_rng(3))
    assert xs.shape == (T, 50, 2)
    assert ys.shape == (1, 50, 1)
    assert xs.dtype == ys.dtype == jnp.float32
    assert mask is None
    assert resets is None
    numbers, marks = np.asarray(xs[..., 0]), np.asarray(xs[..., 1])
    assert ((numbers >= 0) & (numbers < 1)).all()
    for b in range(50):
        first, second = np.flatnonzero(marks[:, b])
        assert first < T // 2 <= second
        assert marks[first, b] == marks[second, b] == 1
        assert ys[0, b, 0] == pytest.approx(float(numbers[first, b]) + float(numbers[second, b]), abs=1e-6)


def test_every_step_of_each_half_can_be_marked():
    xs = data.sequences(8, 400, np.random.default_rng(0)).xs
    counts = np.asarray(xs[..., 1]).sum(1)
    np.testing.assert_allclose(counts, 100, atol=5 * np.sqrt(100 * 0.75))  # five standard deviations


def test_chance_is_the_variance_of_a_sum_of_two_uniform_numbers():
    second, first = fractions.Fraction(1, 3), fractions.Fraction(1, 2)  # moments of U(0, 1)
    variance = 2 * second + 2 * first**2 - 1
    assert float(variance) == data.CHANCE


def test_the_evaluator_gives_the_error_of_always_saying_one():
    made = task(length=6, fresh=130)
    model = seqjax.Serial(seqjax.Last(), seqjax.Dense(1))
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), jnp.zeros((6, 2, 2), jnp.float32)))
    params = (params[0], params[1]._replace(bias=jnp.ones(1, jnp.float32)))
    found = made.evaluator(model)(params)
    judged = drawn.fresh(functools.partial(data.sequences, 6), 130, 0)
    ys = np.concatenate([np.asarray(batch.ys, np.float64).ravel() for batch in judged])
    assert len(ys) == 130
    assert found[METRIC] == pytest.approx(np.mean((ys - 1) ** 2), rel=1e-6)
    assert found[METRIC] == pytest.approx(1 / 6, abs=5 * np.sqrt(7 / 180 / 130))  # Var (u + v - 1)² = 7/180


def test_batches_are_pure_and_never_those_that_models_are_judged_by():
    make = task(length=10, batch_size=3).make_batch
    np.testing.assert_array_equal(make(1, 2).xs, make(1, 2).xs)
    draw = functools.partial(data.sequences, 10)
    judged = drawn.fresh(draw, 3, seed=1)[0]
    others = [make(1, 3), make(2, 2), judged]
    assert all(not np.array_equal(make(1, 2).xs, other.xs) for other in others)
    np.testing.assert_array_equal(judged.xs, drawn.fresh(draw, 3, seed=1)[0].xs)
    assert [batch.ys.shape[1] for batch in drawn.fresh(draw, 130, seed=0)] == [100, 30]


def test_sequences_grow_by_doubling_to_their_full_length():
    seen = [data.stage_length(600, step, 300) for step in range(0, 400, 50)]
    assert seen == [75, 75, 150, 150, 300, 300, 600, 600]
    assert [data.stage_length(10_000, step, 70) for step in range(0, 80, 10)] == [
        78, 156, 312, 625, 1250, 2500, 5000, 10_000,
    ]  # fmt: skip
    assert data.stage_length(600, 0, 0) == 600
    assert data.stage_length(60, 0, 10) == 60  # half of it would be shorter than 50
    assert task(length=400, batch_size=2, curriculum=3).make_batch(0, 0).xs.shape == (50, 2, 2)


def test_a_closed_write_gate_lets_four_parts_of_the_length_in():
    bias = closed(600)(jax.random.key(0), (2, 3), jnp.float32)
    np.testing.assert_allclose(jax.nn.sigmoid(bias[0]), 1 / 151, rtol=1e-5)
    np.testing.assert_array_equal(bias[1], 0)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_a_sequence_to_one_number(name):
    model = MODELS[name].build(4, 600)
    xs = jax.ShapeDtypeStruct((20, 3, 2), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), xs)
    carry = jax.eval_shape(lambda p: model.initial_carry(p, (3,)), params)
    assert jax.eval_shape(model.apply, params, carry, xs)[1].shape == (1, 3, 1)


@pytest.mark.parametrize("wrong", [["--models", "gru,none"], ["--length", "7"], ["--learning-rate", "0"]])
def test_bad_input_ends_with_status_2_and_names_the_flag(wrong, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        run.main([*wrong, "--run-dir", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_preset_has_a_row_for_each_model():
    for name, preset in config.COMMAND.presets.items():
        assert preset.preset == name
        assert [row.name for row in run.variants(preset)] == preset.models.split(",")
    long = config.COMMAND.presets["long"]
    assert (long.length, long.growing) == (10_000, 10_000)


def test_the_command_trains_reports_and_resumes(tmp_path):
    run_dir = tmp_path / "run"
    assert run.main([*TINY, "--run-dir", str(run_dir)]) == 0
    row = json.loads((run_dir / "summary.json").read_text())["rows"][0]
    assert [outcome["steps"] for outcome in row["outcomes"]] == [4]
    assert json.loads((run_dir / "solved.json").read_text()) == {"mingru-closed": [None]}
    assert (run_dir / "learning.png").stat().st_size > 1000
    result = run_dir / "mingru-closed" / "0" / "result.json"
    before = result.read_bytes(), result.stat().st_mtime_ns
    assert run.main(["--resume", str(run_dir)]) == 0
    assert (result.read_bytes(), result.stat().st_mtime_ns) == before
