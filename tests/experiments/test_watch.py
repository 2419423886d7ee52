# SPDX-License-Identifier: Apache-2.0
"""The smartwatch experiment: its data, its crops, its streamed judgement, its command."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("seglearn")

import seqjax
from experiments.watch import crops, data, forest, judge, run, task
from experiments.watch.config import COMMAND, Config
from experiments.watch.models import STUDIES
from seqjax import training

# -- data


def test_recordings_are_the_published_ones():
    recordings = data.load()
    lengths = [len(signal) for signal in recordings.signals]
    assert (len(lengths), min(lengths), max(lengths), sum(lengths)) == (140, 947, 2618, 244_102)
    assert all(signal.shape[1:] == (6,) and signal.dtype == np.float32 for signal in recordings.signals)
    # every person did every exercise with either arm, once
    made = set(zip(recordings.people.tolist(), recordings.labels.tolist(), recordings.right.tolist(), strict=True))
    assert made == {(person, label, right) for person in range(1, 11) for label in range(7) for right in (False, True)}


def test_file_with_another_hash_is_not_unpickled(tmp_path):
    path = tmp_path / "watch_dataset.npy"
    path.write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match="sha256 differs"):
        data.read_checked(path)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"seqjax\[watch\]"):
        data.load.__wrapped__()


def test_mirrored_recording_moves_as_a_body_does():
    """Gravity, as the watch sees it, turns against the watch, a(t) = exp(-t ω×) a(0): in a mirrored recording, too."""
    times, rate, gravity = np.linspace(0, 2, 9), np.array([0.3, -0.7, 1.1]), np.array([0.5, 0.4, -0.6])

    def seen(rate, gravity):
        axes = np.broadcast_to(rate, (len(times), 3))
        return crops.rotations(axes, -np.linalg.norm(rate) * times) @ gravity

    left = np.concatenate([seen(rate, gravity), np.broadcast_to(rate, (len(times), 3))], axis=1).astype(np.float32)
    both = data.Recordings((left, left), np.zeros(2, np.int32), np.ones(2, np.int32), np.array([False, True]))
    mirrored, kept = both.as_right().signals
    np.testing.assert_array_equal(kept, left)
    np.testing.assert_allclose(mirrored[:, :3], left[:, :3] * [-1, 1, 1])
    np.testing.assert_allclose(mirrored[:, :3], seen(mirrored[0, 3:], mirrored[0, :3]), atol=1e-6)


def test_arms_are_told_apart_by_the_axis_that_is_mirrored():
    """In the pendulum the arm hangs down, and x is along the forearm: gravity is on one side for one arm."""
    recordings = data.load()
    means = np.array([signal[:, 0].mean() for signal in recordings.signals])[recordings.labels == 0]
    right = recordings.right[recordings.labels == 0]
    assert (means[right] < -0.5).all()
    assert (means[~right] > 0.5).all()


@pytest.mark.parametrize("validation", [False, True])
def test_nobody_is_learnt_from_and_judged_by(validation):
    judged = []
    for fold in range(5):
        split = data.split(fold, validation=validation)
        assert not set(split.learnt) & set(split.judged)
        assert len(split.learnt) == (6 if validation else 8)
        judged += split.judged
        if validation:
            assert not {2 * fold + 1, 2 * fold + 2} & {*split.learnt, *split.judged}
    assert sorted(judged) == list(range(1, 11))


def test_scaling_knows_the_people_learnt_from_alone():
    learnt, judged, scaler = task._parts(1, validation=False, mirrored=False)
    assert set(learnt.people) == {1, 2, 5, 6, 7, 8, 9, 10}
    assert set(judged.people) == {3, 4}
    steps = np.concatenate([data.load().signals[i] for i in np.flatnonzero(~np.isin(data.load().people, (3, 4)))])
    scaled = scaler.scale(steps).astype(np.float64)
    np.testing.assert_allclose(scaled.mean(0), np.zeros(6), atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), np.ones(6), atol=1e-5)


# -- crops


def ramp(steps=1000):
    """A recording whose channels are t, 2t, ..., 6t."""
    return np.arange(steps, dtype=np.float32)[:, None] * np.arange(1, 7, dtype=np.float32)


def test_unvaried_crop_is_a_piece_of_its_recording():
    signal, unscaled = ramp(), data.Scaler(np.zeros(6, np.float32), np.ones(6, np.float32))
    one = data.Recordings((signal,), np.array([3], np.int32), np.array([1]), np.array([True]))
    options = {"steps": 100, "count": 4, "variation": crops.AS_RECORDED}
    xs, labels = crops.crops(one, unscaled, **options, seed=0, step=7)
    assert xs.shape == (100, 4, 6)
    assert labels.tolist() == [[3, 3, 3, 3]]
    for index in range(4):
        first = int(xs[0, index, 0])
        np.testing.assert_array_equal(xs[:, index], signal[first : first + 100])
    np.testing.assert_array_equal(xs, crops.crops(one, unscaled, **options, seed=0, step=7)[0])
    assert not np.array_equal(xs, crops.crops(one, unscaled, **options, seed=0, step=8)[0])


def test_faster_playing_skips_through_time_and_turns_faster():
    played = crops.play(ramp(), 100, 0.5, 1.5)
    start = 0.5 * (999 - 1.5 * 99)
    times = start + 1.5 * np.arange(100)
    np.testing.assert_allclose(played[:, :3], times[:, None] * [1, 2, 3], rtol=1e-5)
    np.testing.assert_allclose(played[:, 3:], 1.5 * times[:, None] * [4, 5, 6], rtol=1e-5)


def test_first_and_last_places_are_the_ends_of_the_recording():
    assert crops.play(ramp(), 100, 0.0, 1.0)[0, 0] == 0
    assert crops.play(ramp(), 100, 1.0, 1.0)[-1, 0] == 999
    assert crops.play(ramp(120), 100, 1.0, 3.0)[-1, 0] == 119  # too short for this speed


def test_tilt_turns_both_sensors_and_keeps_their_lengths():
    quarter = crops.rotations(np.array([[0.0, 0.0, 1.0]]), np.array([math.pi / 2]))[0]
    turned = crops.turn(np.array([[1.0, 0, 0, 0, 2, 3]]), quarter)
    np.testing.assert_allclose(turned, [[0, 1, 0, -2, 0, 3]], atol=1e-12)
    draw = np.random.default_rng(0)
    matrices = crops.rotations(draw.normal(size=(20, 3)), draw.normal(size=20))
    np.testing.assert_allclose(matrices @ matrices.swapaxes(1, 2), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-12)


# -- judgement


def test_streamed_verdict_is_that_of_each_recording_run_whole():
    model = task.strided(seqjax.GRU(4))
    draw = np.random.default_rng(0)
    lengths = np.array([30, 9, 17], np.int32)
    xs = draw.normal(size=(32, 3, 6)).astype(np.float32)
    params = model.init(jax.random.key(0), xs)
    spoilt = np.where(np.arange(32)[:, None, None] < lengths[:, None], xs, np.float32(np.nan))
    mask = seqjax.mask_from_lengths(jnp.asarray(lengths), 32)
    verdict = jax.jit(lambda xs: judge.stream(model, params, xs, mask, piece=8))(spoilt)
    # a causal model's first outputs do not know what comes after them; recording b has ceil(length / 4)
    _, ys = jax.jit(model.apply)(params, model.initial_carry(params, (3,)), xs)
    logits = np.asarray(ys, np.float64)
    said = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for index, outputs in enumerate((8, 3, 5)):
        np.testing.assert_allclose(verdict.pooled[index], said[:outputs, index].mean(0), rtol=1e-5)
        np.testing.assert_allclose(verdict.last[index], said[outputs - 1, index], rtol=1e-5)


def test_losses_count_valid_steps_alone():
    logits = np.zeros((3, 2, 4), np.float32)
    logits[0, 0, 1] = logits[1, 1, 2] = math.log(3)  # probability 1/2
    logits[1, 0] = np.nan
    labels, mask = np.array([[1, 2]], np.int32), np.array([[True, True], [False, True], [False, False]])
    half, quarter = math.log(2), math.log(4)
    np.testing.assert_allclose(judge.every_step(logits, labels, mask), (half + quarter + half) / 3, rtol=1e-6)
    np.testing.assert_allclose(judge.last_step(logits, labels, mask), half, rtol=1e-6)


def test_whole_batches_walk_through_every_recording_of_an_epoch():
    made = task.task(2, whole=True)
    batch = made.make_batch(0, 0)
    assert batch.xs.shape == (2640, 16, 6)
    lengths = np.concatenate([np.asarray(made.make_batch(0, step).mask).sum(0) for step in range(7)])
    learnt = data.load().of(data.split(2).learnt)
    assert sorted(lengths) == sorted(len(signal) for signal in learnt.signals)


# -- the baseline


def test_forest_is_scikit_learns_on_seven_statistics_of_each_channel():
    from sklearn.ensemble import RandomForestClassifier

    learnt, judged = (data.load().of(people) for people in data.split(1))

    def described(signal):
        columns = [sorted(channel) for channel in signal.T.astype(np.float64)]
        places = [share * (len(signal) - 1) for share in (0, 0.25, 0.5, 0.75, 1)]
        ordered = [[np.interp(place, range(len(column)), column) for column in columns] for place in places]
        return np.concatenate([signal.mean(0), signal.std(0), *ordered])

    np.testing.assert_allclose(forest.statistics(judged.signals[0]), described(judged.signals[0]), rtol=1e-5)
    xs = [np.array([forest.statistics(signal) for signal in part.signals]) for part in (learnt, judged)]
    said = RandomForestClassifier(random_state=0).fit(xs[0], learnt.labels).predict(xs[1])
    assert forest.accuracy(learnt, judged) == np.mean(said == judged.labels)


def test_forest_tells_apart_what_differs_in_level_and_not_what_differs_in_order():
    def recordings(signals):
        return data.Recordings(tuple(signals), np.arange(8, dtype=np.int32) % 2, np.ones(8, np.int32), np.ones(8, bool))

    draw = np.random.default_rng(0)
    levels = [recordings(draw.normal(10 * (i % 2), 1, (50, 6)) for i in range(8)) for _ in range(2)]
    assert forest.accuracy(*levels) == 1
    ramp = np.repeat(np.arange(-24.0, 25)[:, None], 6, axis=1)  # whose sums are exact in any order
    rising_or_falling = recordings(ramp[:: 1 - 2 * (i % 2)] for i in range(8))
    assert forest.accuracy(rising_or_falling, rising_or_falling) == 0.5


def test_baselines_of_a_fold_learn_from_its_learners_and_know_the_arm_where_it_says_so():
    for fold, validation in ((0, False), (4, True)):
        split = data.split(fold, validation=validation)
        for name, recordings in (("", data.load()), (", mirrored", data.load().as_right())):
            expected = forest.accuracy(*(recordings.of(people) for people in split))
            assert task.task(5 + fold, validation=validation).baselines["random forest" + name] == expected


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ValueError, match=r"scikit-learn, which is not installed.*seqjax\[watch\]"):
        forest.accuracy(data.load(), data.load())


# -- the command

TINY = ("--models", "conv-gru-varied", "--folds", "3", "--steps", "1", "--hidden-dim", "2")


def test_command_writes_what_it_found_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "STEPS", 40)
    monkeypatch.setattr(task, "COUNT", 2)
    run_dir = tmp_path / "run"
    original, calls = task._crop_batches, []

    def interrupting(*args):
        def make_batch(seed, step):
            calls.append(step)
            if len(calls) == 2:  # the first call tells `fit` the shape
                raise KeyboardInterrupt
            return original(*args)(seed, step)

        return make_batch

    monkeypatch.setattr(task, "_crop_batches", interrupting)
    assert run.main([*TINY, "--run-dir", str(run_dir)]) == 130
    assert not (run_dir / "summary.json").exists()
    monkeypatch.setattr(task, "_crop_batches", original)
    assert run.main(["--resume", str(run_dir)]) == 0
    row = json.loads((run_dir / "summary.json").read_text())["rows"][0]
    assert row["outcomes"][0]["replicate"] == 3
    assert row["mean"] * 28 == pytest.approx(round(row["mean"] * 28), abs=1e-4)  # 28 recordings
    assert (run_dir / "learning.png").is_file()
    assert training.load(run_dir / "conv-gru-varied" / "3").step == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": "gru,plane"}, "--models: there is no 'plane'; choose from gru, conv-gru"),
        ({"study": "whole", "models": "gru"}, "--models: there is no 'gru'; choose from plain, clip"),
        ({"models": "gru,gru"}, "--models: one is named twice"),
        ({"folds": "0,5"}, "--folds are some of 0,1,2,3,4"),
        ({"folds": "1,1"}, "--folds are some of 0,1,2,3,4"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"learning_rate": -1.0}, "--learning-rate must be a number above 0"),
    ],
)
def test_bad_options_are_refused_by_flag(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


def test_folder_in_use_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main([*TINY, "--run-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not empty" in error
    assert error.count("\n") == 1


def test_whole_study_has_a_row_for_each_repair():
    config = COMMAND.presets["whole"]
    assert config.names[0] == "plain"
    assert {"layer", "strided", "clip", "chrono", "mingru", "rglru", "lru"} < set(config.names)


def test_models_are_the_headline_of_the_study_unless_others_are_asked_for():
    assert COMMAND.parse([]).names == ["conv-gru-mirrored"]
    assert COMMAND.parse(["--study", "whole"]).names == ["cure-mirrored"]
    assert COMMAND.parse(["--models", "gru, conv-gru"]).names == ["gru", "conv-gru"]
    for study, rows in STUDIES.items():
        assert COMMAND.parse(["--study", study, "--models", "all"]).names == list(rows)
