# SPDX-License-Identifier: Apache-2.0
"""The neuron: its recordings, the likelihood of spikes by hand, the linear model, a run and its costs."""

import json
import math

import jax
import numpy as np
import pytest

from tests.common import sigmoid

pytest.importorskip("nitime")

from experiments.spikes import cost, data, glm, run, task
from experiments.spikes.config import Config
from experiments.spikes.likelihood import Surprise, bits_per_spike, entropy, log_odds, pooled, told
from seqjax import training
from seqjax.engines import Scan

# -- data


@pytest.fixture(scope="module")
def recordings():
    return data.load()


def test_recordings_are_the_published_ones(recordings):
    assert recordings.levels.shape == recordings.spikes.shape == (200_000, 2)
    assert recordings.spikes.sum(0).tolist() == [929, 868]
    assert set(np.unique(recordings.spikes)) == {0, 1}
    np.testing.assert_allclose(recordings.levels.max(0), [76.4286, 71.2], rtol=1e-6)


def test_spikes_are_in_the_bins_of_their_times(recordings):
    # the files' first and last lines: 6700, 9900, 13900, ..., 9999300 and 7300, 12700, ...
    first, second = (np.flatnonzero(recordings.spikes[:, b]) for b in (0, 1))
    assert first[:3].tolist() == [134, 198, 278]
    assert first[-1] == 199_986
    assert second[:2].tolist() == [146, 254]
    assert np.diff(first).min() * 50 == 3200  # the shortest interval, in microseconds


def test_spike_times_are_told_to_a_tenth_of_a_millisecond(recordings):
    assert recordings.spikes[1::2].sum() == 0


def test_level_is_twenty_times_the_logarithm_of_the_amplitude(recordings):
    # volts 0.242911 at the start, 1 at the loudest, which is 76.4286 dB
    assert recordings.levels[0, 0] == pytest.approx(76.4286 + 20 * math.log10(0.242911), abs=1e-4)


def test_file_with_another_hash_is_refused(tmp_path):
    path = tmp_path / "grasshopper_stimulus1.txt"
    path.write_text("0 0.2\n50 0.3\n")
    with pytest.raises(ValueError, match="sha256 differs"):
        data.read(path)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"seqjax\[spikes\]"):
        data.load.__wrapped__()


def test_two_spikes_in_a_bin_are_refused():
    with pytest.raises(ValueError, match="two spikes"):
        data.binned(np.array([100.0, 149.0]), 4)


@pytest.mark.parametrize("judge", ["later", "validation", "other"])
def test_no_bin_is_learnt_from_and_judged_by(judge):
    bins = np.zeros((2000, 2), int)
    learnt, judged = task.parts(2000, judge)
    learnt.of(bins)[:] += 1
    judged.of(bins)[:] += 1
    assert bins.max() == 1
    if judge == "validation":
        assert bins[1600:].sum() == 0


# -- the likelihood


def test_pair_has_no_spike_if_neither_bin_has():
    p, q = np.array([0.3, 0.01, 0.9]), np.array([0.2, 0.5, 0.001])
    logits = np.stack([np.log(p / (1 - p)), np.log(q / (1 - q))], 1).reshape(-1)
    odds = np.exp(np.asarray(jax.jit(pooled)(logits)))
    np.testing.assert_allclose(1 / (1 + odds), (1 - p) * (1 - q), rtol=1e-12)


def test_surprise_by_hand():
    spikes = np.array([[0.0], [0.0], [1.0], [0.0]])
    outputs = np.array([[0.0], [0.0], [math.log(3)], [0.0]])
    # bins of probability 1/2, but one of 3/4: no spike in a pair has 1/4 and 1/8
    expected = -(math.log(1 / 4) + math.log(7 / 8)) / 2
    assert float(jax.jit(Surprise(0.0))(outputs, spikes)) == pytest.approx(expected)


def test_constant_rate_is_worth_no_bits_and_a_certain_forecast_all():
    spikes = np.zeros((400, 1))
    spikes[[10, 50, 300]] = 1
    rate = told(spikes).mean()
    outputs = np.full((400, 1), log_odds(1 - math.sqrt(1 - rate)))  # two such bins make a pair of that rate
    nats = float(jax.jit(Surprise(0.0))(outputs, spikes))
    assert bits_per_spike(nats, rate) == pytest.approx(0, abs=1e-12)
    # nothing is left to ask: all of the entropy, 200 pairs of 3 / 200, among 3 spikes
    p = 3 / 200
    asked = 200 * (-p * math.log2(p) - (1 - p) * math.log2(1 - p))
    assert bits_per_spike(0.0, rate) == pytest.approx(asked / 3)
    assert entropy(p) * 200 / math.log(2) == pytest.approx(asked)


