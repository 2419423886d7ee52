# SPDX-License-Identifier: Apache-2.0
"""JSON files that a run which may be killed at any time can rely on."""

import json
import os
import pathlib
from typing import Any


def write_json(path: pathlib.Path, content: Any) -> None:
    """Replaces the file as a whole: it holds what it held before, or all of `content`."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, path)


def keep_same(path: pathlib.Path, data: Any) -> None:
    """Writes down what a run's data are, or checks that those of a resumed run still are.

    Raises:
      ValueError: they are not.
    """
    if path.exists() and json.loads(path.read_text()) != data:
        raise ValueError(
            f"The data of {path.parent} have changed since it was started; start a new run, without --resume."
        )
    write_json(path, data)
