# SPDX-License-Identifier: Apache-2.0
"""The comparison: tasks by name, one budget for all, and a run that was killed goes on bit for bit."""

import importlib
import json

import jax
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

import seqjax
from experiments.compare import budget, run, tasks
from experiments.compare.config import COMMAND
from experiments.study import drawn
from seqjax import training

TINY = ["--options", "length=8", "fresh=6", "batch_size=2", "--cells", "mingru,simple", "--hidden-dim", "3",
        "--steps", "6", "--seeds", "2", "--evaluate-every", "3", "--checkpoint-every", "2"]  # fmt: skip


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing is saved."""


def folders(run_dir):
    return sorted(path.parent.relative_to(run_dir) for path in run_dir.glob("*/*/result.json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison without interruption."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run.main([*TINY, "--run-dir", str(run_dir)]) == 0
    return run_dir


def test_cells_and_seeds_are_trained_for_the_same_steps(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["mingru", "simple"]
    for row in summary["rows"]:
        assert [(outcome["replicate"], outcome["steps"]) for outcome in row["outcomes"]] == [(0, 6), (1, 6)]
        values = [outcome["values"]["mse"] for outcome in row["outcomes"]]
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["spread"] == pytest.approx(np.std(values, ddof=1))
        assert values[0] != values[1]
    assert all((whole / name).stat().st_size > 1000 for name in ("learning.png", "final.png"))


def test_a_killed_comparison_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    run_dir = tmp_path / "killed"
    batch = drawn.batch

    def deadly(draw, size, seed, step):
        if (seed, step) == (1, 5):
            raise Killed
        return batch(draw, size, seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(drawn, "batch", deadly)
        with pytest.raises(Killed):
            run.main([*TINY, "--run-dir", str(run_dir)])
    assert [str(path) for path in folders(run_dir)] == ["mingru/0", "simple/0"]
    assert run.main(["--resume", str(run_dir)]) == 0
    assert folders(run_dir) == folders(whole)
    for folder in folders(whole):
        one, other = (base / folder / "metrics.jsonl" for base in (whole, run_dir))
        assert one.read_text() == other.read_text()
        params = [training.load(base / folder).params for base in (whole, run_dir)]
        jax.tree.map(np.testing.assert_array_equal, *params)


def test_a_budget_of_seconds_is_measured_once_and_kept(tmp_path, monkeypatch):
    measured = {seqjax.MinGRU(3): 0.5, seqjax.GRU(3): 2.0}
    asked = []

    def seconds_per_step(task, model, optimizer):
        asked.append(model)
        return measured[model]

    monkeypatch.setattr(budget, "seconds_per_step", seconds_per_step)
    models = {"fast": seqjax.MinGRU(3), "slow": seqjax.GRU(3)}
    path = tmp_path / "seconds_per_step.json"
    assert budget.steps_of(10.0, None, models, None, path) == {"fast": 20, "slow": 5}
    assert budget.steps_of(1.0, None, models, None, path) == {"fast": 2, "slow": 1}
    assert asked == list(models.values())
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        budget.steps_of(1.0, None, models, None, path)


def test_a_timed_step_is_that_of_the_task():
    task = tasks.load("adding", ["length=8", "fresh=6", "batch_size=2"])(0)
    optimizer = run.adam(COMMAND.presets["default"].learning_rate, COMMAND.presets["default"].clip_norm)
    assert 0 < budget.seconds_per_step(task, task.model(seqjax.MinGRU(3)), optimizer, count=2) < 10


def test_tasks_are_found_by_their_folders():
    assert {"adding", "copy", "selective_copy"} <= set(tasks.available())
    assert "study" not in tasks.available()
    assert tasks.load("copy", ["length=7"])(0).baselines["chance (exact)"] == pytest.approx(10 * np.log(8) / 27)
    with pytest.raises(ValueError, match=r"no task 'fishing'; there are .*adding.*copy"):
        tasks.load("fishing")


@pytest.mark.parametrize("option", ["size=3", "length", "replicate=1"])
def test_an_unknown_option_is_answered_with_those_that_there_are(option):
    with pytest.raises(ValueError, match=r"no option .*length, batch_size"):
        tasks.load("adding", [option])


def test_option_values_are_numbers_flags_or_texts():
    def make(replicate=0, *, a, b, c, d):
        raise NotImplementedError

    parsed = tasks.parse("made", make, ["a=3", "b=1e-2", "c=False", "d=some text=1"])
    assert parsed == {"a": 3, "b": 0.01, "c": False, "d": "some text=1"}


@pytest.mark.parametrize(
    ("task", "option", "expected"),
    [
        ("adding", "length=x", "'length' of the task 'adding' must be int, got 'x'"),
        ("adding", "length=5.0", "must be int"),
        ("adding", "length=True", "must be int"),
        ("mnist1d", "shuffled=1", "must be bool"),
        ("bytes", "limit=many", r"must be int \| None"),
        ("spikes", "judge=never", r"must be Literal\['later', 'validation', 'other'\]"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(task, option, expected):
    with pytest.raises(ValueError, match=expected):
        tasks.load(task, [option])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("pixels", {"blocks": -1}, "blocks must be at least 0, got -1"),
        ("pixels", {"pool": 0}, "pool must be at least 1"),
        ("bytes", {"limit": -5}, "limit must be at least 1"),
        ("chorales", {"steps_per_quarter": 0}, "steps_per_quarter must be at least 1"),
        ("chorales", {"transpose": -1}, "transpose must be at least 0"),
        ("forecast", {"window": 0}, "window must be at least 1"),
        ("spikes", {"bins": 100}, "bins must be at least 2000"),
        ("spikes", {"window": 33}, "window must be even"),
        ("selective_copy", {"width": 0}, "width must be at least 1"),
    ],
)
def test_an_option_out_of_range_is_refused_by_the_task(task, options, message):
    with pytest.raises(ValueError, match=message):
        importlib.import_module(f"experiments.{task}.task").task(**options)


def test_an_option_that_takes_text_takes_digits_as_text():
    def make(replicate=0, *, path: str | None = None, rate: float = 0.1):
        raise NotImplementedError

    assert tasks.parse("made", make, ["path=2024", "rate=1"]) == {"path": "2024", "rate": 1}
    assert tasks.parse("made", make, ["path=None"]) == {"path": None}


def test_an_option_given_twice_is_refused():
    with pytest.raises(ValueError, match="option 'length' twice"):
        tasks.load("adding", ["length=8", "length=9"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--task", "fishing"], "there are adding"),
        (["--cells", "gru,none"], "choose from"),
        (["--seconds", "0"], "--seconds"),
        (["--options", "no=1"], "has no option"),
    ],
)
def test_bad_input_ends_with_status_2_and_says_what_would_do(wrong, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        run.main([*wrong, "--run-dir", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
