# SPDX-License-Identifier: Apache-2.0
"""Findings on both sides of their thresholds, and the command from a checkpoint to the page."""

import base64
import html.parser
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import seqjax
from experiments.adding.models import closed
from experiments.diagnose import data, findings, gates, run, subject
from experiments.diagnose.config import Config
from experiments.diagnose.measure import measure
from experiments.forecast import run as forecast
from experiments.selective_copy.task import task as selective_copy
from experiments.study import runner
from experiments.study.task import Variant
from seqjax import training
from seqjax.cells.gru import GRUCarry
from seqjax.cells.simple import SimpleParams

# -- findings: the level, and the number in the sentence


def levels(found):
    return [finding.level for finding in found]


@pytest.mark.parametrize(
    ("first", "level", "words", "ratio"),
    [
        (0, "good", "all 100 steps", "0.01 of"),
        (1, "note", "before step 1 of 100", "0.0099 of"),
        (50, "note", "before step 50", "0.0099 of"),
        (51, "problem", "before step 51", "0.0099 of"),
    ],
)
def test_gradients_vanish_before_the_first_step_that_has_one_percent(first, level, words, ratio):
    norms = np.where(np.arange(100) >= first, 0.02, 0.0198)
    norms[-1] = 2.0
    (found,) = findings.gradient("0 GRU(4)", norms, -1.0)
    assert (found.level, found.about) == (level, "0 GRU(4)")
    assert words in found.sentence
    assert ratio in found.number


@pytest.mark.parametrize(
    ("layer", "cure"),
    [
        ("0 LSTM(4)", "a larger forget bias"),
        ("0 GRU(4)", "a larger bias of the gate that keeps or LSTM"),
        ("0 MinGRU(4)", "a lower bias of gate z"),
        ("0 Simple(4)", "LSTM or GRU"),
        ("0 RGLRU(4)", "decays that start nearer to 1"),
        ("Custom()", "LSTM or a larger forget bias"),
    ],
)
def test_the_cure_is_named_by_cell_and_a_stride_only_where_there_can_be_one(layer, cure):
    norms = np.array([0.0, 0.0, 0.0, 1.0])
    (with_stride,), (without,) = (findings.gradient(layer, norms, -1.0, stride) for stride in (True, False))
    assert "before step 3 of 4" in without.sentence
    assert "a strided front end" in with_stride.sentence
    assert f"output; {cure}" in without.sentence


@pytest.mark.parametrize(
    ("largest", "exponent", "expected"),
    [(100.0, 9.0, "good"), (100.1, 9.0, "problem"), (1e9, 1.54, "problem"), (1e9, 1.53, "good"), (1e9, -0.2, "good")],
)
def test_gradients_explode_beyond_a_hundredfold_if_the_recurrence_does_it(largest, exponent, expected):
    """Three steps at 1.54 nats are a factor of 101; whatever more there is has come in on the way."""
    (found,) = findings.gradient("0 Simple(4)", np.array([largest, 0.1 * largest, 0.1 * largest, 1.0]), exponent)
    assert found.level == expected
    assert ("explode" in found.sentence) == (expected == "problem")
    if expected == "problem":
        assert f"{min(largest, np.exp(3 * exponent)):.3g} times" in found.sentence
        assert f"{largest:.3g} (limit 100)" in found.number


def test_the_last_output_may_not_see_the_last_steps():
    def found(*norms):
        (only,) = findings.gradient("0 GRU(4)", np.array(norms), -1.0)
        return only.level, only.sentence

    for backward in ((1.0, 0.0, 0.0, 0.0), (1.0, 0.009, 0.001, 0.0)):  # it sees the first step that this makes
        assert found(*backward) == ("good", "The gradient arrives at the first 1 of 4 steps, all that it comes from.")
    for strided in ((1.0, 50.0, 1.0, 0.0), (60.0, 50.0, 1.0, 0.0)):
        assert found(*strided) == ("good", "The gradient arrives at the first 3 of 4 steps, all that it comes from.")


