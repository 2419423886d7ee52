# SPDX-License-Identifier: Apache-2.0
"""What the READMEs of the experiments tell to type is understood."""

import dataclasses
import importlib
import pathlib
import re
import shlex

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
COMMANDS = {
    path.parent.name: command
    for path in EXPERIMENTS.glob("*/config.py")
    if (command := getattr(importlib.import_module(f"experiments.{path.parent.name}.config"), "COMMAND", None))
}
FOLDERS = re.compile(r"\.\.\.|RUN")
"""Stand for the folder of a run that is not here."""
LINES = [
    line
    for readme in sorted(EXPERIMENTS.glob("*/README.md"))
    for line in re.findall(r"^scripts/run .*$", readme.read_text(), re.MULTILINE)
    if line.split()[1] in COMMANDS and not FOLDERS.search(line)
]


@pytest.mark.parametrize("line", LINES)
def test_commands_of_the_readmes_are_understood(line, capsys):
    name, *args = shlex.split(line, comments=True)[1:]
    command = COMMANDS[name]
    if "--help" in args:
        with pytest.raises(SystemExit) as stopped:
            command.parse(args)
        assert stopped.value.code == 0
        assert f"usage: scripts/run {name}" in capsys.readouterr().out
    else:
        command.parse(args)


def test_switches_are_turned_on_and_off():
    command = COMMANDS["adding"]
    assert command.parse(["--curriculum"]).curriculum
    assert not command.parse(["--preset", "long", "--no-curriculum"]).curriculum


@pytest.mark.parametrize("name", COMMANDS)
def test_every_preset_is_read_back_as_it_was_written(name, tmp_path):
    command = COMMANDS[name]
    for preset, config in command.presets.items():
        where = command.open(dataclasses.replace(config, run_dir=tmp_path / preset))
        assert command.to_json(command.load(where)) == command.to_json(config)


@pytest.mark.parametrize("name", [name for name in COMMANDS if hasattr(COMMANDS[name].presets["default"], "seeds")])
def test_a_resumed_run_may_have_more_seeds(name, tmp_path):
    command = COMMANDS[name]
    config = dataclasses.replace(command.presets["default"], seeds=1, run_dir=tmp_path / "run")
    where = command.open(config)
    assert command.parse(["--resume", str(where), "--seeds", "2"]).seeds == 2
