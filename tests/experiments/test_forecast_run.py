# SPDX-License-Identifier: Apache-2.0
"""The forecasting command from end to end, in process: training, resuming, forecasting, bad input."""

import csv
import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.forecast import data, run
from experiments.forecast.config import COMMAND
from experiments.forecast.models import MODELS
from experiments.study import report, runner
from seqjax import training

WINDOW, ROWS = 8, 400
TINY = ["--window", str(WINDOW), "--hidden-dim", "4", "--limit", "80", "--epochs", "1"]


def write_series(path, values):
    path.write_text("hour,load\n" + "".join(f"{i},{value!r}\n" for i, value in enumerate(map(float, values))))
    return path


@pytest.fixture(scope="module")
def values():
    steps = np.arange(ROWS)
    return 50 + 8 * np.sin(0.4 * steps) + np.random.default_rng(0).normal(0, 0.5, ROWS)


@pytest.fixture(scope="module")
def source(tmp_path_factory, values):
    return write_series(tmp_path_factory.mktemp("data") / "load.csv", values)


def command(source, run_dir, *more):
    return run.main(["--data", str(source), "--column", "load", "--run-dir", str(run_dir), *TINY, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, source):
    """A run of two epochs without interruption."""
    run_dir = tmp_path_factory.mktemp("trained")
    assert command(source, run_dir, "--model", "simple", "--epochs", "2") == 0
    return run_dir


@pytest.fixture
def no_report(monkeypatch):
    """Trains without the table and the plots, which take longer than so small a model."""
    monkeypatch.setattr(run, "pictures", lambda *args: None)
    monkeypatch.setattr(report, "summarize", lambda *args, **options: None)


def assert_same_training(one, other):
    folders = [run_dir / "simple" / "0" for run_dir in (one, other)]
    params = [training.load(folder / "final").params for folder in folders]
    jax.tree.map(np.testing.assert_array_equal, *params)
    lines = [(folder / "metrics.jsonl").read_text() for folder in folders]
    assert lines[0] == lines[1]


# -- models


@pytest.mark.parametrize("name", MODELS)
def test_model_forecasts_ten_values_at_its_positions(name):
    model = MODELS[name].build(20)
    xs = jax.ShapeDtypeStruct((50, 32, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), xs)
    carry = jax.eval_shape(lambda p: model.initial_carry(p, (32,)), params)
    _, ys = jax.eval_shape(model.apply, params, carry, xs)
    assert ys.shape == (len(range(50)[data.POSITIONS[MODELS[name].at]]), 32, 10)
    assert ys.dtype == jnp.float32


def test_fused_and_generic_lstm_differ_in_nothing_but_the_engine():
    fused, generic = (MODELS[name].build(20) for name in ("lstm", "lstm-generic"))
    assert [layer.cell for layer in fused.layers[:2]] == [layer.cell for layer in generic.layers[:2]]
    assert fused != generic


# -- training


def test_run_writes_what_it_promises(trained, source):
    for name in ("forecasts.png", "horizon.png", "learning.png", "gradients.png"):
        assert (trained / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = training.read_metrics(trained / "simple" / "0" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]  # 80 windows are two batches of 32 an epoch
    assert [line["step"] for line in lines if "valid_mse" in line] == [2, 4]
    summary = json.loads((trained / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["simple"]
    assert summary["config"]["data"] == str(source)
    assert list(summary["also"]) == ["test_mse_last", "valid_mae_last", "valid_mse"]
    assert summary["also"]["test_mse_last"].keys() == {"persistence", "least squares"}


def test_resume_of_a_finished_run_trains_nothing_and_shows_the_table(trained, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", None)
    monkeypatch.setattr(run, "pictures", lambda *args: None)
    assert run.main(["--resume", str(trained)]) == 0
    shown = capsys.readouterr().out
    for text in ("persistence", "least squares", "simple", "mae"):
        assert text in shown


def test_training_that_explodes_is_drawn_beside_one_that_does_not(tmp_path, source, trained):
    config = COMMAND.load(trained)
    task = data.load_task(str(source), "load", "", WINDOW).limited(80)
    (row,) = runner.partial(run.variants(config, task), (0,), trained)
    shutil.copytree(trained / "simple", tmp_path / "simple")
    lines = [{"step": 1, "loss": 0.2, "grad_norm": 40.0}, {"step": 2, "loss": 1e16, "grad_norm": None}]
    (tmp_path / "simple-unclipped" / "0").mkdir(parents=True)
    (tmp_path / "simple-unclipped" / "0" / "metrics.jsonl").write_text(
        "".join(
            json.dumps({**line, "clipped": False, "skipped": line["step"] == 2, "skipped_steps": 0}) + "\n"
            for line in lines
        )
    )
    exploded = runner.Row(
        dataclasses.replace(row.variant, name="simple-unclipped"),
        [dataclasses.replace(row.outcomes[0], values={}, diverged=True)],
    )
    run.pictures(task, 1.0, tmp_path, [exploded, row])
    for name in ("clipping.png", "gradients.png", "forecasts.png", "horizon.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_interrupted_resumed_and_made_longer_a_run_ends_as_one_that_was_not(
    tmp_path, source, trained, no_report, monkeypatch, capsys
):
    original = data.batch

    def interrupting(*args, step, **options):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return original(*args, step=step, **options)

    monkeypatch.setattr(data, "batch", interrupting)
    run_dir = tmp_path / "run"
    assert command(source, run_dir, "--model", "simple") == 130
    assert f"--resume {run_dir}" in capsys.readouterr().err
    assert not (run_dir / "simple" / "0" / "final").exists()
    monkeypatch.setattr(data, "batch", original)
    assert run.main(["--resume", str(run_dir)]) == 0
    assert run.main(["--resume", str(run_dir), "--epochs", "2"]) == 0
    assert_same_training(run_dir, trained)


def test_batch_normalized_model_is_calibrated_when_finished(tmp_path, source, no_report):
    assert command(source, tmp_path / "run", "--model", "simple-batch") == 0
    folder = tmp_path / "run" / "simple-batch" / "0"
    before, after = (training.load(path).params[0] for path in (folder, folder / "final"))
    np.testing.assert_array_equal(before.mean, np.zeros(4))
    np.testing.assert_array_equal(before.w_rec, after.w_rec)
    assert np.all(np.asarray(after.mean) != 0)


# -- forecasting


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_forecasts_scale_as_the_training_did_and_end_in_the_future(tmp_path, trained, values):
    other = values[:60] + 20
    path = write_series(tmp_path / "other.csv", other)
    arguments = ["--predict", str(trained), "--data", str(path), "--column", "load", "--run-dir", str(tmp_path)]
    assert run.main(arguments) == 0
    rows = read_rows(tmp_path / "forecasts-other.csv")
    assert (tmp_path / "forecasts-other.png").is_file()
    assert [row["time"] for row in rows] == [str(i) for i in range(WINDOW - 1, 60)]

    loaded = training.load(trained / "simple" / "0" / "final")
    mean, std = values[:280].mean(), values[:280].std()
    for place in (WINDOW - 1, 30, 59):
        xs = jnp.asarray((other[place - WINDOW + 1 : place + 1] - mean) / std, jnp.float32)[:, None]
        _, ys = loaded.model.apply(loaded.params, loaded.model.initial_carry(loaded.params, ()), xs)
        row = rows[place - WINDOW + 1]
        made = [float(row[f"forecast_{h}"]) for h in range(1, 11)]
        np.testing.assert_allclose(made, np.asarray(ys[-1], np.float64) * std + mean, rtol=2e-5)
        truth = [row[f"truth_{h}"] for h in range(1, 11)]
        known = [f"{value:.6g}" for value in other[place + 1 : place + 11]]
        assert truth == known + [""] * (10 - len(known))


def test_scores_are_those_of_the_forecasts(tmp_path, trained, values):
    assert run.main(["--predict", str(trained / "simple"), "--run-dir", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "forecasts-load.csv")  # of the data of the training
    assert len(rows) == ROWS - WINDOW + 1
    made = np.array([[float(row[f"forecast_{h}"]) for h in range(1, 11)] for row in rows[280 : 280 + 63]])
    truth = np.lib.stride_tricks.sliding_window_view(values[280 + WINDOW : 360], 10)  # of all validation windows
    std = values[:280].std()
    found = json.loads((trained / "simple" / "0" / "result.json").read_text())["outcome"]["values"]
    assert found["valid_mse_last"] == pytest.approx(np.mean((made - truth) ** 2) / std**2, rel=1e-5)
    assert found["valid_mae_last"] == pytest.approx(np.mean(np.abs(made - truth)), rel=1e-5)


# -- bad input


def failure(capsys, *args):
    """The one line on stderr of a command that must exit with status 2."""
    assert run.main(list(map(str, args))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("load\n1\n2\n", "load has 2 rows, too few"),
        ("load\n1\nmild\n", "line 3, column 'load': 'mild' is not a finite number"),
        ("load,x\n1,2\n,3\n4,5\n", "column 'load' has 1 gap"),
        ("wind\n1\n2\n", "has no column 'load'; its columns are wind"),
        (None, "There is no file"),
    ],
)
def test_bad_csv_is_one_line_and_status_2(tmp_path, capsys, text, message):
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text)
    error = failure(capsys, "--data", path, "--column", "load", "--run-dir", tmp_path / "run")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_folder_in_use_is_not_overwritten(trained, source, capsys):
    assert "is not empty" in failure(capsys, "--data", source, "--column", "load", *TINY, "--run-dir", trained)


def test_folder_that_cannot_be_made_is_said(tmp_path, source, capsys):
    (tmp_path / "file").write_text("")
    error = failure(capsys, "--data", source, "--column", "load", *TINY, "--run-dir", tmp_path / "file" / "run")
    assert str(tmp_path / "file") in error


def test_resume_with_other_options_is_refused_by_flag(trained, capsys):
    error = failure(capsys, "--resume", trained, "--hidden-dim", 5, "--station", "miami")
    assert "leave out --hidden-dim, --station" in error
    assert "can only become longer" in failure(capsys, "--resume", trained, "--epochs", 1)


def test_resume_with_changed_data_is_refused(tmp_path, values, monkeypatch, capsys):
    path = write_series(tmp_path / "load.csv", values)
    monkeypatch.setattr("experiments.study.runner.run", lambda *args, **options: [])
    assert command(path, tmp_path / "run") == 0
    write_series(path, values + 1e-3 * np.arange(ROWS))
    assert "have changed since" in failure(capsys, "--resume", tmp_path / "run")


def test_forecasting_needs_a_finished_model_and_a_whole_window(tmp_path, trained, capsys):
    assert "There is no run folder" in failure(capsys, "--predict", tmp_path / "gone")
    assert "has no finished model" in failure(capsys, "--predict", tmp_path)
    assert "has no finished model gru; it has simple" in failure(capsys, "--predict", trained, "--model", "gru")
    path = write_series(tmp_path / "short.csv", np.arange(WINDOW - 1))
    error = failure(capsys, "--predict", trained, "--data", path, "--column", "load")
    assert f"load has {WINDOW - 1} rows; the model forecasts from a window of {WINDOW}" in error


def test_too_few_windows_for_a_batch_are_counted(tmp_path, source, capsys):
    arguments = ["--data", source, "--column", "load", "--run-dir", tmp_path / "run", "--model", "simple"]
    error = failure(capsys, *arguments, "--window", WINDOW, "--batch-size", 1000)
    assert "--batch-size must be 1 to 263, the training windows, got 1000" in error
