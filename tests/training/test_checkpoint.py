# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or not there, checked before they are believed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from seqjax.training import TrainState, all_steps, init_state, latest_step, load, read_manifest, restore, save, storage
from tests.training.runs import assert_same_bits

MODEL = seqjax.Serial(seqjax.RNN(seqjax.Simple(3)), seqjax.Dense(1))
INPUTS = jax.ShapeDtypeStruct((5, 2, 2), jnp.float32)
OPTIMIZER = optax.adam(1e-3)


@pytest.fixture(scope="module")
def state():
    return init_state(MODEL.init(jax.random.key(0), INPUTS), OPTIMIZER)


def at(state, step):
    return state._replace(step=jnp.int32(step))


def write(run_dir, state, *steps, **options):
    for step in steps:
        save(run_dir, at(state, step), model=MODEL, inputs=INPUTS, **options)


def test_a_state_comes_back_bit_for_bit(tmp_path, state):
    write(tmp_path, state, 7)
    like = jax.tree.map(jnp.zeros_like, state)
    assert_same_bits(restore(tmp_path, like, model=MODEL), at(state, 7))


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    params = {
        "half": jnp.arange(3, dtype=jnp.bfloat16) / 3,
        "double": jnp.array([1 / 3, -0.0, np.nan, np.inf]),
        "flag": jnp.array(True),
        "empty": jnp.zeros((0, 4), jnp.int8),
        "a/b": (jnp.ones(2, jnp.complex64), None, ()),
        "key": jax.random.key(3),
    }
    state = TrainState(jnp.int32(1), params, (), jnp.int32(2), jnp.int32(3), jnp.int32(4))
    write(tmp_path, state, 1)
    like = state._replace(params={**params, "key": jax.random.key(0)})
    assert_same_bits(restore(tmp_path, like, model=MODEL), state)


def test_a_model_and_its_params_come_back_from_the_directory_alone(tmp_path, state):
    write(tmp_path, state, 1, 2, metadata={"seed": 5})
    loaded = load(tmp_path)
    assert (loaded.model, loaded.step, loaded.metadata) == (MODEL, 2, {"seed": 5})
    assert_same_bits(loaded.params, state.params)
    assert load(tmp_path, step=1).step == 1


def test_the_newest_are_kept(tmp_path, state):
    write(tmp_path, state, 1, 5, 20, 100, keep=2)
    assert all_steps(tmp_path) == [20, 100]
    assert latest_step(tmp_path) == 100


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert all_steps(tmp_path) == []
    assert latest_step(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match=r"does not hold a checkpoint; it holds none"):
        load(tmp_path)


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path, state):
    write(tmp_path, state, 1, 2)
    with pytest.raises(ValueError, match=r"does not hold step 3; it holds \[1, 2\]"):
        load(tmp_path, step=3)


def test_a_checkpoint_that_was_renamed_is_none_of_that_step(tmp_path, state):
    write(tmp_path, state, 1, 2)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "3")
    with pytest.raises(
        ValueError, match=r"checkpoints/3 is the checkpoint of step 2; rename it back. The newest .* 1;"
    ):
        restore(tmp_path, state, model=MODEL)


def test_a_checkpoint_is_never_overwritten(tmp_path, state):
    write(tmp_path, state, 1)
    with pytest.raises(ValueError, match=r"exists already"):
        write(tmp_path, state, 1)


def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleaned_up(tmp_path, state):
    write(tmp_path, state, 1)
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory / "1", directory / ".2.new")
    (directory / ".2.new" / "manifest.json").unlink()
    shutil.copytree(directory / "1", directory / ".0.old")
    assert all_steps(tmp_path) == [1]
    write(tmp_path, state, 3)
    assert sorted(path.name for path in directory.iterdir()) == ["1", "3"]


# -- damage ----------------------------------------------------------------------------------------


def files(tmp_path, step):
    path = tmp_path / "checkpoints" / str(step)
    return [file for file in sorted(path.rglob("*")) if file.is_file()]


def test_a_flipped_bit_in_any_file_is_found(tmp_path, state):
    write(tmp_path, state, 1)
    for file in files(tmp_path, 1):
        whole = file.read_bytes()
        if not whole:
            continue
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
        with pytest.raises(ValueError, match=r"corrupt|not a checkpoint|is a 's"):
            read_manifest(tmp_path)
        file.write_bytes(whole)
    assert read_manifest(tmp_path)["step"] == 1


def test_a_truncated_or_missing_file_is_found_and_named(tmp_path, state):
    write(tmp_path, state, 1)
    for file in files(tmp_path, 1):
        whole = file.read_bytes()
        name = str(file.relative_to(tmp_path / "checkpoints" / "1"))
        if whole and name != "manifest.json":
            file.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(ValueError, match=f"1 is truncated: {name} has .* bytes of {len(whole)}"):
                read_manifest(tmp_path)
        file.unlink()
        with pytest.raises(ValueError, match=f"{name} is missing|it has no manifest.json"):
            read_manifest(tmp_path)
        file.write_bytes(whole)
    assert read_manifest(tmp_path)["step"] == 1


