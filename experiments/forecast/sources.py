# SPDX-License-Identifier: Apache-2.0
"""Where series come from: the synthetic generator, a typical weather year, a CSV file of the user's own."""

import csv
import dataclasses
import datetime
import hashlib
import importlib.util
import io
import itertools
import math
import pathlib
from collections.abc import Callable

import numpy as np

TIME_NAMES = ("time", "timestamp", "date", "datetime")
"""Headers, in any case, of the column that holds the time in a CSV file."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One series at even steps: `values [N]` float64 in `unit` ("" where it is not known), and their times."""

    name: str
    unit: str
    values: np.ndarray
    times: tuple[str, ...]


# -- synthetic -----------------------------------------------------------------------------------


def synthetic(count: int, steps: int, seed: int = 42) -> np.ndarray:
    """Sums of two sine waves and noise, value for value those of the published notebook.

    x(t) = 0.5 sin((t - o₁)(10 f₁ + 10)) + 0.2 sin((t - o₂)(20 f₂ + 20)) + 0.1 (u - 0.5),
    f₁, f₂, o₁, o₂ ~ U(0, 1) for each series, u ~ U(0, 1) for each step, t from 0 to 1.

    Args:
      count: how many series.
      steps: steps of each.
      seed: of NumPy's legacy generator; 42 is the notebook's.

    Returns:
      `[count, steps]` float32.

    Source: Aurélien Géron, Hands-On Machine Learning with Scikit-Learn, Keras and TensorFlow,
    2nd edition (2019), notebook 15. He seeds NumPy's global generator; this draws the same
    numbers from one of its own.

    >>> synthetic(2, 3).shape
    (2, 3)
    """
    draw = np.random.RandomState(seed)
    f1, f2, o1, o2 = draw.rand(4, count, 1)
    t = np.linspace(0, 1, steps)
    series = 0.5 * np.sin((t - o1) * (f1 * 10 + 10))
    series += 0.2 * np.sin((t - o2) * (f2 * 20 + 20))
    series += 0.1 * (draw.rand(count, steps) - 0.5)
    return series.astype(np.float32)


# -- weather -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variable:
    """One weather variable: its unit, its TMY3 header, and its TMY2 characters with their scale."""

    unit: str
    header: str
    characters: slice
    scale: float


VARIABLES = {
    "temperature": Variable("°C", "Dry-bulb (C)", slice(67, 71), 0.1),
    "dew_point": Variable("°C", "Dew-point (C)", slice(73, 77), 0.1),
    "humidity": Variable("%", "RHum (%)", slice(79, 82), 1.0),
    "pressure": Variable("mbar", "Pressure (mbar)", slice(84, 88), 1.0),
    "wind_speed": Variable("m/s", "Wspd (m/s)", slice(95, 98), 0.1),
    "solar": Variable("Wh/m²", "GHI (W/m^2)", slice(17, 21), 1.0),
}


def _tmy3(text: str, variable: Variable) -> tuple[list[float], list[str]]:
    """Values and times of a TMY3 file: a line about the station, a header, a row an hour."""
    rows = list(csv.DictReader(text.splitlines()[1:]))
    times = [f"{row['Date (MM/DD/YYYY)'][:5].replace('/', '-')} {row['Time (HH:MM)']}" for row in rows]
    return [float(row[variable.header]) for row in rows], times


def _tmy2(text: str, variable: Variable) -> tuple[list[float], list[str]]:
    """Values and times of a TMY2 file: a line about the station, fixed-width rows."""
    rows = text.splitlines()[1:]
    values = [float(row[variable.characters]) * variable.scale for row in rows]
    return values, [f"{row[3:5]}-{row[5:7]} {row[7:9]}:00" for row in rows]


@dataclasses.dataclass(frozen=True)
class Station:
    """One typical meteorological year: its file in pvlib, the file's hash, and how it is read."""

    place: str
    file: str
    sha256: str
    read: Callable[[str, Variable], tuple[list[float], list[str]]]


STATIONS = {
    "greensboro": Station(
        "Greensboro, North Carolina",
        "723170TYA.CSV",
        "1e96f84638ce98e6b29002bc45a27aa69bb29b0ed0368d3b52b7b1f81610c6c9",
        _tmy3,
    ),
    "miami": Station(
        "Miami, Florida",
        "12839.tm2",
        "57f0de21ed1685a4a8623badc1be6535f88f82e1257b69554643e1370ca9e08d",
        _tmy2,
    ),
}


def weather(station: str = "greensboro", column: str = "temperature") -> Series:
    """One variable of a typical weather year, 8,760 hours, from a file that ships in pvlib (BSD-3-Clause).

    A typical year is made of twelve months of different years, so its eleven joints are
    not weather (their six hours on either side are smoothed at the source).

    Args:
      station: a key of `STATIONS`.
      column: a key of `VARIABLES`.

    Raises:
      ValueError: an unknown station or column; pvlib is not installed; its file is not the known one.

    Source: National Renewable Energy Laboratory. TMY3: S. Wilcox and W. Marion, Users Manual for
    TMY3 Data Sets, NREL/TP-581-43156 (2008). TMY2: W. Marion and K. Urban, User's Manual for
    TMY2s (1995).
    """
    if station not in STATIONS:
        raise ValueError(f"There is no weather station {station!r}; the stations are {', '.join(STATIONS)}.")
    if column not in VARIABLES:
        raise ValueError(f"The weather data has no column {column!r}; its columns are {', '.join(VARIABLES)}.")
    source, variable = STATIONS[station], VARIABLES[column]
    spec = importlib.util.find_spec("pvlib")
    if spec is None or spec.origin is None:
        raise ValueError(
            "The weather data ships in pvlib, which is not installed; install seqjax[experiments], "
            "or use --data synthetic or --data path.csv."
        )
    path = pathlib.Path(spec.origin).parent / "data" / source.file
    if not path.is_file():
        raise ValueError(f"The installed pvlib has no data/{source.file}; install pvlib 0.16.1.")
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"pvlib's data/{source.file} has sha256 {found}, expected {source.sha256}: "
            "it is not the file that was checked; install pvlib 0.16.1."
        )
    values, times = source.read(raw.decode("ascii"), variable)
    return Series(f"{column} in {source.place}", variable.unit, np.array(values), tuple(times))


