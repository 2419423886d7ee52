# SPDX-License-Identifier: Apache-2.0
"""The experiments' tasks by name, imported when they are asked for."""

import ast
import functools
import importlib
import inspect
import pathlib
import typing
from collections.abc import Callable, Sequence
from typing import Any

from experiments.study.task import Task
from experiments.study.typed import fits

EXPERIMENTS = pathlib.Path(__file__).parent.parent
SHARED = "study"


def available() -> list[str]:
    """The experiments that have a task: those with a module `experiments.NAME.task`."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob("*/task.py") if path.parent.name != SHARED)


def load(name: str, options: Sequence[str] = ()) -> Callable[[int], Task]:
    """The function that makes the task of a replicate.

    Args:
      name: of the experiment.
      options: what else its `task` function is to be given, each as "name=value".

    Raises:
      ValueError: there is no such task or option, or a package that it needs is not installed.

    >>> load("adding", ["length=50"])(0).name
    'adding problem, T = 50'
    """
    if name not in available():
        raise ValueError(f"There is no task {name!r}; there are {', '.join(available())}.")
    try:
        make = importlib.import_module(f"experiments.{name}.task").task
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("experiments", "seqjax"):
            raise
        raise ValueError(
            f"The task {name!r} needs the package {error.name}, which is not installed; "
            f"install its extra, if there is one: pip install 'seqjax[{name}]'."
        ) from None
    return functools.partial(make, **parse(name, make, options))


def parse(name: str, make: Callable[..., Task], options: Sequence[str]) -> dict[str, Any]:
    """Options "name=value" as arguments of a task function.

    Values are Python's numbers, True, False, None and tuples; anything else is a text, and so is what
    an option takes as a text alone.

    Raises:
      ValueError: an option that is no such pair, that the task does not have, or that is given twice; a value
        of another type than the option's.
    """
    hints = typing.get_type_hints(make)
    known = [parameter for parameter in inspect.signature(make).parameters if parameter != "replicate"]
    parsed = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"The task {name!r} has no option {option!r}; write NAME=VALUE, NAME being one of {', '.join(known)}."
            )
        if key in parsed:
            raise ValueError(f"The task {name!r} is given its option {key!r} twice; leave out one of them.")
        hint = hints.get(key, object)
        allowed = [value for value in (_literal(text), text) if fits(value, hint)]
        if not allowed:
            raise ValueError(
                f"The option {key!r} of the task {name!r} must be {inspect.formatannotation(hint)}, got {text!r}."
            )
        parsed[key] = allowed[0]
    return parsed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
