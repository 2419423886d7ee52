# SPDX-License-Identifier: Apache-2.0
"""Pixels: the idx format byte by byte, sequences by hand, the command from end to end."""

import gzip
import json

import numpy as np
import pytest

import seqjax
from experiments.pixels import data, images, run, task
from seqjax import training


def idx(array, dimensions=None):
    """An array of bytes in idx format, written out here and not by the code under test."""
    header = bytes([0, 0, 8, dimensions or array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """Twenty-four 4 x 4 training images and five others, packed and not."""
    draw = np.random.default_rng(0)
    for part, count, pack in (("train", 24, True), ("t10k", 5, False)):
        for name, array in (
            ("images-idx3", draw.integers(256, size=(count, 4, 4))),
            ("labels-idx1", np.arange(count) % 10),
        ):
            held = idx(array)
            path = tmp_path / f"{part}-{name}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(held) if pack else held)
    return tmp_path


# -- files


def test_files_are_read_packed_or_not(folder):
    found = images.read(folder)
    draw = np.random.default_rng(0)
    np.testing.assert_array_equal(found.train_images, draw.integers(256, size=(24, 4, 4)))
    np.testing.assert_array_equal(found.test_images, draw.integers(256, size=(5, 4, 4)))
    assert found.train_labels.tolist() == [*range(10), *range(10), 0, 1, 2, 3]
    assert found.name == folder.name


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (idx(np.zeros(3), dimensions=3), "not an idx file"),
        (b"\x00\x00\x08", "not an idx file"),
        (bytes([0, 0, 13, 1]) + bytes(8), "begins with 00 00 0d 01"),  # floats
        (idx(np.zeros(6))[:-1], "5 follow"),
        (idx(np.zeros(6)) + b"\x00", "7 follow"),
    ],
)
def test_damaged_labels_are_refused(folder, held, message):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(held)
    with pytest.raises(ValueError, match=message):
        images.read(folder)


