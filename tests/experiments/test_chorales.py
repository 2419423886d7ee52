# SPDX-License-Identifier: Apache-2.0
"""Chorales: rolls by hand, files of the literature, baselines in closed form, the command from end to end."""

import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from experiments.chorales import baselines, data, run, sample, scores
from experiments.chorales.task import nats_per_step
from seqjax import RNN
from seqjax.base import Cell
from seqjax.cells import LambdaCell

KEYS = 88
PARTS = ("traindata", "validdata", "testdata")


def keys(*chords):
    """A roll from the keys that sound at each step."""
    made = np.zeros((len(chords), KEYS), bool)
    for step, chord in enumerate(chords):
        made[step, list(chord)] = True
    return made


def write_mat(path, parts):
    """As the files of the literature are: a row of cells."""
    cells = {}
    for name, pieces in parts.items():
        cells[name] = np.empty((1, len(pieces)), object)
        for i, piece in enumerate(pieces):
            cells[name][0, i] = piece.astype(float)
    scipy.io.savemat(path, cells)
    return path


@pytest.fixture(scope="module")
def pieces():
    """Nine pieces in which two notes change places, of different lengths."""
    return [keys(*[(30 + i, 50) if t % 2 else (40,) for t in range(12 + i)]) for i in range(9)]


@pytest.fixture(scope="module")
def mat(tmp_path_factory, pieces):
    parts = {"traindata": pieces[:5], "validdata": pieces[5:7], "testdata": pieces[7:]}
    return write_mat(tmp_path_factory.mktemp("data") / "JSB_Chorales.mat", parts)


# -- rolls


def test_notes_are_put_on_the_nearest_sixteenth_and_sound_for_one_at_least():
    made = scores.roll([(0.0, 1.0, 60), (1 / 3, 1 / 3, 62), (0.5, 0.01, 64), (0.75, 0.0, 65)])
    assert made.shape == (4, KEYS)
    assert np.flatnonzero(made[:, 60 - 21]).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(made[:, 62 - 21]).tolist() == [1, 2]  # 4/3 and 8/3 of a sixteenth
    assert np.flatnonzero(made[:, 64 - 21]).tolist() == [2]
    assert not made[:, 65 - 21].any()  # a grace note


@pytest.mark.parametrize(("notes", "message"), [([(0, 1, 20)], "MIDI number 20"), ([(0, 0, 60)], "no notes")])
def test_what_is_no_piano_music_is_refused(notes, message):
    with pytest.raises(ValueError, match=message):
        scores.roll(notes)


def test_notes_of_a_roll_make_that_roll():
    made = np.random.default_rng(0).random((40, KEYS)) < 0.3
    made[-1, 0] = True
    np.testing.assert_array_equal(scores.roll(scores.notes(made, 4)), made)


def test_cache_returns_what_was_kept_and_none_of_a_damaged_file(tmp_path, pieces):
    path, kept = tmp_path / "new" / "cache.npz", {f"bwv{i}": piece for i, piece in enumerate(pieces)}
    assert scores.read(path) is None
    scores.write(path, kept)
    found = scores.read(path)
    assert list(found) == list(kept)
    for name in kept:
        np.testing.assert_array_equal(found[name], kept[name])
    assert [file.name for file in path.parent.iterdir()] == ["cache.npz"]
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert scores.read(path) is None


def test_other_scores_than_the_known_ones_are_refused(tmp_path, monkeypatch, pieces):
    music21 = pytest.importorskip("music21")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(scores.KNOWN, music21.__version__, "0" * 64)
    monkeypatch.setattr(scores, "parse", lambda: {"bwv1": pieces[0]})
    with pytest.raises(ValueError, match="not those that are known"):
        scores.pieces()


def test_midi_file_holds_the_notes(tmp_path):
    music21 = pytest.importorskip("music21")
    path = tmp_path / "piece.mid"
    scores.write_midi(path, keys((39,), (39, 43), (43,), ()), 4)
    file = music21.midi.MidiFile()
    file.open(path)
    file.read()
    file.close()
    events, now = [], 0
    for event in file.tracks[-1].events:
        now += event.time if event.isDeltaTime() else 0
        if event.isNoteOn() or event.isNoteOff():
            events.append((4 * now / file.ticksPerQuarterNote, event.pitch, event.isNoteOn()))
    start = events[0][0]  # music21 leaves a rest before the first note
    assert sorted((time - start, pitch, on) for time, pitch, on in events) == [
        (0, 60, True),
        (1, 64, True),
        (2, 60, False),
        (3, 64, False),
    ]


# -- the corpus


def test_melody_is_the_highest_voice_without_its_key():
    tune = keys((30, 40), (30, 40), (), (28, 42), (28, 42, 45))
    assert data.melody(tune) == (2, 3)
    assert data.melody(np.roll(tune, 7, axis=1)) == (2, 3)


