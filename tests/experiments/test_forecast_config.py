# SPDX-License-Identifier: Apache-2.0
"""The command's flags: presets, what overrides them, and what is refused."""

import dataclasses
import json

import pytest

import seqjax
from experiments.forecast.config import COMMAND, Config
from experiments.forecast.models import CELLS, GROUPS, MODELS, STANDARD


def test_presets_differ_by_what_they_say():
    assert COMMAND.parse([]) == Config()
    assert COMMAND.parse(["--preset", "paper"]) == Config(
        preset="paper", data="synthetic", model="all", epochs=20, seeds=3
    )
    assert COMMAND.parse(["--preset=smoke"]) == COMMAND.presets["smoke"]


def test_flags_override_a_preset():
    made = COMMAND.parse(["--preset", "paper", "--epochs", "3", "--model", "gru", "--clip-norm", "None"])
    assert made == Config(preset="paper", data="synthetic", epochs=3, seeds=3, model="gru", clip_norm=None)


def test_window_follows_the_data():
    assert Config().steps_seen == 72
    assert Config(data="synthetic").steps_seen == Config(data="a.csv").steps_seen == 50
    assert Config(data="weather", window=24).steps_seen == 24


def test_models_are_chosen_by_name_or_group():
    assert Config().names == list(STANDARD)
    assert Config(model="gru, standard").names == ["gru", *(name for name in STANDARD if name != "gru")]
    assert Config(model="all").names == [*STANDARD, *CELLS]
    assert {name for group in GROUPS.values() for name in group} <= set(MODELS)


def test_ablation_has_each_normalization_with_each_activation_clipped_and_not():
    entries = [MODELS[name] for name in Config(model="ablation").names]
    cells = [entry.cell(4) for entry in entries]
    made = {(cell.normalize, cell.activation, entry.clip) for cell, entry in zip(cells, entries, strict=True)}
    assert made == {(n, a, c) for n in (None, "batch", "layer") for a in ("tanh", "relu") for c in (True, False)}
    assert len(entries) == 12


def test_cells_behind_convolutions_are_trained_alike():
    names = ("gru", "lstm", "indrnn", "diagonal-gru", "diagonal-lstm")
    entries = [dataclasses.replace(MODELS[f"{name}-conv"], cell=None) for name in names]
    assert all(entry == entries[0] for entry in entries)
    assert MODELS["gru-conv"].build(4).layers[0] == seqjax.Conv1D(4, width=8, padding="causal")


def test_explosion_differs_from_its_cure_by_clipping_alone():
    bad, good = (MODELS[name] for name in ("simple-he-unclipped", "simple-he"))
    assert bad.build() == good.build()
    assert (bad.clip, good.clip) == (False, True)
    assert bad.learning_rate == good.learning_rate


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"clip_norm": float("nan")}, "--clip-norm must be a number above 0"),
        ({"window": 7}, "--window must be even and at least 4, got 7"),
        ({"model": "gru,transformer"}, "--model has no 'transformer'; choose from standard, cells, all, ablation"),
    ],
)
def test_what_is_out_of_range_is_refused_by_flag(option, message):
    with pytest.raises(ValueError, match=message):
        Config(**option)


@pytest.mark.parametrize(
    "args", [["--epochs", "0"], ["--model", "transformer"], ["--preset", "long"], ["--epoch", "3"]]
)
def test_bad_flags_exit_with_status_2(args, capsys):
    with pytest.raises(SystemExit) as exit_:
        COMMAND.parse(args)
    assert exit_.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        COMMAND.parse(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--data", "--column", "--model", "--preset", "--seeds", "--predict", "--resume", "--clip-norm"):
        assert flag in shown


def test_configuration_survives_its_file_whatever_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Config(data="load.csv", model="lstm", epochs=2, clip_norm=None)
    assert made.data == str(tmp_path / "load.csv")
    (tmp_path / "config.json").write_text(json.dumps(COMMAND.to_json(made)))
    monkeypatch.chdir("/")
    assert COMMAND.load(tmp_path) == made