def test_gradients_that_are_no_numbers_or_nothing():
    assert "not finite" in findings.gradient("a", np.array([np.nan, 1.0]), 0.0)[0].sentence
    assert "No gradient" in findings.gradient("a", np.zeros(3), 0.0)[0].sentence


def test_horizon_is_told_with_its_lag_or_that_there_is_none():
    within, beyond = findings.horizon(np.ones(72), 34, True), findings.horizon(np.ones(72), 72, False)
    assert "the last 34 of 72 inputs" in within.sentence
    assert "lag 34" in within.number
    assert "stays above 1%" in beyond.number
    assert (within.level, beyond.level) == ("note", "good")
    assert findings.horizon(np.zeros(72), 0, True).level == "problem"
    assert findings.horizon(np.full(72, np.nan), 0, False).level == "problem"


@pytest.mark.parametrize(
    ("layer", "name", "low", "high", "expected"),
    [
        ("0 LSTM(4)", "f", 0.51, 0.0, "forgets at once 51%"),
        ("0 LSTM(4)", "f", 0.5, 0.5, None),
        ("0 LSTM(4)", "f", 0.0, 0.51, "keeps everything 51%"),
        ("0 GRU(4)", "z", 0.0, 0.6, "keeps its state and takes in little 60%"),
        ("0 MinGRU(4)", "z", 0.6, 0.0, "keeps its state and takes in little 60%"),
        ("0 LSTM(4)", "i", 0.6, 0.0, "lets little in 60%"),
        ("0 MinGRU(4)", "z", 0.0, 0.6, "overwrites its state 60%"),
        ("0 MinLSTM(4)", "f", 0.0, 0.6, "takes in little 60%"),
        ("0 DiagonalLSTM(4)", "f", 0.6, 0.0, "overwrites its state 60%"),
        ("0 RGLRU(4)", "r", 0.6, 0.0, "takes in little 60%"),
        ("0 RGLRU(4)", "r", 0.0, 0.6, "decays allow 60%"),
        ("0 LSTM(4)", "g", 0.3, 0.21, "bound of its activation 51%"),
        ("0 LSTM(4)", "g", 0.3, 0.2, None),
        ("0 IndRNN(4)", "h", 0.9, 0.0, None),
        ("0 IndRNN(4)", "h", 0.91, 0.0, "bound of its activation 91%"),
    ],
)
def test_gates_at_a_bound_most_of_the_time(layer, name, low, high, expected):
    found = gates.gate(layer, name, low, high)
    assert len(found) == (expected is not None)
    if expected:
        assert expected in found[0].sentence
        assert f"{max(low, high, low + high if name == 'g' else 0):.3f}" in found[0].number
    remembers = expected and any(words in expected for words in ("keeps", "little", "decays allow"))
    assert levels(found) == ([] if expected is None else ["note" if remembers else "problem"])
    assert not (remembers and "would help" in found[0].sentence)


@pytest.mark.parametrize(
    ("value", "level", "words"),
    [
        (0.0101, "problem", "every 99 steps"),
        (0.0099, "good", "neither forgets nor amplifies"),
        (-0.0099, "good", "neither forgets nor amplifies"),
        (-0.02, "note", "every 50 steps"),
    ],
)
def test_exponents_amplify_or_forget_or_neither(value, level, words):
    (found,) = findings.exponent("a", np.full(2, value))
    assert (found.level, words in found.sentence) == (level, True)
    assert f"{value:+.4f}" in found.number


def test_exponents_that_are_no_numbers():
    (found,) = findings.exponent("a", np.array([-0.1, np.nan]))
    assert (found.level, found.number) == ("problem", "Lyapunov exponents: 1 of 2 are not numbers")


@pytest.mark.parametrize(("lost", "expected"), [(1, ["note", "note"]), (2, ["problem", "note"]), (3, ["problem"])])
def test_one_step_is_enough_to_forget_a_sequence(lost, expected):
    found = findings.exponent("a", np.where(np.arange(3) < lost, -np.inf, -0.5))
    assert levels(found) == expected
    assert f"In {lost} of 3 sequences there is a step" in found[0].sentence
    assert f"-inf in {lost} of 3" in found[0].number


