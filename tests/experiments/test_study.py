# SPDX-License-Identifier: Apache-2.0
"""What the experiments share: runs that go on where they stopped, spreads, divergence as a result, commands."""

import dataclasses
import doctest
import functools
import json
import math
import pathlib
import statistics
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

import seqjax
from experiments.spikes.likelihood import Surprise
from experiments.study import conduct, files, kept, plots, report, runner, style, typed
from experiments.study.cells import CELLS, cells
from experiments.study.command import Command
from experiments.study.runner import Outcome, Row
from experiments.study.task import Task, Variant
from experiments.watch import judge as watch
from seqjax import training


class Killed(BaseException):
    """Ends a run as a signal would."""


MODEL = seqjax.Dense(1)


def make_batch(seed, step):
    xs = np.random.default_rng((seed, step)).normal(size=(3, 4, 1)).astype(np.float32)
    return training.Batch(xs, 2 * xs)


def evaluator(model):
    step = training.make_eval_step(model, {"mse": training.mean_squared_error})
    return lambda params: training.evaluate(step, params, [make_batch(99, 0)])


TASK = Task(
    "doubling",
    make_batch,
    training.mean_squared_error,
    lambda cell: seqjax.Serial(seqjax.RNN(cell), seqjax.Dense(1)),
    evaluator,
    "mse",
    baselines={"zero": 4.0},
)


def variant(name, rate, steps=6, task=TASK, **options):
    return Variant(name, lambda replicate: task, MODEL, optax.sgd(rate), steps, **options)


VARIANTS = [variant("slow", 0.01), variant("fast", 0.1)]


def measures(rows):
    return {row.variant.name: row.values("mse") for row in rows}


def run(run_dir, variants=VARIANTS, replicates=(0, 1), checkpoint_every=3):
    return runner.run(
        variants,
        replicates,
        run_dir,
        config={},
        evaluate_every=2,
        checkpoint_every=checkpoint_every,
        told=lambda text: None,
    )


def test_a_study_that_was_killed_ends_as_one_that_was_not(tmp_path):
    expected = run(tmp_path / "whole")
    calls = []

    def dies_once(seed, step):
        calls.append((seed, step))
        if len(calls) == 17:  # in the second replicate
            raise Killed
        return make_batch(seed, step)

    dying = dataclasses.replace(TASK, make_batch=dies_once)
    variants = [variant("slow", 0.01, task=dying), variant("fast", 0.1, task=dying)]
    with pytest.raises(Killed):
        run(tmp_path / "killed", variants)
    finished = sorted(
        path.parent.relative_to(tmp_path / "killed").as_posix() for path in tmp_path.glob("killed/*/*/result.json")
    )
    assert finished == ["fast/0", "slow/0"]
    again = run(tmp_path / "killed", variants)
    assert measures(again) == measures(expected)
    for name in ("slow", "fast"):
        for replicate in "01":
            lines = [
                (tmp_path / study / name / replicate / "metrics.jsonl").read_text() for study in ("whole", "killed")
            ]
            assert lines[0] == lines[1]


def test_what_is_finished_is_not_trained_again_and_more_steps_go_on_from_it(tmp_path):
    seen = []

    def watched(seed, step):
        seen.append((seed, step))
        return make_batch(seed, step)

    task = dataclasses.replace(TASK, make_batch=watched)
    run(tmp_path, [variant("a", 0.1, task=task)], (3,))
    seen.clear()
    run(tmp_path, [variant("a", 0.1, task=task)], (3,))
    assert seen == []
    (row,) = run(tmp_path, [variant("a", 0.1, steps=8, task=task)], (3,))
    assert {step for _, step in seen} == {0, 6, 7}  # the first batch tells the shapes
    assert {seed for seed, _ in seen} == {3}
    assert row.outcomes[0].steps == 8