def test_labels_must_be_as_many_as_images_and_of_ten_classes(folder):
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(4)))
    with pytest.raises(ValueError, match="5 t10k images and 4 labels"):
        images.read(folder)
    path.write_bytes(idx(np.array([1, 2, 10, 0, 0])))
    with pytest.raises(ValueError, match="one is 10"):
        images.read(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no t10k-labels-idx1-ubyte\.gz"):
        images.read(folder)


def test_damaged_package_is_refused_before_it_is_unpacked(folder, monkeypatch):
    monkeypatch.setattr(images, "DEBIAN", folder)
    with pytest.raises(ValueError, match="sha256 differs"):
        images.read()


def test_cut_off_gzip_is_refused(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        images.read(folder)


def test_fashion_mnist_of_debian_is_as_published():
    if not images.DEBIAN.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    found = images.read()
    assert found.train_images.shape == (60_000, 28, 28)
    assert found.test_images.shape == (10_000, 28, 28)
    assert np.bincount(found.train_labels).tolist() == [6_000] * 10
    assert np.bincount(found.test_labels).tolist() == [1_000] * 10


def test_made_up_images_are_the_same_at_every_call():
    one, again = images.made_up(), images.made_up()
    np.testing.assert_array_equal(one.train_images, again.train_images)
    assert one.train_images.shape == (2_000, 28, 28)
    assert set(one.test_labels) == set(range(10))


# -- sequences


def ramp(count=24):
    """Image n has the pixels 16 n to 16 n + 15, modulo 256, row by row."""
    grey = (np.arange(count * 16) % 256).astype(np.uint8).reshape(count, 4, 4)
    labels = (np.arange(count) % 10).astype(np.int32)
    return images.Images("ramp", grey, labels, grey[:5], labels[:5])


def test_every_twelfth_training_image_is_for_validation():
    held = data.sequences(ramp(), None, 1, None)
    assert held.labels["valid"].tolist() == [1, 3]  # images 11 and 23
    np.testing.assert_array_equal(held.pixels["valid"], ramp().train_images[[11, 23]].reshape(2, 16))
    assert len(held.labels["train"]) == 22


def test_pixels_go_row_by_row_scaled_by_the_training_part():
    held = data.sequences(ramp(), None, 1, None)
    learnt = np.delete(ramp().train_images, [11, 23], axis=0).astype(float)
    batch = held.batch("test", np.array([2, 0]))
    assert batch.xs.shape == (16, 2, 1)
    assert batch.xs.dtype == np.float32
    np.testing.assert_allclose(batch.xs[:, 0, 0], (np.arange(32, 48) - learnt.mean()) / learnt.std(), rtol=1e-5)
    assert batch.ys.tolist() == [[2, 0]]


def test_permutation_is_one_for_all_images_and_fixed_by_its_seed():
    plain, permuted, again, other = (data.sequences(ramp(), seed, 1, None) for seed in (None, 5, 5, 6))
    order = permuted.pixels["test"][0]  # image 0 holds the numbers of its pixels
    assert sorted(order) == list(range(16))
    assert order.tolist() != list(range(16))
    for part in ("train", "valid", "test"):
        np.testing.assert_array_equal(permuted.pixels[part], plain.pixels[part][:, order])
    np.testing.assert_array_equal(permuted.pixels["train"], again.pixels["train"])
    assert (permuted.pixels["train"] != other.pixels["train"]).any()


def test_pooling_takes_means_of_squares():
    grey = np.array([[[0, 4, 10, 10], [8, 0, 10, 10], [1, 1, 255, 255], [1, 1, 255, 253]]], np.uint8)
    assert data.pooled(grey, 2).tolist() == [[3, 10, 1, 254]]
    with pytest.raises(ValueError, match="--pool 3 does not divide images of 4 x 4"):
        data.pooled(grey, 3)


def test_an_epoch_sees_every_image_once():
    held = data.sequences(ramp(36), None, 1, None)  # 33 to learn from
    seen = [data.batch(held, size=11, seed=0, step=step).xs[:, :, 0] for step in range(3)]
    assert len(np.unique(np.concatenate(seen, axis=1), axis=1).T) == len(np.unique(held.pixels["train"], axis=0))
    with pytest.raises(ValueError, match="33 training images, fewer than --batch-size 34"):
        data.batch(held, size=34, seed=0, step=0)


def test_filling_of_the_last_batch_does_not_count():
    held = data.sequences(ramp(), None, 1, None)
    batches = held.all("train", size=10)
    assert [int(batch.mask[-1].sum()) for batch in batches] == [10, 10, 2]
    assert np.concatenate([batch.ys[0, batch.mask[0]] for batch in batches]).tolist() == held.labels["train"].tolist()


def test_least_squares_tells_apart_what_one_pixel_shows():
    draw = np.random.default_rng(0)
    labels = draw.integers(10, size=400).astype(np.int32)
    grey = draw.integers(20, size=(400, 4, 4)).astype(np.uint8)
    grey.reshape(400, 16)[np.arange(400), labels] = 255
    held = data.sequences(images.Images("spots", grey, labels, grey[:100], labels[:100]), 3, 1, None)
    assert data.least_squares_accuracy(held) == 100


# -- the command


@pytest.fixture
def trained(folder, tmp_path):
    run_dir = tmp_path / "run"
    sizes = ["--pool", "1", "--hidden-dim", "3", "--steps", "2", "--batch-size", "4", "--seeds", "1"]
    assert run.main(["--data", str(folder), "--run-dir", str(run_dir), "--cells", "simple", *sizes]) == 0
    return run_dir


def test_run_writes_what_it_promises_and_resumes(trained):
    summary = json.loads((trained / "summary.json").read_text())
    values = summary["rows"][0]["outcomes"][0]["values"]
    assert values["test_accuracy"] / 20 == pytest.approx(round(values["test_accuracy"] / 20))  # of five images
    assert summary["baselines"]["chance"] == 10
    assert training.latest_step(trained / "simple" / "0") == 2
    before = (trained / "simple" / "0" / "metrics.jsonl").read_text()
    assert run.main(["--resume", str(trained)]) == 0
    assert (trained / "simple" / "0" / "metrics.jsonl").read_text() == before


def test_blocks_stand_between_a_projection_and_the_last_step():
    model = task.model(seqjax.GRU(3), blocks=2, width=5)
    block = seqjax.Residual(
        seqjax.Serial(seqjax.LayerNorm(), seqjax.RNN(seqjax.GRU(3)), seqjax.Activation("gelu"), seqjax.Dense(5))
    )
    head = (seqjax.LayerNorm(), seqjax.Last(), seqjax.Dense(10))
    assert model == seqjax.Serial(seqjax.Dense(5), block, block, *head)
    assert task.model(seqjax.GRU(3)) == seqjax.Serial(seqjax.RNN(seqjax.GRU(3)), *head[1:])


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    cases = (
        (["--data", str(tmp_path / "gone")], "install the Debian package dataset-fashion-mnist"),
        (["--data", str(tmp_path)], "has no train-images"),
        (["--preset", "smoke", "--pool", "5"], "--pool 5 does not divide"),
    )
    for number, (args, message) in enumerate(cases):
        assert run.main([*args, "--run-dir", str(tmp_path / str(number))]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_folder_is_found_again_from_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.Config(data="mnist").data == str(tmp_path / "mnist")
    with pytest.raises(ValueError, match="--data is empty"):
        run.Config(data="")


@pytest.mark.parametrize(
    ("field", "given"),
    [("pool", 0), ("permutation", -1), ("blocks", -1), ("steps", 0), ("clip_norm", 0.0), ("cells", "gated")],
)
def test_options_out_of_range_are_refused(field, given):
    with pytest.raises(ValueError, match="--" + field.replace("_", "-")):
        run.Config(**{field: given})


def test_smoke_without_files_says_that_the_images_are_made_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "DEBIAN", tmp_path / "gone")
    monkeypatch.setattr(run, "conduct", lambda *arguments, **options: None)
    assert run.main(["--preset", "smoke", "--run-dir", str(tmp_path / "run")]) == 0
    assert "The images are made up" in capsys.readouterr().out
