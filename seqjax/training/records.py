# SPDX-License-Identifier: Apache-2.0
"""Metrics as JSON lines: one object a line, in the order of steps."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
"""`{"step": 100, "loss": 0.02, "grad_norm": 0.3, "clipped": False, "skipped": False, ...}`."""


def as_line(step: int, metrics: Mapping[str, Any]) -> Line:
    """The metrics as JSON has them; what is not finite becomes None, for JSON has no NaN.

    >>> as_line(3, {"loss": np.float32("nan"), "skipped": np.True_})
    {'step': 3, 'loss': None, 'skipped': True}
    """
    values = {name: np.asarray(value).item() for name, value in metrics.items()}
    finite = {n: v if not isinstance(v, float) or math.isfinite(v) else None for n, v in values.items()}
    return {"step": step, **finite}


def read_metrics(path: str | Path) -> list[Line]:
    """The whole lines of a `metrics.jsonl`; a last line that a killed process left half written is left out.

    Raises:
      ValueError: a damaged line that is not the last.
    """
    return [line for line, _ in _lines(Path(path))]


class MetricsFile:
    """A file of metrics that is continued after `step`: later lines are cut off, so none comes twice.

    Raises:
      ValueError: a damaged line that is not the last: nothing after it is thrown away.
      OSError: it cannot be written.
    """

    def __init__(self, path: Path, step: int):
        self.kept = []
        end = 0
        for line, offset in _lines(path) if path.exists() else ():
            if line["step"] > step:
                break
            self.kept.append(line)
            end = offset
        self._file = path.open("ab")
        self._file.truncate(end)

    def write(self, line: Line) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Makes what was written outlast a loss of power."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _lines(path: Path) -> list[tuple[Line, int]]:
    """Each whole line with the offset of its end; a last one that is none is left out."""
    found: list[tuple[Line, int]] = []
    with path.open("rb") as file:
        raws = list(file)
    for number, raw in enumerate(raws, 1):
        line = _parse(raw)
        if line is None and number < len(raws):
            raise ValueError(f"{path}, line {number} is damaged, and lines follow it; mend or delete that line.")
        if line is not None:
            found.append((line, (found[-1][1] if found else 0) + len(raw)))
    return found


def _parse(raw: bytes) -> Line | None:
    """A whole line, or None."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    whole = raw.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("step"), int)
    return line if whole else None