@pytest.mark.parametrize("rate", [0.1, 1e30], ids=["trained", "diverged"])
def test_the_batch_of_the_last_step_is_kept_with_the_loss(tmp_path, rate):
    (row,) = run(tmp_path, [variant("a", rate, steps=40)], (3,))
    assert row.outcomes[0].diverged == (rate > 1)
    batch, loss = kept.read(tmp_path / "a" / "3")
    expected = make_batch(3, row.outcomes[0].steps - 1)
    np.testing.assert_array_equal(batch.xs, expected.xs)
    np.testing.assert_array_equal(batch.ys, expected.ys)
    assert (batch.mask, batch.resets, loss) == (None, None, training.mean_squared_error)


@pytest.mark.parametrize(
    "loss",
    [
        training.cross_entropy,
        training.AtLastStep(training.huber),
        training.AtLastStep(training.cross_entropy, 3),
        Surprise(-0.1),
        watch.last_step,
    ],
)
def test_losses_are_kept_by_the_names_of_their_parts(tmp_path, loss):
    xs, flags = np.ones((3, 2, 1), np.float32), np.ones((3, 2), bool)
    kept.keep(tmp_path, training.Batch(xs, xs[:1], mask=flags, resets=~flags), loss)
    batch, found = kept.read(tmp_path)
    assert found == loss
    np.testing.assert_array_equal(batch.mask, flags)
    np.testing.assert_array_equal(batch.resets, ~flags)


def test_a_loss_without_a_name_is_not_kept(tmp_path):
    def inside(predictions, targets, mask):
        return jnp.zeros(())

    for loss in (lambda *args: 0.0, inside, functools.partial(training.huber, mask=None), math.fsum):
        kept.keep(tmp_path, make_batch(0, 0), loss)
        assert kept.read(tmp_path).loss is None


def test_what_is_kept_and_cannot_be_read_is_named(tmp_path):
    assert kept.read(tmp_path) is None
    kept.keep(tmp_path, make_batch(0, 0), training.huber)
    for content in ({"parts": ["os:system"], "loss": {"function": "system"}}, {"parts": ["seqjax.gone:huber"]}, 7):
        files.write_json(tmp_path / kept.LOSS, content)
        with pytest.raises(ValueError, match=r"loss\.json is damaged"):
            kept.read(tmp_path)
    for write in (lambda file: np.savez(file, xs=1), lambda file: file.write(b"PK"), lambda file: np.save(file, 1)):
        with (tmp_path / kept.BATCH).open("wb") as file:
            write(file)
        with pytest.raises(ValueError, match=r"batch\.npz is damaged"):
            kept.read(tmp_path)


def test_sgd_on_one_weight_is_what_the_measure_says(tmp_path):
    """y = w x + b by hand, in NumPy."""
    (row,) = run(tmp_path, [variant("hand", 0.1, steps=2)], (0,))
    params = training.load(tmp_path / "hand/0", step=0).params
    w, b = (np.float64(np.asarray(leaf).ravel()[0]) for leaf in params)
    for step in range(2):
        xs = make_batch(0, step).xs.astype(np.float64)
        error = w * xs + b - 2 * xs
        w, b = w - 0.1 * 2 * np.mean(error * xs), b - 0.1 * 2 * np.mean(error)
    xs = make_batch(99, 0).xs.astype(np.float64)
    np.testing.assert_allclose(row.mean("mse"), np.mean((w * xs + b - 2 * xs) ** 2), rtol=1e-5)
    assert row.outcomes[0].parameters == 2


def test_a_run_that_diverges_is_a_result_and_others_go_on(tmp_path):
    rows = run(tmp_path, [variant("wild", 1e30, steps=60), variant("tame", 0.1, steps=60)], (0,), checkpoint_every=None)
    wild, tame = rows
    assert wild.outcomes[0].diverged
    assert wild.outcomes[0].skipped >= 20
    assert math.isnan(wild.mean("mse"))
    assert not tame.outcomes[0].diverged
    assert runner.finished(tmp_path / "wild/0", 60).diverged
    report.write(tmp_path / "summary.json", TASK, rows, {})
    assert json.loads((tmp_path / "summary.json").read_text())["rows"][0]["mean"] is None


