# SPDX-License-Identifier: Apache-2.0
"""A run's directory: gone on with without gap or repeat, refused without a change, and one run's alone."""

import contextlib
import json
import threading
import warnings

import numpy as np
import optax
import pytest

from seqjax.training import all_steps, load, read_metrics
from tests.training.runs import assert_same_bits, make_batch, never, train


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


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (b'#{"step": 3}\n', r"line 3 is damaged, and lines follow it; repair or delete"),
        (b'{"step": 2}\n', r"line 3 is of step 2, after one of step 2: more than one run wrote there"),
    ],
    ids=["damaged", "twice"],
)
def test_a_bad_line_in_the_middle_loses_none_of_those_after_it(tmp_path, third, message):
    train(tmp_path, steps=8)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], third, *lines[3:]]))
    before = contents(tmp_path)
    for resume in (True, 4):
        with pytest.raises(ValueError, match=f"metrics.jsonl, {message}"):
            train(tmp_path, resume=resume)
    assert contents(tmp_path) == before


def test_a_refused_way_back_changes_nothing(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is at step 4, past steps=3; ask for more"):
        train(tmp_path, steps=3, resume=4)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("left", [b"", b'{"step": 1}\n{"step": 2}\n{"st'], ids=["none", "torn"])
def test_lines_that_are_missing_are_warned_of_once(tmp_path, whole, left):
    train(tmp_path, steps=8)
    (tmp_path / "metrics.jsonl").write_bytes(left)
    kept = left.count(b"\n")
    with pytest.warns(
        UserWarning, match=f"has {kept} of the 8 lines written up to step 8; the history goes on"
    ) as said:
        run = train(tmp_path, resume=True, steps=9)
    assert [warning.filename for warning in said] == [train.__code__.co_filename]
    assert [line["step"] for line in run.history] == [*range(1, kept + 1), 9]
    with warnings.catch_warnings(action="error"):
        assert_same_bits(train(tmp_path, resume=True).state, whole.state)


def test_lines_that_were_not_due_are_not_missed(tmp_path):
    train(tmp_path, steps=5, log_every=3)
    with warnings.catch_warnings(action="error"):
        run = train(tmp_path, steps=6, resume=4, log_every=1)
    assert [line["step"] for line in run.history] == [3, 5, 6]


@pytest.mark.parametrize("config", [{"rate_at": {2: 0.1, 10: 0.01}}, {"rate_at": {0.5: 1, 1e-5: 2}}, {None: 1, "a": 2}])
def test_a_config_whose_keys_are_no_texts_is_read_back(tmp_path, whole, config):
    train(tmp_path, steps=5, config=config)
    assert_same_bits(train(tmp_path, resume=True, config=config).state, whole.state)
    assert load(tmp_path).metadata["config"] == json.loads(json.dumps(config))


def test_keys_that_are_the_same_in_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config must hold only what JSON can: keys that are the same"):
        train(tmp_path, config={"rate_at": {1: 0.1, "1": 0.2}})


def test_metrics_that_cannot_be_written_cost_no_step(tmp_path, full_disk):
    lines = []

    def batches(seed, t):
        if t == 300:
            lines.append(room.enter_context(full_disk((tmp_path / "metrics.jsonl").stat().st_size + 200)))
        return make_batch(seed, t)

    with contextlib.ExitStack() as room, pytest.raises(OSError, match=r"could not write metrics: .*resume.*jsonl"):
        train(tmp_path, steps=900, batches=batches, checkpoint_every=None)
    before, last = all_steps(tmp_path)
    assert before == 0
    assert 300 < last < 310
    assert len(read_metrics(tmp_path)) < last


def test_a_seed_of_numpy_is_one(tmp_path, whole):
    assert_same_bits(train(tmp_path, seed=np.int64(0)).state, whole.state)


def test_a_file_is_no_run_dir(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run_dir must be a directory, and .*file is a file"):
        train(tmp_path / "file")


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


def test_a_run_that_is_being_trained_lets_no_other_in(tmp_path, whole):
    begun, go_on = threading.Event(), threading.Event()

    def batches(seed, t):
        if t == 6:
            begun.set()
            assert go_on.wait(60)
        return make_batch(seed, t)

    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(tmp_path, batches=batches)))
    thread.start()
    assert begun.wait(60)
    before = contents(tmp_path)
    for resume in (True, 4, False):
        with pytest.raises(ValueError, match=f"{tmp_path} is being trained in, by another process or thread"):
            train(tmp_path, batches=never, resume=resume)
    assert contents(tmp_path) == before
    go_on.set()
    thread.join()
    assert runs[0].history == whole.history == train(tmp_path, resume=True).history
