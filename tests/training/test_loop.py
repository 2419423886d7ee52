# SPDX-License-Identifier: Apache-2.0
"""`fit`: what it logs and keeps, and how it gives up and leaves."""

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
    all_steps,
    fit,
    init_state,
    latest_step,
    load,
    make_train_step,
    mean_squared_error,
    read_metrics,
)
from tests.training.runs import MODEL, OPTIMIZER, assert_same_bits, make_batch, never, train


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
            "clipped_steps": int(metrics["clipped_steps"]),
            "skipped": False,
            "skipped_steps": 0,
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
    assert all_steps(tmp_path) == [8, 12]
    loaded = load(tmp_path)
    assert (loaded.model, loaded.metadata) == (MODEL, {"seed": 0, "config": {"name": "a"}, "lines": 12})
    assert_same_bits(loaded.params, run.state.params)


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


# -- what was done is kept -------------------------------------------------------------------------


def test_a_batch_that_cannot_be_made_loses_no_step(tmp_path, whole):
    def batches(seed, t):
        if t == 6:
            raise RuntimeError("no such file")
        return make_batch(seed, t)

    with pytest.raises(RuntimeError, match="no such file"):
        train(tmp_path, batches=batches, checkpoint_every=None)
    assert all_steps(tmp_path) == [0, 6]
    run = train(tmp_path, resume=True)
    assert_same_bits(run.state, whole.state)
    assert read_metrics(tmp_path / "metrics.jsonl") == run.history == whole.history


def no_evaluation(params):
    raise RuntimeError("no evaluation")


@pytest.mark.parametrize(
    ("evaluate", "kind", "message"),
    [
        (no_evaluation, RuntimeError, "no evaluation"),
        (
            lambda params: {"loss": 1.0},
            ValueError,
            r"evaluate returned \['loss'\], names that the training metrics have",
        ),
        (lambda params: {"step": 1}, ValueError, r"evaluate returned \['step'\]"),
        (lambda params: {"errors": np.ones(2)}, ValueError, r"the metric 'errors' must be one number, got array"),
        (lambda params: {"error": object()}, ValueError, r"the metric 'error' must be one number, got <object"),
        (lambda params: 0.5, ValueError, r"evaluate must return {name: number}, got 0.5"),
    ],
    ids=["raises", "hides", "hides the step", "array", "object", "no names"],
)
def test_an_evaluation_that_fails_loses_no_step_and_no_line(tmp_path, whole, evaluate, kind, message):
    for resume, last in ((False, 7), (True, 12)):  # in the middle, and after the last step
        with pytest.raises(kind, match=message):
            train(tmp_path, steps=12, evaluate=evaluate, evaluate_every=last, checkpoint_every=None, resume=resume)
        assert latest_step(tmp_path) == last
    for _ in range(2):
        run = train(tmp_path, resume=True)
        assert_same_bits(run.state, whole.state)
        assert read_metrics(tmp_path / "metrics.jsonl") == run.history == whole.history


def test_an_evaluation_that_failed_is_done_again_on_a_resume_and_once(tmp_path, whole):
    with pytest.raises(RuntimeError, match="no evaluation"):
        train(tmp_path, evaluate=no_evaluation, evaluate_every=6)
    calls = []

    def evaluate(params):
        calls.append(params)
        return {"weight": float(params[1].kernel.sum())}

    expected = train(evaluate=evaluate, evaluate_every=6)
    assert len(calls) == 2
    for _ in range(2):
        run = train(tmp_path, evaluate=evaluate, evaluate_every=6, resume=True)
        assert len(calls) == 4
        assert read_metrics(tmp_path / "metrics.jsonl") == run.history == expected.history
        assert_same_bits(run.state, whole.state)


def test_a_step_that_cannot_be_traced_leaves_the_state_before_it(tmp_path, whole):
    def batches(seed, t):
        batch = make_batch(seed, t)
        return batch._replace(ys=batch.ys[1:]) if t == 6 else batch

    with pytest.raises(ValueError, match="must have the same shape"):
        train(tmp_path, batches=batches)
    assert_same_bits(train(tmp_path, resume=True).state, whole.state)
    assert latest_step(tmp_path) == 12


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
    assert latest_step(tmp_path) == 7
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
    assert latest_step(tmp_path) == 4


# -- said before training --------------------------------------------------------------------------


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
    assert latest_step(tmp_path) == 4
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
    with pytest.raises(ValueError, match=f"fit: {name} must be a positive integer, got 0"):
        train(**{name: 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True}, "resume=True continues the run in run_dir"),
        ({"log_every": 1.5}, "log_every must be a positive integer, got 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


def test_a_cell_is_no_layer():
    with pytest.raises(ValueError, match=r"fit takes seqjax Layers, got GRU\(3\); a Cell becomes one as RNN"):
        fit(seqjax.GRU(3), never, steps=1, loss=mean_squared_error, optimizer=OPTIMIZER)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match=r"learning_rate"):
        train(learning_rate=1.0)