def test_params_are_finished_before_they_are_judged_and_kept_so(tmp_path):
    def finish(model):
        return lambda params: jax.tree.map(jnp.zeros_like, params)

    (row,) = run(tmp_path, [variant("a", 0.1, task=dataclasses.replace(TASK, finish=finish))], (0,))
    assert row.mean("mse") == pytest.approx(np.mean(np.square(make_batch(99, 0).ys)), rel=1e-6)
    before, after = (training.load(path).params for path in (tmp_path / "a/0", tmp_path / "a/0" / runner.FINAL))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(before))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after))


@dataclasses.dataclass(frozen=True, repr=False)
class Scale(seqjax.base.Layer):
    """A user's own layer."""

    def init(self, key, xs):
        return jnp.ones((), jnp.float32)

    def apply(self, params, carry, xs, *, mask=None, resets=None, key=None):
        return carry, params * xs


def test_a_layer_class_of_the_users_own_is_trained(tmp_path):
    own = dataclasses.replace(variant("own", 0.1), model=Scale(), types=(Scale,))
    (row,) = run(tmp_path, [own], (0,))
    assert row.outcomes[0].parameters == 1
    assert row.mean("mse") < 1.0  # the first step's is about 1: y = 2x, and the scale begins at 1


def outcome(value, **changes):
    return Outcome(
        **(
            {
                "replicate": 0,
                "values": {"mse": value},
                "steps": 6,
                "parameters": 2,
                "seconds": 1.0,
                "milliseconds": None,
                "skipped": 0,
                "diverged": False,
            }
            | changes
        )
    )


def test_mean_and_spread_are_those_of_the_runs_that_did_not_diverge():
    row = Row(VARIANTS[0], [outcome(1.0), outcome(2.0), outcome(4.0), outcome(0.0, values={}, diverged=True)])
    assert row.mean("mse") == pytest.approx(7 / 3)
    assert row.spread("mse") == pytest.approx(statistics.stdev([1.0, 2.0, 4.0]))
    assert report.mean_and_spread(row, "mse") == "2.333 ±1.5"
    assert math.isnan(Row(VARIANTS[0], [outcome(1.0)]).spread("mse"))


def test_a_run_whose_measure_is_no_number_counts_as_diverged():
    row = Row(VARIANTS[0], [outcome(1.0), outcome(math.nan), outcome(2.0)])
    assert report.mean_and_spread(row, "mse") == "1.5 ±0.71"
    (runs,) = (column for column in report.table(TASK, [row]).columns if column.header == "runs")
    assert list(runs.cells)[-1] == "3, 1 diverged"


def test_a_row_that_diverged_in_part_is_not_the_best():
    lucky = Row(VARIANTS[0], [outcome(1.0), outcome(0.0, values={}, diverged=True)])
    steady = Row(VARIANTS[1], [outcome(2.0), outcome(2.0)])
    assert report.best(TASK, [lucky, steady]) is steady
    assert report.best(TASK, [lucky, lucky]) is None
    assert report.best(TASK, [steady]) is None


