# SPDX-License-Identifier: Apache-2.0
"""How things are measured: interleaved, as ratios of neighbours, with versions beside the numbers.

Machines drift, and neighbours disturb. So competitors take turns within one run, and what is reported
is the median, over turns, of the ratio between two of them; a ratio survives a slow minute, a time
does not. Each result file begins with a row that names the machine and the versions.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "numpy", "seqjax", "torch")
SHORT_SECONDS = 0.05
"""A thunk that takes less is run once before it is timed."""


def interleave(
    thunks: Mapping[str, Callable[[], Any]],
    repeats: int = 7,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each thunk, `repeats` of each, taking turns.

    The order is drawn anew for every turn, so that none always runs in another's wake, and a short
    thunk is run once just before it is timed: what is measured is the thunk, not the cache that the one
    before it left. Results are waited for and dropped before the next one runs.

    Args:
      thunks: what is timed, by name; compile before, or leave it to `warmup`.
      repeats: turns.
      warmup: turns before the first that counts.
      clock: `time.process_time` counts processor time of all threads in place of wall time: the
        steadier one where other programs run beside.

    >>> sorted(interleave({"a": lambda: 1, "b": lambda: 2}, repeats=3))
    ['a', 'b']
    """
    order = random.Random(0)
    names = list(thunks)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    short: set[str] = set()
    for turn in range(-warmup, repeats):
        order.shuffle(names)
        for name in names:
            if name in short:
                jax.block_until_ready(thunks[name]())
            start = clock()
            jax.block_until_ready(thunks[name]())
            elapsed = clock() - start
            if elapsed < SHORT_SECONDS:
                short.add(name)
            if turn >= 0:
                seconds[name].append(elapsed)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of `numerator / denominator`, turn by turn.

    >>> ratios([2.0, 4.0, 6.0], [1.0, 1.0, 1.0])
    {'median': 4.0, 'low': 3.0, 'high': 5.0}
    """
    quotients = np.divide(numerators, denominators)
    median, low, high = np.quantile(quotients, [0.5, 0.25, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def temporary_bytes(program: Any) -> int:
    """Bytes that a compiled program holds at its peak, beside its arguments and results."""
    analysis = program.memory_analysis()
    if analysis is None:
        raise ValueError("this backend does not tell the memory of a compiled program.")
    return analysis.temp_size_in_bytes


def environment() -> dict[str, Any]:
    """The machine and the versions that a number belongs to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def check_counts(**counts: int | Sequence[int]) -> None:
    """Ends the program where a number is below 1 or there is none, before a result file is begun anew."""
    for name, given in counts.items():
        numbers = [given] if isinstance(given, int) else given
        if not numbers or min(numbers) < 1:
            raise SystemExit(f"error: --{name.replace('_', '-')} must be at least 1, got {given}.")


def start(path: str | pathlib.Path) -> pathlib.Path:
    """Begins a result file of JSON lines: its folder, and `environment()` as the first row, also printed."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    header = {"environment": environment()}
    record(path, header)
    print(json.dumps(header), flush=True)
    return path


def record(path: str | pathlib.Path, row: Mapping[str, Any]) -> None:
    """Appends one row, so that a run that is cut short keeps what it has measured."""
    with pathlib.Path(path).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: str | pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The environment and the rows of a result file."""
    header, *rows = (json.loads(line) for line in pathlib.Path(path).read_text().splitlines())
    return header["environment"], rows
