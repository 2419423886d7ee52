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