def test_a_run_that_diverged_shortens_no_curve(tmp_path):
    judged = {0: [(2, 3.0), (4, 2.0), (6, 1.0)], 1: [(2, 5.0), (4, 9.0)], 2: [(2, 4.0), (4, 4.0), (6, 3.0)], 3: []}
    for replicate, lines in judged.items():
        folder = tmp_path / "slow" / str(replicate)
        folder.mkdir(parents=True)
        text = [json.dumps({"step": step, "mse": value}) + "\n" for step, value in lines]
        (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n' + "".join(text))
    row = Row(VARIANTS[0], [outcome(1.0, replicate=r, values={"mse": 1.0}, diverged=r in (1, 3)) for r in range(4)])
    steps, values, given_up = plots.curves("mse", row, tmp_path)
    assert (steps, values.tolist(), given_up) == ([2, 4, 6], [[3, 2, 1], [4, 4, 3]], [{2: 5.0, 4: 9.0}])
    all_diverged = Row(VARIANTS[0], [row.outcomes[1]])
    steps, values, given_up = plots.curves("mse", all_diverged, tmp_path)
    assert (steps, values.size, given_up) == ([], 0, [{2: 5.0, 4: 9.0}])
    plots.learning(tmp_path / "learning.png", TASK, [row, all_diverged], tmp_path)
    plots.learning(tmp_path / "in-units.png", TASK, [row], tmp_path, unit="pass", steps_in={"slow": 2})
    plots.final(tmp_path / "final.png", TASK, [row, all_diverged])
    for name in ("learning", "in-units", "final"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_one_evaluation_counts_in_whole_steps(tmp_path, monkeypatch):
    (tmp_path / "slow" / "0").mkdir(parents=True)
    (tmp_path / "slow" / "0" / "metrics.jsonl").write_text(json.dumps({"step": 8, "mse": 1.0}) + "\n")
    drawn = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, path: drawn.append(figure))
    plots.learning(tmp_path / "learning.png", TASK, [Row(VARIANTS[0], [outcome(1.0)])], tmp_path)
    low, high = drawn[0].axes[0].get_xlim()
    assert [tick for tick in drawn[0].axes[0].get_xticks() if low <= tick <= high] == [8]


def test_every_line_of_a_plot_can_be_told_from_the_others():
    drawn = [tuple(style.line(index).values()) for index in range(20)]
    assert len(set(drawn)) == 20


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    def resumed(data):
        rows = [variant("a", 0.1, task=dataclasses.replace(TASK, data=data))]
        with rich.console.Console(file=(tmp_path / "out").open("w")) as console:
            conduct.conduct(console, rows, (0,), tmp_path / "run", config={})

    (tmp_path / "run").mkdir()
    resumed({"sha256": "1"})
    resumed({"sha256": "1"})
    with pytest.raises(ValueError, match="have changed since it was started"):
        resumed({"sha256": "2"})


@pytest.mark.parametrize(("better", "best"), [("lower", "slow"), ("higher", "fast")])
def test_the_best_row_is_bold_and_baselines_are_there(better, best):
    rows = [Row(VARIANTS[0], [outcome(1.0)]), Row(VARIANTS[1], [outcome(2.0)])]
    table = report.table(dataclasses.replace(TASK, better=better), rows)
    names = list(table.columns[0].cells)
    assert names == ["zero", "slow", "fast"]
    assert [name for name, line in zip(names, table.rows, strict=True) if line.style == "bold"] == [best]


def test_a_report_comes_after_an_interruption_too(tmp_path):
    def interrupted(seed, step):
        if seed == 1:
            raise KeyboardInterrupt
        return make_batch(seed, step)

    task = dataclasses.replace(TASK, make_batch=interrupted)
    with rich.console.Console(file=(tmp_path / "out").open("w")) as console, pytest.raises(KeyboardInterrupt):
        conduct.conduct(
            console, [variant("a", 0.1, task=task)], (0, 1), tmp_path, config={"of": "it"}, evaluate_every=2
        )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"] == {"of": "it"}
    assert [len(row["outcomes"]) for row in summary["rows"]] == [1]
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_that_differ_by_fold_are_averaged_over_those_that_are_finished(tmp_path):
    def fold(replicate):
        return dataclasses.replace(TASK, baselines={"zero": 4.0 + replicate}, also={"loss": {"zero": 2.0 * replicate}})

    row = dataclasses.replace(VARIANTS[0], task=fold)
    with rich.console.Console(file=(tmp_path / "out").open("w")) as console:
        conduct.conduct(console, [row], (1, 2), tmp_path / "run", config={})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["baselines"], summary["also"]) == ({"zero": 5.5}, {"loss": {"zero": 3.0}})


@pytest.mark.parametrize(
    ("names", "message"), [("gru,elman", "elman.*choose from"), ("gru,gru", "twice"), ("", "choose")]
)
def test_cells_that_there_are_not_are_refused_by_name(names, message):
    with pytest.raises(ValueError, match=message):
        cells(names, 4)


def test_every_named_cell_has_the_units_that_are_asked_for():
    assert {cell.hidden_dim for cell in cells(list(CELLS), 6).values()} == {6}


