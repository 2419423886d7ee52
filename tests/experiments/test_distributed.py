# SPDX-License-Identifier: Apache-2.0
"""The distributed experiment: two processes over the loopback interface."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distributed import run, worker


def test_two_processes_give_the_numbers_of_one(monkeypatch, capsys):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # nearly all of the time is compilation
    small = ["--devices", "1", "--steps", "7", "--batch-size", "2", "--hidden-dim", "3", "--models", "gru", "lru"]
    assert run.main(small) == 0
    printed = capsys.readouterr().out
    assert "2 processes with 1 CPU devices each" in printed
    assert printed.count("equal") == 3
    assert "DIFFERENT" not in printed


@pytest.mark.parametrize("worst", [1e-9, float("nan")])
def test_a_difference_in_any_process_is_reported(monkeypatch, capsys, worst):
    rows = [{"model": "GRU", "sweeps": 2, "values": 0.0, "gradients": gap} for gap in (0.0, worst)]
    monkeypatch.setattr(run, "run_processes", lambda config: rows)
    assert run.main([]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_the_largest_difference_is_relative_to_the_largest_number():
    expected = np.array([1.0, -10.0])
    assert worker.difference(jnp.array([1.0, -10.0]), expected) == 0
    assert worker.difference(jnp.array([1.5, -10.0]), expected) == pytest.approx(0.05)
    assert np.isnan(worker.difference(jnp.array([np.nan, -10.0]), expected))


def test_processes_that_take_too_long_are_stopped(capsys):
    assert run.main(["--timeout", "0.2", "--models", "gru"]) == 1
    assert "took more than 0.2 s" in capsys.readouterr().err


def test_a_process_that_fails_is_reported_with_its_message(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--no_such_flag")
    assert run.main(["--models", "gru"]) == 1
    assert "no_such_flag" in capsys.readouterr().err


def test_a_number_out_of_range_is_refused(capsys):
    try:
        status = run.main(["--steps", "0"])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    assert "--steps must be at least 1, got 0" in "".join(capsys.readouterr())
