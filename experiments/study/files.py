# SPDX-License-Identifier: Apache-2.0
"""JSON files that a run which may be killed at any time can rely on."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def write_json(path: pathlib.Path, content: Any) -> None:
    """Replaces the file as a whole: it holds what it held before, or all of `content`.

    Raises:
      OSError: it cannot be written.
    """
    beside = path.with_suffix(".new")
    try:
        beside.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"could not be written, {error.strerror}; make room, or give another folder", str(path)
        ) from error


def read_json(path: pathlib.Path, read: Callable[[Any], T]) -> T:
    """What `read` makes of the file's content.

    Raises:
      ValueError: the file is not JSON, or not what `read` can read.
      OSError: there is none.
    """
    try:
        return read(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged ({fault}); delete it, and the next run makes it anew.") from None


def keep_same(path: pathlib.Path, data: Any) -> None:
    """Writes down what a run's data are, or checks that those of a resumed run still are.

    Raises:
      ValueError: they are not.
    """
    if path.exists() and read_json(path, lambda held: held != data):
        raise ValueError(
            f"The data of {path.parent} have changed since it was started; start a new run, without --resume."
        )
    write_json(path, data)