@dataclasses.dataclass(frozen=True)
class Config:
    preset: Literal["default", "smoke"] = "default"
    steps: int = 10
    rate: float = 0.1
    show: str | None = None
    run_dir: pathlib.Path | None = None
    resume: pathlib.Path | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}.")


PRESETS = {"default": Config(), "smoke": Config(preset="smoke", steps=2)}
COMMAND = Command("toy", PRESETS, extendable=("steps",), actions=("show",))


def nothing(config, run_dir):
    pass


def test_a_preset_gives_the_defaults_and_flags_change_them():
    assert COMMAND.parse([]) == Config()
    assert COMMAND.parse(["--preset", "smoke"]).steps == 2
    assert COMMAND.parse(["--preset", "smoke", "--steps", "3"]).steps == 3


def test_a_resumed_run_keeps_its_configuration_and_can_become_longer(tmp_path, capsys):
    where = tmp_path / "run"
    seen = []
    assert COMMAND.main(["--run-dir", str(where), "--rate", "0.5"], lambda config, run_dir: seen.append(config)) == 0
    assert COMMAND.main(["--resume", str(where), "--steps", "20"], lambda config, run_dir: seen.append(config)) == 0
    assert [(config.steps, config.rate) for config in seen] == [(10, 0.5), (20, 0.5)]
    for flags, message in ((["--rate", "0.1"], "leave out --rate"), (["--steps", "5"], "only become longer")):
        assert COMMAND.main(["--resume", str(where), *flags], nothing) == 2
        assert message in capsys.readouterr().err


def test_bad_input_is_said_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert COMMAND.main(["--resume", "nowhere"], nothing) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: nowhere is not a run of scripts/run toy: it has no readable config.json."
    ]
    with pytest.raises(SystemExit) as left:
        COMMAND.main(["--steps", "0"], nothing)
    assert left.value.code == 2
    assert "at least 1, got 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_over(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert COMMAND.main(["--run-dir", str(tmp_path)], nothing) == 2
    assert "--resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path):
    def refuses(config, run_dir):
        raise ValueError("no such data")

    def refuses_later(config, run_dir):
        (run_dir / "metrics.jsonl").write_text("")
        raise ValueError("a damaged checkpoint")

    flags = ["--run-dir", str(tmp_path / "run")]
    assert COMMAND.main(flags, refuses) == 2
    assert list(tmp_path.iterdir()) == []
    assert COMMAND.main(flags, refuses_later) == 2
    assert (tmp_path / "run/config.json").exists()


def test_an_interruption_says_how_to_go_on(tmp_path, capsys):
    def interrupted(config, run_dir):
        raise KeyboardInterrupt

    assert COMMAND.main(["--run-dir", str(tmp_path / "run")], interrupted) == 130
    assert f"scripts/run toy --resume {tmp_path / 'run'}" in capsys.readouterr().err


def test_an_action_opens_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert COMMAND.main(["--show", "it"], nothing, act=lambda config: config.show == "it") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '""',
        "null",
        "{",
        '{"steps": null}',
        '{"steps": 1.5}',
        '{"steps": true}',
        '{"rate": "x"}',
        '{"preset": "a"}',
    ],
)
def test_a_configuration_that_is_none_is_refused_by_its_path(tmp_path, content, capsys):
    (tmp_path / "config.json").write_text(content)
    assert COMMAND.main(["--resume", str(tmp_path)], nothing) == 2
    assert f"{tmp_path / 'config.json'} is not the configuration of a run: " in capsys.readouterr().err


def test_a_configuration_of_another_experiment_is_refused_by_its_fields(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 3, "length": 5}')
    with pytest.raises(ValueError, match="unknown fields: length; it is another experiment's"):
        COMMAND.load(tmp_path)


def test_a_run_of_another_experiment_is_refused_by_its_name(tmp_path, capsys):
    """Though it has no other fields."""
    assert Command("other", COMMAND.presets).main(["--run-dir", str(tmp_path / "run")], nothing) == 0
    assert COMMAND.main(["--resume", str(tmp_path / "run")], nothing) == 2
    assert "is of a run of scripts/run other, not of scripts/run toy" in capsys.readouterr().err