@pytest.mark.parametrize(("exponents", "told"), [([-0.1, -0.2, -0.3], "-0.2000 ± 0.1000 "), ([-0.1], "-0.1000 nats")])
def test_the_spread_over_sequences_is_the_samples_and_one_sequence_has_none(exponents, told):
    (found,) = findings.exponent("a", np.array(exponents))
    assert told in found.number


def test_steps_that_all_shrink():
    assert findings.contraction("a", 1.0) == []
    (found,) = findings.contraction("a", 0.9999)
    assert "0.9999 " in found.number


@pytest.mark.parametrize(
    ("clipped", "level", "words"),
    [
        (510, "problem", "51%"),
        (500, "note", "50%"),
        (11, "note", "1%"),
        (10, "good", "outliers"),
        (1, "good", "outliers"),
        (0, "good", "No gradient was clipped"),
    ],
)
def test_clipping_is_the_rule_or_frequent_or_rare_or_was_not_needed(clipped, level, words):
    (found,) = findings.clipping(clipped, 0, 1000)
    assert (found.level, found.number) == (level, f"{clipped} of 1,000 steps clipped")
    assert words in found.sentence
    assert levels(findings.clipping(clipped, 1, 1000)) == [level, "problem"]


# -- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the forecasting experiment with one small model."""
    folder = tmp_path_factory.mktemp("forecast")
    values = 50 + 8 * np.sin(0.4 * np.arange(400)) + np.random.default_rng(0).normal(0, 0.5, 400)
    source = folder / "load.csv"
    source.write_text("hour,load\n" + "".join(f"{i},{value!r}\n" for i, value in enumerate(map(float, values))))
    arguments = ["--data", source, "--column", "load", "--run-dir", folder / "run", "--model", "conv-gru"]
    tiny = ["--window", "8", "--hidden-dim", "3", "--limit", "64", "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "pictures", lambda *args: None)
        assert forecast.main([*map(str, arguments), *tiny]) == 0
    return folder / "run"


class Page(html.parser.HTMLParser):
    """What a page loads, and its words."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_report_holds_findings_and_pictures_and_loads_nothing(trained, capsys):
    assert run.main(["--checkpoint", str(trained), "--sequences", "4"]) == 0
    said = capsys.readouterr().out
    page = Page((trained / "conv-gru" / "0" / "diagnosis.html").read_text())
    words = " ".join(page.words)
    assert len(page.sources) == 6
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        xml.etree.ElementTree.fromstring(base64.b64decode(data))
    for expected in ("1 GRU(3)", "2 GRU(3)", "the model", "training", "Gradient flow", "Lyapunov", "Conv1D(3, 4"):
        assert expected in words
    assert words.count("largest Lyapunov exponent") == 2
    assert f"The report is in {trained / 'conv-gru' / '0' / 'diagnosis.html'}" in said
    assert "on the last batch of its training: [8, 4, 1]; the loss is the run's own, mean_squared_error" in said


def test_forecasts_are_looked_into_on_other_data_in_the_units_of_training(trained, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("load\n" + "".join(f"{i}\n" for i in range(20)))
    found, folder = subject.load(Config(trained, data=str(other), column="load"))
    assert folder == trained / "conv-gru" / "0"
    xs, targets, *_ = found.seen.batch
    assert xs.shape == (8, 3, 1)  # 20 values are three windows of 8 + 10
    assert targets.shape == (3, 3, 10)
    assert found.seen.loss is training.mean_squared_error
    scaler = training.load(folder / "final").metadata["config"]["windows"]["scaler"]
    np.testing.assert_allclose(xs[:, 2, 0], (np.arange(2, 10) - scaler["mean"]) / scaler["std"], rtol=1e-6)
    np.testing.assert_allclose(
        targets[0, 0], (np.arange(4, 14) - scaler["mean"]) / scaler["std"], rtol=1e-6
    )  # behind x_3


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of `fit` alone, batch-major."""
    folder = tmp_path_factory.mktemp("other") / "run"
    model = seqjax.BatchMajor(seqjax.RNN(seqjax.Simple(2)))

    def make_batch(seed, t):
        return training.Batch(jnp.ones((3, 5, 1), jnp.float32), jnp.ones((3, 5, 2), jnp.float32))

    optimizer = optax.sgd(0.1)
    training.fit(model, make_batch, steps=1, loss=training.mean_squared_error, optimizer=optimizer, run_dir=folder)
    return folder


def test_any_run_of_fit_is_looked_into(other, tmp_path):
    found, folder = subject.load(Config(other))
    assert (folder, found.model, found.seen.batch.ys) == (other, seqjax.RNN(seqjax.Simple(2)), None)
    assert found.seen.batch.xs.shape == (5, 3, 1)
    assert "random" in found.seen.inputs
    assert "no targets" in found.seen.objective
    given = np.random.default_rng(0).normal(size=(9, 7, 1))
    np.save(tmp_path / "xs.npy", given)
    found, _ = subject.load(Config(other, data=str(tmp_path / "xs.npy"), sequences=4))
    np.testing.assert_array_equal(found.seen.batch.xs, given.astype(np.float32).swapaxes(0, 1)[:, :4])
    assert jax.tree.structure(found.params) == jax.tree.structure(
        jax.eval_shape(found.model.init, jax.random.key(0), jax.ShapeDtypeStruct((5, 3, 1), jnp.float32))
    )


def test_a_study_keeps_what_its_models_are_looked_into_with(tmp_path):
    """Ids, which could not be made up: the task's own last batch and loss are there."""
    task = selective_copy(length=6, recalled=2)
    variant = Variant("mingru", lambda seed: task, task.model(seqjax.MinGRU(4)), optax.sgd(0.1), steps=2)
    runner.run([variant], [3], tmp_path / "run", config={}, told=lambda text: None)
    found, folder = subject.load(Config(tmp_path / "run", sequences=5))
    expected = task.make_batch(3, 1)
    np.testing.assert_array_equal(found.seen.batch.xs, expected.xs[:, :5])
    np.testing.assert_array_equal(found.seen.batch.ys, expected.ys[:, :5])
    assert found.seen.loss == task.loss
    assert found.name == "mingru of run"
    assert run.main(["--checkpoint", str(tmp_path / "run"), "--sequences", "2"]) == 0
    words = " ".join(Page((folder / "diagnosis.html").read_text()).words)
    own = "the run's own, AtLastStep(cross_entropy, steps=2)"
    for expected in ("last batch of its training", own, "moves with the vector of an id"):
        assert expected in words


# -- what is measured


def subject_of(model, params, batch, loss=data.mean_square):
    return subject.Subject("", model, params, 0, data.Seen("", batch, loss, ""), ())


LAYER = seqjax.RNN(seqjax.GRU(3))
MODEL = seqjax.Serial(LAYER, seqjax.Dense(2))


def drawn(T, B, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(T, B, 1)).astype(np.float32), rng.normal(size=(T, B, 2)).astype(np.float32)


def test_the_gradient_is_that_of_the_runs_own_loss_and_of_what_the_last_output_has_in_it():
    """By hand: the states' gradient is that of the loss in the outputs, pulled back through the layer."""
    xs, ys = drawn(7, 4)
    params = MODEL.init(jax.random.key(0), xs)
    weights, (kernel, bias) = params
    (layer,) = measure(subject_of(MODEL, params, training.Batch(xs, ys), training.huber)).layers
    _, hs = LAYER.apply(weights, LAYER.initial_carry(weights, (4,)), xs)
    own = jax.grad(lambda hs: training.huber(hs @ kernel + bias, ys))(hs)

    def after(h, t, pull):  # the loss as a function of the state after step t
        return jnp.sum(pull[t] * h) + jnp.sum(pull[t + 1 :] * LAYER.apply(weights, GRUCarry(h), xs[t + 1 :])[1])

    for norms, pull in ((layer.flow_all, own), (layer.flow_last, own.at[:-1].set(0))):
        expected = [jnp.linalg.norm(jax.grad(after)(hs[t], t, pull)) for t in range(6)]
        np.testing.assert_allclose(norms[:-1], expected, rtol=1e-4)


STACKED = seqjax.Serial(*[seqjax.Bidirectional(seqjax.RNN(seqjax.GRU(6)))] * 2, seqjax.Dense(2))


def test_a_layer_that_forgets_explodes_in_neither_direction():
    """The layer above forgets, so a backward layer gets next to no gradient at its own last steps."""
    xs, ys = drawn(100, 4)
    seen = measure(subject_of(STACKED, STACKED.init(jax.random.key(0), xs), training.Batch(xs, ys), training.huber))
    backward = seen.layers[1]
    assert backward.flow_last[0] > 1e9 * backward.flow_last[-1]
    assert not any("explode" in found.sentence for found in findings.findings(seen))


@pytest.mark.parametrize("place", [0, 1])
def test_a_recurrence_that_explodes_does_so_in_both_directions(place):
    """Weights of 4 on small inputs; what is above passes all gradients."""
    both = seqjax.Bidirectional(seqjax.RNN(seqjax.Simple(32)))
    model, xs = seqjax.Serial(both, seqjax.RNN(seqjax.LRU(8)), seqjax.Dense(2)), 0.1 * drawn(100, 4)[0]
    pair, *above = model.init(jax.random.key(0), xs)
    pair = [weights._replace(w_rec=(4 if i == place else 1) * weights.w_rec) for i, weights in enumerate(pair)]
    seen = measure(subject_of(model, (tuple(pair), *above), training.Batch(xs, None)))
    exploded = [found.about for found in findings.findings(seen) if "explode" in found.sentence]
    assert exploded == [f"0.{place} {('forward', 'backward')[place]} Simple(32)"]


def test_layers_say_in_which_direction_they_go():
    inner = seqjax.Bidirectional(seqjax.RNN(seqjax.GRU(3)), merge="sum")
    model = seqjax.Serial(LAYER, seqjax.Bidirectional(seqjax.Serial(seqjax.Residual(inner))))
    xs, _ = drawn(3, 2)
    seen = measure(subject_of(model, model.init(jax.random.key(0), xs), training.Batch(xs, None)))
    directions = ["1.0.0.0 forward", "1.0.0.1 backward", "1.1.0.0 backward", "1.1.0.1 forward"]
    assert [layer.name for layer in seen.layers] == ["0 GRU(3)", *(f"{words} GRU(3)" for words in directions)]


def test_a_stride_is_a_cure_where_there_is_none_and_not_every_step_has_a_target():
    xs, ys = drawn(8, 2)
    strided = seqjax.Serial(seqjax.Conv1D(3, 2, stride=2), LAYER)

    def could_be(model, ys):
        params = model.init(jax.random.key(0), xs)
        return measure(subject_of(model, params, training.Batch(xs, ys), lambda ys, *_: jnp.sum(ys))).stride

    assert could_be(MODEL, ys[-1:])
    assert could_be(MODEL, None)
    assert not could_be(MODEL, ys)
    assert not could_be(strided, ys[-1:])


def test_a_gate_that_keeps_is_no_problem_where_the_gradient_arrives():
    model = seqjax.Serial(seqjax.RNN(seqjax.MinGRU(8, bias_init=closed(200))), seqjax.Dense(2))
    xs, ys = drawn(200, 4)
    seen = measure(subject_of(model, model.init(jax.random.key(0), xs), training.Batch(xs, ys[-1:]), last_step_alone))
    found = findings.findings(seen)
    assert "problem" not in levels(found)
    assert any("gate z keeps its state" in each.sentence.lower() for each in found)
    assert not any("chao" in each.sentence for each in found)  # it is linear in its state


def last_step_alone(ys, targets, mask=None):
    return training.mean_squared_error(ys[-1:], targets)


def test_padding_changes_nothing_and_sequences_end_together():
    xs, ys = drawn(9, 2)
    params = MODEL.init(jax.random.key(0), xs)
    mask = seqjax.mask_from_lengths(jnp.array([4, 7]), 9)
    padded = measure(subject_of(MODEL, params, training.Batch(xs, ys, mask), training.huber))
    alone = [
        measure(subject_of(MODEL, params, training.Batch(xs[:n, i : i + 1], ys[:n, i : i + 1]), training.huber))
        for i, n in enumerate((4, 7))
    ]
    (layer,), (short, long) = padded.layers, (found.layers[0] for found in alone)
    for name, lengths in (("flow_last", 11), ("flow_all", 11)):
        a, b = getattr(short, name) * 4 / lengths, getattr(long, name) * 7 / lengths  # the loss is a mean over steps
        expected = np.hypot(np.concatenate([np.zeros(3), a]), b)
        np.testing.assert_allclose(getattr(layer, name), expected, rtol=1e-4)
    a, b = (found.profile for found in alone)
    np.testing.assert_allclose(padded.profile[:4], np.sqrt((a**2 + b[:4] ** 2) / 2), rtol=1e-4)
    np.testing.assert_allclose(padded.profile[4:], b[4:], rtol=1e-4)
    assert layer.stretch == pytest.approx(max(short.stretch, long.stretch), rel=1e-5)
    assert layer.spectrum_steps.tolist() == list(range(7))
    assert np.isfinite(layer.singular).all()


def test_memory_of_ids_is_that_of_what_they_are_embedded_as():
    embed, rest = seqjax.Embed(5, 1), MODEL
    model, ids = seqjax.Serial(embed, *rest.layers), np.array([[1, 2], [3, 4], [0, 1], [2, 2]])
    params = model.init(jax.random.key(0), ids)
    _, xs = embed.apply(params[0], (), ids)
    found = measure(subject_of(model, params, training.Batch(ids, None)))
    expected = measure(subject_of(rest, params[1:], training.Batch(xs, None)))
    np.testing.assert_allclose(found.profile, expected.profile, rtol=1e-5)


def test_what_comes_before_a_reset_is_not_heard():
    xs, ys = drawn(6, 2)
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    params = MODEL.init(jax.random.key(0), xs)
    found = measure(subject_of(MODEL, params, training.Batch(xs, ys, resets=resets), training.huber))
    assert (found.profile[:3] > 0).all()
    assert (found.profile[3:] == 0).all()
    assert (found.layers[0].flow_last > 0).tolist() == [False] * 3 + [True] * 3


def test_one_sequence_that_is_stretched_is_enough():
    """h_t = tanh(1.5 h_{t-1} + x_t): 1.5 at rest, nearly 0 where inputs are large, as in most sequences here."""
    weights = SimpleParams(*(jnp.asarray(a, jnp.float32) for a in (np.ones((1, 2)), 1.5 * np.eye(2), np.zeros(2))))
    xs = np.zeros((20, 5, 1), np.float32)
    xs[:, 1:] = 3
    (layer,) = measure(subject_of(seqjax.RNN(seqjax.Simple(2)), weights, training.Batch(xs, None))).layers
    assert layer.stretch == pytest.approx(1.5)
    assert layer.singular[1:].max() < 0.1


# -- what is refused


def test_bad_input_is_an_error_of_one_line(other, capsys):
    assert run.main(["--checkpoint", str(other), "--data", "nowhere.npy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "nowhere.npy" in line
    with pytest.raises(ValueError, match="--sequences must be at least 1"):
        Config(other, sequences=0)


def test_folder_without_a_checkpoint_or_with_several(tmp_path, trained, other, capsys):
    assert run.main(["--checkpoint", str(tmp_path)]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    for name, target in (("a", trained / "conv-gru"), ("b", other)):
        (tmp_path / name).symlink_to(target)
    assert run.main(["--checkpoint", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "a") in error
    assert str(tmp_path / "b") in error


def test_data_of_another_shape_is_refused(other, tmp_path, capsys):
    np.save(tmp_path / "xs.npy", np.zeros((9, 7, 2)))
    assert run.main(["--checkpoint", str(other), "--data", str(tmp_path / "xs.npy")]) == 2
    assert "[9, 7, 2]" in capsys.readouterr().err.replace("(", "[").replace(")", "]")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: np.savez(file, xs=np.ones((9, 7, 1))), "is not an .npy file"),
        (lambda file: file.write(b""), "is not an .npy file"),
        (lambda file: np.save(file, np.array([[["a"]]], object)), "is not an .npy file"),
        (lambda file: np.save(file, np.ones((0, 7, 1))), r"\[0, 7, 1\], which is empty"),
        (lambda file: np.save(file, np.ones((9, 0, 1))), r"\[9, 0, 1\], which is empty"),
        (lambda file: np.save(file, np.ones((9, 7, 1), complex)), "holds complex128, which the model's float32 cannot"),
        (lambda file: np.save(file, np.full((9, 7, 1), "a")), "holds <U1"),
        (lambda file: np.save(file, np.full((9, 7, 1), np.nan)), "not finite"),
        (lambda file: np.save(file, np.full((9, 7, 1), 1e300)), "not finite as float32"),
    ],
)
def test_arrays_that_are_no_inputs_are_refused_by_their_path(other, tmp_path, write, message):
    path = tmp_path / "xs.npy"
    with path.open("wb") as file:
        write(file)
    with pytest.raises(ValueError, match=rf"{path} .*{message}"):
        subject.load(Config(other, data=str(path)))


@pytest.mark.parametrize("given", [{"column": "load"}, {"station": "miami"}, {"station": "greensboro"}])
def test_what_names_a_series_is_refused_where_there_is_none(trained, other, given):
    with pytest.raises(ValueError, match="--column and --station go with --data, which is not given"):
        subject.load(Config(trained, **given))
    with pytest.raises(ValueError, match="--column and --station are of series, which only models of forecast take"):
        subject.load(Config(other, data="xs.npy", **given))


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(other, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "measure", lambda *args: pytest.fail("measured"))
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path, tmp_path / "file" / "diagnosis.html"):
        assert run.main(["--checkpoint", str(other), "--out", str(out)]) == 2
        assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_report_that_is_not_made_leaves_no_file(other, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", interrupted)
    assert run.main(["--checkpoint", str(other), "--out", str(tmp_path / "new" / "diagnosis.html")]) == 130
    assert list((tmp_path / "new").iterdir()) == []


@pytest.fixture(scope="module")
def of_ids(tmp_path_factory):
    """A run of `fit` on ten ids."""
    folder = tmp_path_factory.mktemp("ids") / "run"
    model = seqjax.Serial(seqjax.Embed(10, 2), seqjax.RNN(seqjax.Simple(2)))

    def make_batch(seed, t):
        return training.Batch(jnp.ones((5, 3), jnp.int32), jnp.ones((5, 3, 2), jnp.float32))

    optimizer = optax.sgd(0.1)
    training.fit(model, make_batch, steps=1, loss=training.mean_squared_error, optimizer=optimizer, run_dir=folder)
    return folder


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((4, 2), 1.9), "holds float64, which the model's int32 cannot"),
        (np.full((4, 2), -1), "ids from -1 to -1; the model takes those from 0 to 9"),
        (np.full((4, 2), 10), "ids from 10 to 10; the model takes those from 0 to 9"),
        (np.full((4, 2), 2**32), "the model takes those from 0 to 9"),
    ],
)
def test_ids_that_there_are_not_are_refused(of_ids, tmp_path, ids, message):
    np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(ValueError, match=message):
        subject.load(Config(of_ids, data=str(tmp_path / "ids.npy")))


def test_ids_of_any_integer_type_are_taken(of_ids, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(10, dtype=np.uint8).reshape(5, 2))
    found, _ = subject.load(Config(of_ids, data=str(tmp_path / "ids.npy")))
    np.testing.assert_array_equal(found.seen.batch.xs, np.arange(10, dtype=np.int32).reshape(5, 2))
    assert found.seen.batch.xs.dtype == np.int32
