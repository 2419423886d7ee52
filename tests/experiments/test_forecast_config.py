# SPDX-License-Identifier: Apache-2.0
"""The command's flags: presets, what overrides them, and what is refused."""

import typing

import pytest

from experiments.forecast import config
from experiments.forecast.models import MODELS


def test_presets_differ_by_what_they_say():
    assert config.parse([]) == config.Config()
    assert config.parse(["--preset", "paper"]) == config.Config(preset="paper", epochs=20)
    assert config.parse(["--preset=smoke"]) == config.PRESETS["smoke"]


def test_flags_override_a_preset():
    made = config.parse(["--preset", "paper", "--epochs", "3", "--model", "gru", "--clip-norm", "None"])
    assert made == config.Config(preset="paper", epochs=3, model="gru", clip_norm=None)


def test_window_follows_the_data():
    assert config.Config().steps_seen == 72
    assert config.Config(data="synthetic").steps_seen == config.Config(data="a.csv").steps_seen == 50
    assert config.Config(data="weather", window=24).steps_seen == 24


def test_every_model_can_be_chosen():
    hints = typing.get_type_hints(config.Config)
    assert set(typing.get_args(hints["model"])) == {"all", *MODELS}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1, got -1"),
        ({"learning_rate": 0.0}, "--learning-rate must be a number above 0"),
        ({"clip_norm": float("nan")}, "--clip-norm must be a number above 0"),
        ({"window": 7}, "--window must be even and at least 4, got 7"),
    ],
)
def test_numbers_out_of_range_are_refused_by_flag(option, message):
    with pytest.raises(ValueError, match=message):
        config.Config(**option)


@pytest.mark.parametrize(
    "args", [["--epochs", "0"], ["--model", "transformer"], ["--preset", "long"], ["--epoch", "3"]]
)
def test_bad_flags_exit_with_status_2(args, capsys):
    with pytest.raises(SystemExit) as exit_:
        config.parse(args)
    assert exit_.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        config.parse(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--data", "--column", "--model", "--preset", "--predict", "--resume", "--clip-norm"):
        assert flag in shown


def test_configuration_survives_json():
    made = config.Config(data="synthetic", model="lstm", epochs=2, clip_norm=None)
    assert config.Config.from_json(made.to_json()) == made
    with pytest.raises(ValueError, match="unknown fields: layers"):
        config.Config.from_json({"layers": 3})


def test_resume_of_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run of this experiment"):
        config.parse(["--resume", str(tmp_path)])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"is not the configuration of a run"):
        config.parse(["--resume", str(tmp_path)])
