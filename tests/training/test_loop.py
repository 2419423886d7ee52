# SPDX-License-Identifier: Apache-2.0
"""`fit`: what it logs and keeps, and how it goes on, gives up and leaves."""

import contextlib
import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from seqjax.training import (
    Batch,
    clipped,
    fit,
    init_state,
    latest,
    load,
    make_train_step,
    mean_squared_error,
    read_metrics,
    steps,
)

MODEL = seqjax.Serial(seqjax.Dropout(0.2), seqjax.Dense(1))
OPTIMIZER = clipped(optax.adam(0.05), norm=0.5)


def make_batch(seed, t):
    rng = np.random.default_rng((seed, t))
    xs = rng.normal(size=(4, 3, 2)).astype(np.float32)
    return Batch(xs, xs.sum(-1, keepdims=True))


def train(run_dir=None, steps=12, batches=make_batch, **options):
    options = {"loss": mean_squared_error, "optimizer": OPTIMIZER, "checkpoint_every": 4, **options}
    return fit(MODEL, batches, steps=steps, run_dir=run_dir, **options)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole():
    """A run without interruption."""
    return train()


def test_fit_is_the_step_in_a_loop(whole):
    # What a user's own loop does, with the documented keys.
    init_key, step_key = jax.random.split(jax.random.key(0))
    state = init_state(MODEL.init(init_key, make_batch(0, 0).xs), OPTIMIZER)
    step = make_train_step(MODEL, mean_squared_error, OPTIMIZER)
    for t in range(12):
        state, metrics = step(state, make_batch(0, t), step_key)
        assert whole.history[t] == {
            "step": t + 1,
            "loss": float(metrics["loss"]),
            "grad_norm": float(metrics["grad_norm"]),
            "clipped": bool(metrics["clipped"]),
            "skipped": False,
        }
    assert_same_bits(whole.state, state)
    assert whole.seconds_per_step > 0


def test_fit_learns_the_sum_of_its_inputs():
    run = fit(seqjax.Dense(1), make_batch, steps=300, loss=mean_squared_error, optimizer=optax.adam(0.05))
    np.testing.assert_allclose(run.state.params.kernel, [[1.0], [1.0]], atol=1e-3)
    assert run.history[-1]["loss"] < 1e-5


def test_history_is_the_metrics_file_and_checkpoints_are_where_they_were_asked_for(tmp_path, whole):
    run = train(tmp_path, config={"name": "a"}, keep=2)
    assert run.history == whole.history
    assert read_metrics(tmp_path / "metrics.jsonl") == run.history
    assert steps(tmp_path) == [8, 12]
    loaded = load(tmp_path)
    assert (loaded.model, loaded.metadata) == (MODEL, {"seed": 0, "config": {"name": "a"}})
    assert_same_bits(loaded.params, run.state.params)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, whole):
    train(tmp_path, steps=5)
    run = train(tmp_path, resume=True)
    assert_same_bits(run.state, whole.state)
    assert run.history == whole.history
    assert read_metrics(tmp_path / "metrics.jsonl") == whole.history


def test_resume_of_nothing_begins_and_of_a_finished_run_does_nothing(tmp_path, whole):
    train(tmp_path, resume=True)
    again = train(tmp_path, resume=True)
    assert_same_bits(again.state, whole.state)
    assert again.history == whole.history


def test_resume_at_a_step_goes_back_and_deletes_nothing(tmp_path, whole):
    train(tmp_path, keep=9)
    run = train(tmp_path, resume=4, keep=9)
    assert_same_bits(run.state, whole.state)
    assert read_metrics(tmp_path / "metrics.jsonl") == whole.history
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["0", "12", "12.aside", "4", "8", "8.aside"]


def test_a_half_written_line_and_lines_after_the_checkpoint_are_cut_off(tmp_path, whole):
    train(tmp_path, steps=8)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 10, "lo')
    assert train(tmp_path, resume=True).history == whole.history
    assert read_metrics(tmp_path / "metrics.jsonl") == whole.history


def test_a_damaged_line_in_the_middle_loses_none_of_those_after_it(tmp_path):
    train(tmp_path, steps=8)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b"#" + lines[2], *lines[3:]])
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 3 is damaged, and lines follow it; mend or delete"):
        train(tmp_path, resume=True)
    assert path.read_bytes() == damaged


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"already holds a run \(checkpoints at steps \[0, 2\]\); resume=True"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "begun with seed=0, not 1"),
        ({"optimizer": optax.sgd(0.1)}, "saved with another optimizer"),
        ({"resume": 3}, r"does not hold step 3; it holds \[0, 2\]"),
        ({"steps": 1}, "is at step 2, past steps=1"),
    ],
    ids=["seed", "optimizer", "step", "past"],
)
def test_a_run_that_would_not_be_the_same_is_not_resumed(tmp_path, change, message):
    train(tmp_path, steps=2)
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **{"resume": True, **change})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_damaged_newest_checkpoint_stops_a_resume_until_an_older_is_asked_for(tmp_path, whole):
    train(tmp_path, steps=8)
    (tmp_path / "checkpoints" / "8" / "state" / "_METADATA").unlink()
    with pytest.raises(ValueError, match=r"newest whole checkpoint is step 4"):
        train(tmp_path, resume=True)
    assert_same_bits(train(tmp_path, resume=4).state, whole.state)