# -- CSV -----------------------------------------------------------------------------------------


def read_csv(path: str | pathlib.Path, column: str | None = None) -> Series:
    """One column of a CSV file with a header, one row a step, at even steps and without gaps.

    A column named time, timestamp, date or datetime labels the rows and, where it holds ISO 8601
    times, must rise without a gap (a step more than half longer than the usual one).

    Args:
      path: of the file.
      column: which one; may be left out where there is one beside the time.

    Raises:
      ValueError: there is no such file or column; a number in place of the header, where `column` is
        left out; a value that is empty, text or not finite; times that fall or leave a gap. Lines are
        counted from 1, the header being the first.
    """
    path = pathlib.Path(path)
    header, lines, rows = _read_rows(path)
    time_column = next((name for name in header if name.lower() in TIME_NAMES and name != column), None)
    column = _choose_column(path, column, header, time_column)
    index = header.index(column)
    values = np.array([_number(path, line, column, row[index]) for line, row in zip(lines, rows, strict=True)])
    gaps = np.flatnonzero(np.isnan(values))
    if gaps.size:
        raise ValueError(
            f"{path}: column {column!r} has {gaps.size} gap(s), the first in line {lines[gaps[0]]}; "
            "fill them or cut the series to a part without gaps."
        )
    if time_column is None:
        return Series(column, "", values, tuple(str(row) for row in range(len(rows))))
    times = tuple(row[header.index(time_column)].strip() for row in rows)
    _check_times(path, lines, times)
    return Series(column, "", values, times)


def _read_rows(path: pathlib.Path) -> tuple[list[str], list[int], list[list[str]]]:
    """The header, and each row with the number of its line.

    Blank lines are left out, but for those between the values of a single column: they are gaps.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; --data takes weather, synthetic, or the path of a CSV file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"There is no file {path}; --data takes weather, synthetic, or the path of a CSV file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        numbered = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}.") from None
    while numbered and not numbered[-1][1]:
        numbered.pop()
    single = bool(numbered) and len(numbered[0][1]) == 1
    numbered = [(line, row or [""]) for line, row in numbered if row or single]
    if not numbered:
        raise ValueError(f"{path} is empty; expected a header and a row for each step.")
    header = [name.strip() for name in numbered[0][1]]
    for line, row in numbered[1:]:
        if len(row) != len(header):
            raise ValueError(f"{path}: line {line} has {len(row)} fields, the header has {len(header)}.")
    return header, [line for line, _ in numbered[1:]], [row for _, row in numbered[1:]]


def _choose_column(path: pathlib.Path, column: str | None, header: list[str], time_column: str | None) -> str:
    """The column to read, checked to be in the header once."""
    names = [name for name in header if name != time_column]
    if not names:
        raise ValueError(f"{path} has no column of numbers: {time_column!r}, its only one, has the times.")
    if column is None and len(names) == 1:
        column = names[0]
        if time_column is None and _is_number(column):
            raise ValueError(
                f"{path} begins with the number {column}, where its header is expected; put a line with the name of "
                f"the column before it, or say that it is the name with --column {column}."
            )
    if column is None:
        raise ValueError(f"{path} has several columns; choose one with --column: {', '.join(names)}.")
    if header.count(column) != 1:
        fault = "has no column" if column not in header else "has more than one column"
        raise ValueError(f"{path} {fault} {column!r}; its columns are {', '.join(names)}.")
    return column


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: pathlib.Path, line: int, column: str, cell: str) -> float:
    """The value of a cell, NaN for a gap."""
    if cell.strip().lower() in ("", "nan", "na", "null"):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise ValueError(
            f"{path}: line {line}, column {column!r}: {cell.strip()!r} is not a finite number; "
            "numbers are written like -1.5 or 2e3."
        )
    return value


def _check_times(path: pathlib.Path, lines: list[int], times: tuple[str, ...]) -> None:
    """Refuses ISO 8601 times that fall or leave a gap; other labels say nothing and are left alone."""
    try:
        parsed = [datetime.datetime.fromisoformat(time) for time in times]
        steps = np.array([(b - a).total_seconds() for a, b in itertools.pairwise(parsed)])
    except (ValueError, TypeError):
        return
    if not steps.size:
        return
    usual = float(np.percentile(steps, 50, method="lower"))
    for fault, wrong in (("does not come after", steps <= 0), ("leaves a gap after", steps > 1.5 * usual)):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{path}: line {lines[row + 1]}: {times[row + 1]} {fault} {times[row]} (usual step: {usual:g} s); "
                "a series must be sorted by time, at even steps, without gaps."
            )