def test_history_sees_no_spike_of_its_own_pair(recordings):
    few = recordings.first(400)
    xs = task.inputs(few, task.parts(400)[0], history=True)
    assert np.flatnonzero(xs[:, 0, 1])[:2].tolist() == [136, 200]  # spikes in bins 134 and 198
    assert xs.dtype == np.float32
    np.testing.assert_allclose(xs[:320, :, 0].mean(0), 0, atol=1e-6)


# -- the linear model


def test_windows_of_the_past_by_hand():
    series = np.arange(1.0, 7.0)
    found = glm.lagged(series, (0, 2, 3))
    np.testing.assert_array_equal(found[:, 0], [1, 3, 5, 7, 9, 11])  # now and before
    np.testing.assert_array_equal(found[:, 1], [0, 0, 1, 2, 3, 4])  # two steps ago


def test_linear_model_finds_a_known_filter_and_beats_the_constant():
    draw = np.random.default_rng(0)
    xs = draw.normal(size=(20_000, 1, 3))
    truth = np.array([1.5, -1.0, 0.0, -2.0])  # the last one is the bias
    chance = sigmoid(xs @ truth[:3] + truth[3])
    ys = (draw.uniform(size=chance.shape) < chance).astype(float)
    inner = np.arange(20_000)[:, None] < 16_000
    weights = glm.learn(xs, ys, inner)
    np.testing.assert_allclose(weights, truth, atol=0.1)
    assert bits_per_spike(glm.nats(weights, xs, ys), ys.mean()) > 0.5


# -- the command

TINY = ("--ways", "windows-100", "--cells", "gru", "--bins", "2000", "--passes", "1", "--hidden-dim", "2")


def test_command_writes_what_it_found_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    original, calls = task._batches, []

    def interrupting(*args):
        make = original(*args)

        def make_batch(seed, step):
            calls.append(step)
            if len(calls) == 2:  # the first call tells `fit` the shape
                raise KeyboardInterrupt
            return make(seed, step)

        return make_batch

    monkeypatch.setattr(task, "_batches", interrupting)
    assert run.main([*TINY, "--run-dir", str(run_dir)]) == 130
    assert not (run_dir / "summary.json").exists()
    monkeypatch.setattr(task, "_batches", original)
    assert run.main(["--resume", str(run_dir)]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["baselines"]["constant rate of the judged part"] == 0
    (row,) = summary["rows"]
    assert row["outcomes"][0]["steps"] == 16  # 1,600 bins in windows of 100
    assert math.isfinite(row["mean"])
    assert training.load(run_dir / "gru-windows-100" / "0").step == 16
    assert {"learning.png", "passes.png", "stretch.png"} <= {path.name for path in run_dir.iterdir()}


def test_full_length_is_one_update_a_pass_and_a_window_many():
    found = {row.name: row.steps for row in run.variants(Config(ways="full,windows-1000,windows-100", passes=3))}
    assert found == {"gru-full": 3, "gru-windows-1000": 480, "gru-windows-100": 4800}


def test_folded_loss_that_is_timed_is_the_whole_one():
    draw = np.random.default_rng(0)
    xs = draw.normal(size=(1000, 1, 1)).astype(np.float32)  # segments of 400, 400 and 200
    ys = (draw.uniform(size=xs.shape) < 0.1).astype(np.float32)
    found = cost.losses(2)
    whole, folded = found["Scan()"], found["fold, segments of 400"]
    params = cost._model(Scan(), 2).init(jax.random.key(0), xs)
    ours = jax.jit(lambda params: (whole(params, xs, ys), folded(params, xs, ys)))(params)
    np.testing.assert_allclose(*ours, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": "full,half"}, "--ways are some of full, cut-1000"),
        ({"cells": "gru,gru"}, "--cells are some of gru, lstm"),
        ({"bins": 2001}, "--bins must be an even number"),
        ({"cost": 2001}, "--cost must be an even number"),
        ({"passes": 0}, "--passes must be at least 1"),
        ({"clip_norm": -1.0}, "--clip-norm must be a number above 0"),
    ],
)
def test_bad_options_are_refused_by_flag(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)