def test_a_truncated_manifest_is_corrupt(tmp_path, state):
    write(tmp_path, state, 1)
    manifest = tmp_path / "checkpoints" / "1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"manifest.json is corrupt"):
        load(tmp_path)


def test_a_damaged_newest_is_not_passed_over_but_the_whole_one_is_named(tmp_path, state):
    write(tmp_path, state, 1, 2, 3)
    for step in (2, 3):
        files(tmp_path, step)[-1].unlink()
    message = r"checkpoints/3 is truncated.*The newest whole checkpoint is step 1.*step=1 \(fit: resume=1\)"
    with pytest.raises(ValueError, match=message):
        restore(tmp_path, state, model=MODEL)
    assert restore(tmp_path, state, model=MODEL, step=1).step == 1


def test_no_whole_checkpoint_is_said(tmp_path, state):
    write(tmp_path, state, 1)
    files(tmp_path, 1)[-1].unlink()
    with pytest.raises(ValueError, match=r"No other checkpoint there is whole; start again in a new run_dir"):
        load(tmp_path)


# -- foreign checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[]", '{"step": 1}'])
def test_a_directory_of_something_else_is_not_a_checkpoint(tmp_path, text):
    path = tmp_path / "checkpoints" / "1"
    path.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"not a checkpoint of seqjax: it has no manifest.json"):
        load(tmp_path)
    (path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"not a checkpoint of seqjax: its manifest.json is something else"):
        load(tmp_path)


def test_a_checkpoint_of_another_version_is_named(tmp_path, state):
    write(tmp_path, state, 1)
    path = tmp_path / "checkpoints" / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "seqjax checkpoint 99"}))
    with pytest.raises(ValueError, match=r"is a 'seqjax checkpoint 99', this version of seqjax reads"):
        load(tmp_path)


def test_a_checkpoint_of_another_model_is_named(tmp_path, state):
    write(tmp_path, state, 1)
    other = seqjax.Serial(seqjax.RNN(seqjax.Simple(3, activation="relu")), seqjax.Dense(1))
    with pytest.raises(ValueError, match=r"of Serial\(RNN\(Simple\(3\)\), Dense\(1\)\), not of .*activation='relu'"):
        restore(tmp_path, state, model=other)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.sgd(0.1), r"opt_state.0.count: saved int32\[\], expected nothing.* more"),
        (optax.adam(0.1, mu_dtype="bfloat16"), r"opt_state.0.mu.*saved float32.*expected bfloat16"),
    ],
    ids=["sgd", "bfloat16"],
)
def test_a_checkpoint_of_another_optimizer_is_named(tmp_path, state, optimizer, message):
    write(tmp_path, state, 1)
    with pytest.raises(ValueError, match=message):
        restore(tmp_path, init_state(state.params, optimizer), model=MODEL)


def test_params_alone_are_no_state(tmp_path, state):
    for call in (save, restore):
        with pytest.raises(ValueError, match=rf"{call.__name__} takes a TrainState, .* got a tuple"):
            call(tmp_path, state.params, model=MODEL, **({"inputs": INPUTS} if call is save else {}))


def test_a_checkpoint_for_other_inputs_is_named(tmp_path, state):
    write(tmp_path, state, 1)
    wider = MODEL.init(jax.random.key(0), jax.ShapeDtypeStruct((5, 2, 9), jnp.float32))
    with pytest.raises(ValueError, match=r"params.0.w_in: saved float32\[2, 3\], expected float32\[9, 3\]"):
        restore(tmp_path, init_state(wider, OPTIMIZER), model=MODEL)


# -- disks -----------------------------------------------------------------------------------------


def large(step):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=50_000))
    return TrainState(jnp.int32(step), weights, (), jnp.int32(0), jnp.int32(0), jnp.int32(0))


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint_whole(tmp_path, full_disk):
    save(tmp_path, large(1), model=MODEL, inputs=INPUTS, keep=1)
    with full_disk(100_000), pytest.raises(OSError, match=r"could not save step 2: .*step 1, is untouched. Make room"):
        save(tmp_path, large(2), model=MODEL, inputs=INPUTS, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert_same_bits(restore(tmp_path, large(0), model=MODEL), large(1))


# orbax's threads may outlive the event loop that their write failed in.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_while_orbax_writes_is_said_too(tmp_path, full_disk, monkeypatch, caplog):
    save(tmp_path, large(1), model=MODEL, inputs=INPUTS, keep=1)
    monkeypatch.setattr(storage, "reserve", lambda *args: None)
    with full_disk(100_000), pytest.raises(OSError, match=r"could not save step 2: .*step 1, is untouched"):
        save(tmp_path, large(2), model=MODEL, inputs=INPUTS, keep=1)
    assert not caplog.records
    assert_same_bits(restore(tmp_path, large(0), model=MODEL), large(1))


def test_a_directory_that_cannot_be_written_is_said(tmp_path, state):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(OSError, match=r"could not save step 1: .*nothing was saved before it.*file/run"):
        write(tmp_path / "file" / "run", state, 1)