def test_a_mistake_in_a_program_shows_where_it_is(tmp_path):
    def mistaken(config, run_dir):
        np.ones(2) @ np.ones(3)

    with pytest.raises(ValueError, match="size 3 is different from 2"):
        COMMAND.main(["--run-dir", str(tmp_path / "run")], mistaken)


def test_a_number_that_leaves_the_machines_is_an_error_of_one_line(tmp_path, capsys):
    def overflows(config, run_dir):
        raise OverflowError("Python int too large to convert to C long")

    assert COMMAND.main(["--run-dir", str(tmp_path / "run")], overflows) == 2
    assert capsys.readouterr().err == "error: Python int too large to convert to C long\n"


def test_a_whole_number_is_a_float_too(tmp_path):
    (tmp_path / "config.json").write_text('{"rate": 1}')
    assert COMMAND.load(tmp_path) == Config(rate=1)


def test_a_configuration_is_replaced_as_a_whole_and_only_where_it_changes(tmp_path):
    where = tmp_path / "run"
    kept = where / "config.json"
    assert COMMAND.main(["--run-dir", str(where)], nothing) == 0
    assert kept.read_text() == json.dumps({"experiment": "toy", **COMMAND.to_json(Config())}, indent=2) + "\n"
    first = kept.stat()
    assert COMMAND.main(["--resume", str(where)], nothing) == 0
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    with kept.open() as before:  # what is replaced stays whole for who has opened it
        assert COMMAND.main(["--resume", str(where), "--steps", "20"], nothing) == 0
        assert json.load(before)["steps"] == 10
    assert json.loads(kept.read_text())["steps"] == 20
    assert [path.name for path in where.iterdir()] == ["config.json"]


def test_examples_in_docstrings_hold():
    result = doctest.testmod(typed)
    assert result.attempted > 0
    assert result.failed == 0


RESULT = json.dumps({"steps": 6, "outcome": dataclasses.asdict(outcome(1.0)) | {"parameters": "many"}})


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"steps": 6, "outcome": {}}', RESULT])
def test_a_damaged_result_is_named_and_can_be_deleted(tmp_path, content):
    (expected,) = run(tmp_path, VARIANTS[:1], (0,))
    kept = tmp_path / "slow/0" / runner.RESULT
    kept.write_text(content)
    with pytest.raises(ValueError, match=rf"{kept} is damaged \(.*\); delete it"):
        run(tmp_path, VARIANTS[:1], (0,))
    kept.unlink()
    (again,) = run(tmp_path, VARIANTS[:1], (0,))
    assert again.values("mse") == expected.values("mse")


@pytest.mark.parametrize("content", ['"a"', "[]", "null", ""])
def test_a_damaged_clock_is_named(tmp_path, content):
    kept = tmp_path / "slow/0/seconds.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(content)
    with pytest.raises(ValueError, match=rf"{kept} is damaged \(.*\); delete it"):
        run(tmp_path, VARIANTS[:1], (0,))


def test_damaged_data_of_a_run_are_named(tmp_path):
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        files.keep_same(tmp_path / "data.json", {})


def test_a_full_disk_is_said_as_the_run_says_it(tmp_path, monkeypatch):
    """`fit` says what is safe; the clock, which finds the disk full as well, is silent."""

    def full(*args, **options):
        raise OSError(28, "could not save step 3: the last good checkpoint is untouched", "run/checkpoints")

    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "fit", full)
    monkeypatch.setattr(pathlib.Path, "write_text", no_room)
    with pytest.raises(OSError, match="last good checkpoint"):
        run(tmp_path, VARIANTS[:1], (0,))


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    kept = tmp_path / "kept.json"
    files.write_json(kept, 1)

    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", no_room)
    with pytest.raises(OSError, match=r"No space left on device; make room, or give another folder: '.*kept\.json'"):
        files.write_json(kept, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert files.read_json(kept, int) == 1
