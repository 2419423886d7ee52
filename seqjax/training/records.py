# SPDX-License-Identifier: Apache-2.0
"""Metrics as JSON lines: one object per line, in the order of steps."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILE = "metrics.jsonl"
Line = dict[str, Any]
"""`{"step": 100, "loss": 0.02, "grad_norm": 0.3, "clipped": False, "clipped_steps": 7, ...}`."""


def as_line(step: int, metrics: Mapping[str, Any]) -> Line:
    """The metrics as plain JSON values; those that are not finite become None, since JSON has no NaN.

    Raises:
      ValueError: a metric that is not a number.

    >>> as_line(3, {"loss": np.float32("nan"), "skipped": np.True_})
    {'step': 3, 'loss': None, 'skipped': True}
    """
    return {"step": step, **{name: _plain(name, value) for name, value in metrics.items()}}


def _plain(name: str, value: Any) -> Any:
    array = np.asarray(value)
    number = array.item() if array.size == 1 else array
    if not isinstance(number, bool | int | float | str | None):
        raise ValueError(f"the metric {name!r} must be one number, got {value!r}.")
    return None if isinstance(number, float) and not math.isfinite(number) else number


def read_metrics(path: str | Path) -> list[Line]:
    """The complete lines of a `metrics.jsonl`, without a last line that a killed process left half written.

    Args:
      path: the file, or the run's directory that holds it.

    Returns:
      The lines as dicts, in the order of their steps.

    Raises:
      ValueError: a damaged line that is not the last, or steps out of order.
      OSError: it cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"step": 1, "loss": 0.5}\\n{"step": 2, "lo')
    ...     file.flush()
    ...     read_metrics(file.name)
    [{'step': 1, 'loss': 0.5}]
    """
    path = Path(path)
    return [line for line, _ in _lines(path / FILE if path.is_dir() else path)]


class MetricsFile:
    """A file of metrics to continue after `step`: on entering, later lines are cut off, so that none appears twice.

    Raises:
      ValueError: a damaged line that is not the last, or steps out of order; nothing after it is thrown away.
      OSError: it cannot be written.
    """

    def __init__(self, path: Path, step: int):
        self.kept: list[Line] = []
        self._last = self._end = 0
        for line, offset in _lines(path) if path.exists() else ():
            if line["step"] > step:
                break
            self.kept.append(line)
            self._last, self._end = self._end, offset
        self._file = path.open("ab")

    def write(self, line: Line) -> None:
        with self._named():
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def replace_last(self, line: Line) -> None:
        """Writes a line in place of the last one that was kept."""
        self._file.truncate(self._last)
        self.write(line)

    def sync(self) -> None:
        """Makes what was written survive a power loss."""
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        self._file.truncate(self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written before
            if kind is None:
                raise

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write metrics: {error.strerror}; the newest checkpoint has the run's state. Make room, "
                "and resume",
                self._file.name,
            ) from error


def _lines(path: Path) -> list[tuple[Line, int]]:
    """Each complete line with the offset of its end, without a last line that is incomplete."""
    found: list[tuple[Line, int]] = []
    with path.open("rb") as file:
        raws = list(file)
    for number, raw in enumerate(raws, 1):
        line = _parse(raw)
        if line is None and number < len(raws):
            raise ValueError(f"{path}, line {number} is damaged, and lines follow it; repair or delete that line.")
        if line is not None:
            if found and line["step"] <= found[-1][0]["step"]:
                raise ValueError(
                    f"{path}, line {number} is of step {line['step']}, after one of step {found[-1][0]['step']}: "
                    "more than one run wrote there; delete the lines that are not this one's."
                )
            found.append((line, (found[-1][1] if found else 0) + len(raw)))
    return found


def _parse(raw: bytes) -> Line | None:
    """The line if it is complete, otherwise None."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    whole = raw.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("step"), int)
    return line if whole else None
