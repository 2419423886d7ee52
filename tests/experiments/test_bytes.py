# SPDX-License-Identifier: Apache-2.0
"""Source text as bytes: which text it is, what compressors need, bits counted by hand, a run and what it writes."""

import bz2
import hashlib
import json
import lzma
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from experiments.bytes import data, judge, run, sample
from experiments.bytes.task import model
from seqjax import training

TEXT = b"".join(b"def f%d(x):\n    return x + %d\n" % (i, i * i) for i in range(400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files and a hidden one."""
    root = tmp_path_factory.mktemp("text")
    (root / "sub").mkdir()
    (root / "b.py").write_bytes(TEXT[5000:])
    (root / "a.py").write_bytes(TEXT[:5000])
    (root / ".git").write_bytes(b"x" * 9000)
    return root


def test_files_come_in_the_order_of_their_paths_and_hidden_ones_do_not(folder):
    corpus = data.load(str(folder))
    assert corpus.text == TEXT
    assert corpus.cut == int(0.9 * len(TEXT))
    assert [entry[:2] for entry in corpus.manifest] == [("a.py", 5000), ("b.py", len(TEXT) - 5000)]
    assert corpus.manifest[0][2] == hashlib.sha256(TEXT[:5000]).hexdigest()


def test_the_standard_library_is_found_and_has_no_packages_in_it():
    corpus = data.load()
    names = [name for name, _, _ in corpus.manifest]
    assert names == sorted(names)
    assert {"abc.py", "typing.py"} <= set(names)
    assert len(corpus.text) == sum(size for _, size, _ in corpus.manifest) > 3_000_000


def test_compressors_pay_for_the_last_part_alone(folder):
    corpus = data.load(str(folder))
    judged = len(TEXT) - corpus.cut
    for name, compress in (
        ("zlib", lambda text: zlib.compress(text, 9)),
        ("bz2", bz2.compress),
        ("lzma", lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    ):
        expected = 8 * (len(compress(TEXT)) - len(compress(TEXT[: corpus.cut]))) / judged
        assert data.compressed(corpus)[name] == pytest.approx(expected)


def test_a_model_that_knows_nothing_needs_eight_bits_and_every_byte_is_counted_once():
    ids = np.frombuffer(TEXT, np.uint8).astype(np.int32)[:1000]
    blind = model(seqjax.Simple(4))
    params = jax.tree.map(jnp.zeros_like, blind.init(jax.random.key(0), jax.ShapeDtypeStruct((3, 2), jnp.int32)))
    assert judge.fixed(blind, judge.reader(blind), params, ids, cut=900, piece=33) == pytest.approx(8.0, rel=1e-6)


def test_streaming_in_pieces_equals_one_pass_over_all():
    ids = np.frombuffer(TEXT, np.uint8).astype(np.int32)[:600]
    net = model(seqjax.Simple(4))
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((3, 2), jnp.int32))
    _, logits = jax.jit(net.apply)(params, net.initial_carry(params, ()), jnp.asarray(ids[:-1]))
    logits = np.asarray(logits, np.float64)
    each = np.log(np.exp(logits).sum(-1)) - logits[np.arange(599), ids[1:]]
    expected = each[499:].mean() / np.log(2)  # bytes 500 to 599, each given all before it
    assert judge.fixed(net, judge.reader(net), params, ids, cut=500, piece=37) == pytest.approx(expected, rel=1e-5)


def test_weights_that_learn_are_judged_before_they_have_seen_a_piece():
    # all weights but the last bias are 0, and stay so: p is softmax(b), whose gradient is p less the share of each byte
    ids = np.frombuffer(TEXT, np.uint8).astype(np.int32)[:100]
    net = model(seqjax.Simple(2))
    params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), jax.ShapeDtypeStruct((3, 2), jnp.int32)))
    bias, nats = np.zeros(256), []
    for piece in (ids[60:80], ids[80:100]):
        p = np.exp(bias) / np.exp(bias).sum()
        nats += [-np.log(p[byte]) for byte in piece]
        gradient = p - np.bincount(piece, minlength=256) / 20
        bias -= 0.5 * gradient / max(1, np.linalg.norm(gradient))
    found = judge.dynamic(net, params, ids, cut=60, rate=0.5, piece=20)
    assert found == pytest.approx(np.mean(nats) / np.log(2), rel=1e-5)
    assert found < 8


def test_little_text_and_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no files"):
        data.load(str(tmp_path))
    (tmp_path / "short.txt").write_bytes(b"too short")
    with pytest.raises(ValueError, match="9 bytes"):
        data.load(str(tmp_path))


def test_a_run_is_resumed_refused_other_text_and_writes(tmp_path, folder, capsys):
    where = tmp_path / "run"
    tiny = ["--data", str(folder), "--limit", "6000", "--cells", "simple", "--hidden-dim", "4", "--batch-size", "4"]
    assert run.main([*tiny, "--epochs", "0.5", "--window", "32", "--run-dir", str(where)]) == 0
    summary = json.loads((where / "summary.json").read_text())
    (row,) = summary["rows"]
    assert 0 < row["mean"] < 10
    assert set(summary["baselines"]) == {"zlib", "bz2", "lzma"}
    assert training.latest_step(where / "simple/0") == row["outcomes"][0]["steps"]
    assert "when it goes on learning" in capsys.readouterr().out
    kept = json.loads((where / "simple/0/dynamic.json").read_text())["bits_per_byte"]
    assert kept < row["mean"]
    assert json.loads((where / "dynamic.json").read_text()) == {"simple": [kept]}
    assert run.main(["--sample", str(where / "simple/0"), "--length", "20", "--prompt", "def"]) == 0
    assert capsys.readouterr().out.startswith("def")
    (where / "data.json").write_text("{}")
    assert run.main(["--resume", str(where)]) == 2
    assert "have changed" in capsys.readouterr().err
    assert run.main(["--sample", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("model", "xs", "message"),
    [
        (seqjax.Dense(1), jnp.ones((3, 2, 1), jnp.float32), "does not read bytes"),
        (seqjax.Serial(seqjax.Embed(9, 4), seqjax.Dense(9)), jnp.ones((3, 2), jnp.int32), "not to the scores of 256"),
    ],
)
def test_a_model_that_does_not_go_from_bytes_to_bytes_is_refused_by_name(tmp_path, model, xs, message, capsys):
    def make_batch(seed, step):
        return training.Batch(xs, jnp.zeros((3, 2, 1), jnp.float32))

    def loss(ys, targets, mask):
        return jnp.mean(ys**2)

    training.fit(model, make_batch, steps=1, loss=loss, optimizer=optax.sgd(0.1), run_dir=tmp_path / "gru/0")
    assert run.main(["--sample", str(tmp_path / "gru/0")]) == 2
    assert message in capsys.readouterr().err


def test_damaged_bits_of_a_model_are_named(tmp_path):
    (tmp_path / "dynamic.json").write_text("{")
    with pytest.raises(ValueError, match=r"dynamic\.json is damaged"):
        run.learning_on(None, tmp_path, 0.2)


def test_what_is_colder_than_float32_writes_the_most_likely_bytes():
    layers = seqjax.Serial(seqjax.Embed(256, 4), seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(256))
    params = layers.init(jax.random.key(0), jnp.zeros(3, jnp.int32))
    carry, last, expected = layers.initial_carry(params, ()), 97, []
    for _ in range(6):
        carry, logits = layers.apply(params, carry, jnp.array([last], jnp.int32))
        last = int(np.argmax(logits[0]))
        expected.append(last)
    assert list(sample.write(layers, params, b"a", length=6, temperature=1e-300, seed=0)) == expected