def test_split_keeps_settings_of_a_melody_together_and_every_piece_once():
    draw = np.random.default_rng(0)
    tunes = [keys(*[(note,) for note in draw.integers(30, 60, 14)]) for _ in range(50)]
    pieces = {f"{i}-{shift}": np.roll(tune, shift, axis=1) for i, tune in enumerate(tunes) for shift in (0, 3)}
    parts = data.split(pieces)
    assert sorted(itertools.chain(*parts)) == sorted(pieces)
    assert [len(part) for part in parts] == [60, 20, 20]
    families = [{name.split("-")[0] for name in part} for part in parts]
    assert not families[0] & families[1]
    assert not (families[0] | families[1]) & families[2]
    assert data.split(dict(reversed(pieces.items()))) == parts


def test_bach_has_368_pieces_in_four_parts(monkeypatch):
    pytest.importorskip("music21")
    found = scores.read(scores.cache_folder() / f"chorales-music21-{scores._music21().__version__}.npz")
    if found is None:
        pytest.skip("the scores are parsed by the first run of the experiment, which takes a minute")
    assert len(found) == 368
    assert min(piece.sum(1).max() for piece in found.values()) >= 3


def test_file_of_the_literature_is_read(mat, pieces):
    corpus = data.read_mat(mat)
    assert [len(part) for part in corpus.parts.values()] == [5, 2, 2]
    assert corpus.published == "JSB"
    for found, piece in zip((*corpus.train, *corpus.valid, *corpus.test), pieces, strict=True):
        np.testing.assert_array_equal(found, piece)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"traindata": [np.zeros((3, KEYS))]}, "has no validdata; it has traindata"),
        ({name: [np.zeros((3, 87))] for name in PARTS}, r"must be \[T, 88\]"),
        ({name: [np.full((3, KEYS), 2)] for name in PARTS}, "zeros and ones"),
        (None, "not a MATLAB file"),
    ],
)
def test_other_files_are_refused(tmp_path, parts, message):
    path = tmp_path / "bad.mat"
    path.write_bytes(b"not a mat file" * 20) if parts is None else write_mat(path, parts)
    with pytest.raises(ValueError, match=message):
        data.read_mat(path)


def test_a_file_cut_short_is_refused_by_name(tmp_path, mat):
    whole, path = mat.read_bytes(), tmp_path / "cut.mat"
    for cut in (0, 3, 100, 130, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"cut\.mat"):
            data.read_mat(path)


def test_batch_asks_for_the_next_step_and_masks_what_is_not_there():
    made = data.padded([keys((1,), (2,), (3,)), keys((4,), (5,), (6,), (7,))], 4)
    assert made.mask.T.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert [np.flatnonzero(step).tolist() for step in made.xs[:, 0]] == [[1], [2], [], []]
    assert [np.flatnonzero(step).tolist() for step in made.ys[:, 0]] == [[2], [3], [], []]
    assert made.xs.dtype == np.float32


def test_batches_are_a_function_of_seed_and_step(pieces):
    options = {"size": 4, "crop": 8, "transpose": 5}
    one, again, other = (data.batch(pieces, seed=1, step=step, **options) for step in (3, 3, 4))
    np.testing.assert_array_equal(one.xs, again.xs)
    assert (one.xs != other.xs).any()
    assert one.mask.all()  # all pieces are longer than the crop


def test_shifting_moves_all_notes_alike_and_stays_on_the_piano():
    chord = keys((2, 80))
    assert np.flatnonzero(data.shifted(chord, -1)).tolist() == [1, 79]
    assert np.flatnonzero(data.shifted(chord, -5)).tolist() == [0, 78]
    assert np.flatnonzero(data.shifted(chord, 20)).tolist() == [9, 87]


def test_whole_pieces_come_once_each_in_batches_of_one_shape(pieces):
    batches = data.whole(pieces, 30, size=4)
    assert {batch.xs.shape for batch in batches} == {(30, 4, KEYS)}
    assert sum(batch.mask.sum() for batch in batches) == sum(len(piece) - 1 for piece in pieces)


# -- measures


def test_nats_are_summed_over_notes_and_averaged_over_valid_steps():
    logits = np.array([[0.3] * KEYS, [-2.0] * KEYS, [np.nan] * KEYS])[:, None]
    truth = np.zeros((3, 1, KEYS))
    truth[0, 0, :2] = 1
    by_hand = [
        2 * -math.log(1 / (1 + math.exp(-0.3))) + 86 * math.log(1 + math.exp(0.3)),
        88 * math.log(1 + math.exp(-2)),
    ]
    mask = jnp.array([[True], [True], [False]])
    assert float(nats_per_step(jnp.asarray(logits), jnp.asarray(truth), mask)) == pytest.approx(
        np.mean(by_hand), rel=1e-12
    )


