# SPDX-License-Identifier: Apache-2.0
"""A command: presets, flags, a run's folder, resuming, and what happens on bad input and Ctrl-C."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import tyro

from experiments.study.files import write_json
from experiments.study.typed import build
from seqjax import training


class Config(Protocol):
    """A frozen dataclass with these fields beside its own; None is a new folder, and no resuming."""

    @property
    def preset(self) -> str: ...
    @property
    def run_dir(self) -> pathlib.Path | None: ...
    @property
    def resume(self) -> pathlib.Path | None: ...


C = TypeVar("C", bound=Config)

PLACES = ("run_dir", "resume")
CONFIG = "config.json"
EXPERIMENT = "experiment"
"""Its name, beside the fields of the configuration in that file."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[C]):
    """`scripts/run NAME`.

    Args:
      name: of the experiment.
      presets: configurations by name; "default" is one, and a preset is a small difference from it.
      extendable: fields that a resumed run may raise, as a number of steps.
      actions: fields that ask for something to be done with a finished run and are no part of it.
    """

    name: str
    presets: Mapping[str, C]
    extendable: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """As a user types it."""
        return f"scripts/run {self.name}"

    def main(
        self,
        args: Sequence[str] | None,
        train: Callable[[C, pathlib.Path], None],
        act: Callable[[C], bool] = lambda config: False,
    ) -> int:
        """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted.

        Args:
          args: the command line, or None for that of the process.
          train: does the work, given the configuration and the run's folder.
          act: does what an action asks for instead, and says whether there was one.
        """
        run_dir = None
        try:
            config = self.parse(args)
            if act(config):
                return 0
            run_dir = self.open(config)
            train(config, run_dir)
            return 0
        except (ValueError, OverflowError, OSError) as error:
            if run_dir is not None and config.resume is None:
                with contextlib.suppress(OSError):  # the error says more
                    _discard_empty(run_dir)
            return refused(error)
        except KeyboardInterrupt:
            if run_dir is not None:
                print(f"\nInterrupted. Continue with: {self.program} --resume {run_dir}", file=sys.stderr)
            return 130

    def parse(self, args: Sequence[str] | None = None) -> C:
        """The configuration that a command line asks for: a preset, or a run to resume, and what the flags change.

        Raises:
          ValueError: a flag's value out of range; a run that is not there; a resumed run with other options.
          SystemExit: `--help`, or a flag that does not exist.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", default="default")
        first.add_argument("--resume", type=pathlib.Path)
        chosen, _ = first.parse_known_args(args)
        if chosen.resume is None:
            return self._parse(args, self.presets.get(chosen.preset, self.presets["default"]))
        saved = self.load(chosen.resume)
        config = self._parse(args, saved)
        was, now = self.to_json(saved), self.to_json(config)
        changed = [name for name in now if now[name] != was[name] and name not in self.extendable]
        if config.run_dir is not None:
            changed.append("run_dir")
        if changed:
            but = f" but for {', '.join(map(flag, self.extendable))}" if self.extendable else ""
            raise ValueError(
                f"A resumed run keeps its own configuration{but}; leave out {', '.join(map(flag, sorted(changed)))}."
            )
        for name in self.extendable:
            if now[name] < was[name]:
                raise ValueError(
                    f"A resumed run can only become longer: {flag(name)} {now[name]}, but it has {was[name]}."
                )
        return config

    def _parse(self, args: Sequence[str] | None, default: C) -> C:
        return tyro.cli(type(default), prog=self.program, args=args, default=default)

    def to_json(self, config: C) -> dict[str, Any]:
        """What decides the numbers, as a run keeps it; where it is written is not a part of it."""
        fields = dataclasses.asdict(config)  # type: ignore[call-overload]  # a Config is a dataclass
        return {name: value for name, value in fields.items() if name not in (*PLACES, *self.actions)}

    def load(self, run_dir: pathlib.Path) -> C:
        """The configuration of the run in `run_dir`.

        Raises:
          ValueError: there is none, or it is not one of this experiment.
        """
        path = run_dir / CONFIG
        kind = type(self.presets["default"])
        try:
            fields = json.loads(path.read_text())
            if isinstance(fields, dict) and (name := fields.pop(EXPERIMENT, self.name)) != self.name:
                raise ValueError(f"{path} is of a run of scripts/run {name}, not of {self.program}.")
            known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
            if isinstance(fields, dict) and (unknown := set(fields) - known):
                raise ValueError(
                    f"{path} has unknown fields: {', '.join(sorted(unknown))}; it is another experiment's."
                )
            return build(kind, fields)
        except OSError:
            raise ValueError(f"{run_dir} is not a run of {self.program}: it has no readable config.json.") from None
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not the configuration of a run: {error}.") from None

    def of_model(self, folder: pathlib.Path) -> C:
        """The configuration of the run that trained the model in `folder`, `RUN/CELL/SEED`.

        Raises:
          ValueError: there is no model, or its run is not one of this experiment.
        """
        if training.latest_step(folder) is None:
            raise ValueError(f"{folder} has no model; give the folder of one run, runs/{self.name}/.../CELL/0 say.")
        return self.load(folder.resolve().parent.parent)

    def open(self, config: C) -> pathlib.Path:
        """Makes the run's folder, with its configuration in it.

        Raises:
          ValueError: the folder is not empty, and not to be resumed.
          OSError: it cannot be written.
        """
        run_dir = config.resume
        if run_dir is None:
            run_dir = config.run_dir or self._new_folder(config)
            if run_dir.exists() and any(run_dir.iterdir()):
                raise ValueError(f"{run_dir} is not empty; continue it with --resume {run_dir}, or choose another.")
            run_dir.mkdir(parents=True, exist_ok=True)
        fields = self.to_json(config)
        if config.resume is None or fields != self.to_json(self.load(run_dir)):
            write_json(run_dir / CONFIG, {EXPERIMENT: self.name, **fields})
        return run_dir

    def _new_folder(self, config: C) -> pathlib.Path:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return pathlib.Path("runs") / self.name / f"{config.preset}-{now}"


def refused(error: Exception) -> int:
    """Says in one line what is wrong with the input, and returns the exit status.

    What no `raise` of ours or of a library says, shapes that NumPy cannot multiply, is a mistake in a program: it is
    raised again, to show where it is.
    """
    where = traceback.extract_tb(error.__traceback__)[-1].line or ""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError) and not where.startswith("raise"):
        raise error
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _discard_empty(run_dir: pathlib.Path) -> None:
    """Removes the folder of a run that came to nothing: the next try may have it."""
    if [path.name for path in run_dir.iterdir()] == [CONFIG]:
        (run_dir / CONFIG).unlink()
        run_dir.rmdir()


def find_anywhere(config: Any, *names: str) -> None:
    """Makes paths of a frozen configuration absolute, so that a run can be resumed from any folder.

    Raises:
      ValueError: an empty path.
    """
    for name in names:
        given = getattr(config, name)
        if given == "":
            raise ValueError(f"{flag(name)} is empty; give a path, or leave it out.")
        if given is not None:
            object.__setattr__(config, name, str(pathlib.Path(given).expanduser().resolve()))


def check_numbers(config: object, *, counts: Sequence[str], positive: Sequence[str]) -> None:
    """Refuses numbers out of range; fields that are None are let through.

    Args:
      config: a command's configuration.
      counts: fields that must be at least 1.
      positive: fields that must be finite and above 0.

    Raises:
      ValueError: naming the flag and what was given.
    """
    for name in counts:
        given = getattr(config, name)
        if given is not None and given < 1:
            raise ValueError(f"{flag(name)} must be at least 1, got {given}.")
    for name in positive:
        given = getattr(config, name)
        if given is not None and not 0 < given < math.inf:
            raise ValueError(f"{flag(name)} must be a number above 0, got {given}.")


def check_names(option: str, names: Sequence[str], known: Collection[str]) -> None:
    """Refuses names that are not known, and one that is given twice.

    Raises:
      ValueError: naming the option and what was given.
    """
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option}: there is no {', '.join(map(repr, unknown))}; choose from {', '.join(known)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"{option}: one is named twice in {', '.join(names)}.")


def flag(name: str) -> str:
    """A field's name as a command line has it."""
    return "--" + name.replace("_", "-")