def test_metrics_without_checkpoints_are_not_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"already holds a run|no checkpoint is"):
            train(tmp_path, resume=resume)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


# -- evaluation and logging ------------------------------------------------------------------------


def test_evaluation_joins_the_line_of_its_step_and_may_keep_the_params():
    kept = []

    def evaluate(params):
        kept.append(params)
        return {"calls": len(kept)}

    run = train(steps=5, evaluate=evaluate, evaluate_every=2, log_every=3)
    assert [(line["step"], line.get("calls")) for line in run.history] == [(2, 1), (3, None), (4, 2), (5, 3)]
    assert_same_bits(kept[-1], run.state.params)
    jax.block_until_ready(kept)


def test_an_evaluation_may_not_hide_a_training_metric():
    with pytest.raises(ValueError, match=r"evaluate returned \['loss'\], names that the training metrics have"):
        train(steps=1, evaluate=lambda params: {"loss": 1.0})


def test_without_a_terminal_nothing_is_printed(capfd):
    train(steps=2)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_with_the_metrics(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(steps=2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    assert "grad_norm" in shown.err


# -- not finite ------------------------------------------------------------------------------------


def poisoned(*bad):
    def batches(seed, t):
        batch = make_batch(seed, t)
        return batch._replace(xs=np.full_like(batch.xs, np.nan)) if t in bad else batch

    return batches


def test_a_nan_batch_is_skipped_and_counted_and_written_as_null(tmp_path):
    run = train(tmp_path, steps=4, batches=poisoned(1, 2))
    assert int(run.state.skipped) == 2
    assert [line["skipped"] for line in run.history] == [False, True, True, False]
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["loss"] is None for line in lines] == [False, True, True, False]
    assert np.isfinite(run.state.params[1].kernel).all()


def test_nan_without_end_stops_with_the_last_good_params_saved(tmp_path):
    good = train(steps=5)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row, up to step 8.*make_batch\(0, 7\).*saved in"):
        train(tmp_path, batches=poisoned(*range(5, 99)), give_up_after=3)
    loaded = load(tmp_path)
    assert loaded.step == 8
    assert_same_bits(loaded.params, good.state.params)


# -- leaving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["int", "term"]
)
def test_a_signal_saves_the_step_at_hand_and_leaves(tmp_path, whole, capsys, number, exception):
    def batches(seed, t):
        if t == 6:
            os.kill(os.getpid(), number)
        return make_batch(seed, t)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(exception) as left:
        train(tmp_path, batches=batches, checkpoint_every=None)
    assert left.type is KeyboardInterrupt or left.value.code == 128 + signal.SIGTERM
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert f"Stopped after step 7, which is saved in {tmp_path}; resume=True" in capsys.readouterr().err
    assert latest(tmp_path) == 7
    run = train(tmp_path, resume=True)
    assert_same_bits(run.state, whole.state)
    assert run.history == whole.history


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a process that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    def batches(seed, t):
        if t == 6:
            handler = signal.getsignal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            while signal.getsignal(signal.SIGINT) == handler:  # two at once may be delivered as one
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)
        return make_batch(seed, t)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, batches=batches)
    assert latest(tmp_path) == 4


# -- said before training --------------------------------------------------------------------------


def never(seed, t):
    assert t == 0, "training began"
    return make_batch(seed, t)


def test_a_full_disk_is_said_before_training(tmp_path, full_disk):
    with full_disk(10), pytest.raises(OSError, match=r"cannot keep 4 checkpoints of .* MiB: .*nothing was trained"):
        train(tmp_path / "no_room", batches=never)
    with full_disk(100), pytest.raises(OSError, match=r"could not save step 0: .*; nothing was saved before it"):
        train(tmp_path / "little_room", batches=never)


def test_a_directory_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"nothing was trained.*file/run"):
        train(tmp_path / "file" / "run", batches=never)


def test_a_metrics_file_that_cannot_be_written_is_said_before_training(tmp_path):
    train(tmp_path, steps=1)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot write metrics: .*nothing was trained.*metrics.jsonl"):
        train(tmp_path, resume=True)


def test_a_disk_that_fills_later_leaves_the_last_checkpoint_to_resume_from(tmp_path, whole, full_disk):
    with full_disk(100_000):

        def batches(seed, t):
            if t == 6:
                disk.enter_context(full_disk(100))
            return make_batch(seed, t)

        with contextlib.ExitStack() as disk, pytest.raises(OSError, match=r"No space|File too large"):
            train(tmp_path, batches=batches)
    assert latest(tmp_path) == 4
    run = train(tmp_path, resume=True)
    assert_same_bits(run.state, whole.state)
    assert read_metrics(tmp_path / "metrics.jsonl") == whole.history


def test_a_model_that_cannot_be_described_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"Dense.activation is the function.*give its name"):
        fit(
            seqjax.Dense(1, activation=jnp.tanh),
            never,
            steps=1,
            loss=mean_squared_error,
            optimizer=OPTIMIZER,
            run_dir=tmp_path,
        )


def test_a_config_that_json_cannot_hold_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"config must hold only what JSON can"):
        train(tmp_path, batches=never, config={"when": object()})


@pytest.mark.parametrize("name", ["steps", "evaluate_every", "checkpoint_every", "keep", "log_every", "give_up_after"])
def test_a_count_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        train(**{name: 0})


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match=r"learning_rate"):
        train(learning_rate=1.0)