def test_baselines_by_hand():
    train, test = [keys((0,), (0,), (0, 1))], [keys((0,), (1,))]
    # two steps are predicted in training: note 0 sounds in both, note 1 in one, the others in none
    log = math.log
    assert baselines.independent(train, test) == pytest.approx(-(log(1 / 4) + log(2 / 4) + 86 * log(3 / 4)))
    # sounding notes: 2, both go on; silent ones: 174, one begins
    repeat = log(1 / 4) + log(2 / 176) + 86 * log(174 / 176)
    assert baselines.repeat_last(train, test) == pytest.approx(-repeat)
    # note 0 was on twice and stayed on; note 1 was off twice and began once; the others stayed off twice
    chains = log(1 / 4) + log(2 / 4) + 86 * log(3 / 4)
    assert baselines.note_chains(train, test) == pytest.approx(-chains)


# -- playing


def test_silence_is_refused_by_name(tmp_path):
    silent = LambdaCell(
        lambda key, in_dim: (),
        lambda params, carry, x: (carry, jnp.full(data.KEYS, -99.0, jnp.float32)),
        lambda params, batch_shape: (),
    )
    corpus = data.Corpus("rests", None, 1, 0, *[(np.zeros((20, data.KEYS), bool),)] * 3)
    with pytest.raises(ValueError, match="gru plays 5 steps of silence"):
        sample.write(tmp_path / "a", corpus, "gru plays, from the opening", RNN(silent), (), steps=5, seed=0)


def test_playing_goes_on_from_the_opening_with_what_was_played_before():
    """A model whose note k + 1 is certain after note k climbs from wherever it is left."""

    def step(carry, x):
        climbed = jnp.roll(x, 1, axis=-1)
        return carry, jnp.where(climbed > 0, jnp.float32(50), jnp.float32(-50))

    cell: Cell = LambdaCell(lambda key, in_dim: (), lambda params, carry, x: step(carry, x), lambda params, shape: ())
    played = sample.play(RNN(cell), (), keys((10,), (20,)), 5, seed=0)
    assert [np.flatnonzero(chord).tolist() for chord in played] == [[10], [20], [21], [22], [23], [24], [25]]


# -- the command

TINY = [
    "--cells",
    "gru",
    "--hidden-dim",
    "4",
    "--batch-size",
    "2",
    "--crop",
    "8",
    "--seeds",
    "1",
    "--sample-steps",
    "40",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mat):
    pytest.importorskip("music21")
    run_dir = tmp_path_factory.mktemp("run") / "run"
    assert run.main(["--data", str(mat), "--steps", "3", "--run-dir", str(run_dir), *TINY]) == 0
    return run_dir


@pytest.mark.parametrize(
    ("name", "known", "quarter", "beside"),
    [
        ("Bach in music21", None, 1, "8.43 to 8.54 (JSB)"),
        ("Bach in music21", None, 4, None),  # a sixteenth's nats are fewer
        ("mine", None, 1, None),
        ("JSB Chorales", "JSB", 1, "8.43 to 8.54"),
        ("Nottingham", "Nottingham", 1, "3.46"),
    ],
)
def test_published_figures_stand_beside_what_they_can_be_compared_with(name, known, quarter, beside):
    corpus = data.Corpus(name, known, quarter, 0, (), (), ())
    assert run.published(corpus, "gru") == ({} if beside is None else {"test_nats": beside})
    assert run.published(corpus, "mingru") == {}


def test_run_writes_what_it_promises(trained):
    assert (trained / "sample-gru.mid").read_bytes()[:4] == b"MThd"
    assert (trained / "sample-gru.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["rows"][0]["published"] == {"test_nats": "8.43 to 8.54"}
    values = summary["rows"][0]["outcomes"][0]["values"]
    assert 0 < values["test_nats"] < 88
    assert 0 < values["valid_nats"] < 88


def test_resumed_run_trains_nothing_and_a_model_plays_once_more(trained, monkeypatch):
    metrics = (trained / "gru" / "0" / "metrics.jsonl").read_text()
    monkeypatch.setattr(run, "perform", lambda *arguments: None)
    assert run.main(["--resume", str(trained)]) == 0
    assert (trained / "gru" / "0" / "metrics.jsonl").read_text() == metrics
    monkeypatch.undo()
    assert run.main(["--sample", str(trained / "gru" / "0"), "--sample-seed", "1", "--sample-steps", "40"]) == 0
    assert (trained / "gru" / "0" / "sample-1.mid").is_file()


@pytest.mark.parametrize(
    ("field", "given"), [("crop", 0), ("transpose", -1), ("dropout", 1.0), ("learning_rate", 0.0), ("cells", "gated")]
)
def test_options_out_of_range_are_refused(field, given):
    with pytest.raises(ValueError, match="--" + field.replace("_", "-")):
        run.Config(**{field: given})


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    cases = (
        (["--data", str(tmp_path / "gone.mat")], "gone.mat"),
        (["--sample", str(tmp_path)], "has no model"),
    )
    for number, (args, message) in enumerate(cases):
        assert run.main([*args, "--run-dir", str(tmp_path / str(number))]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
