# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: starts the processes, waits for them, prints what they found."""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table
import tyro

from experiments.distributed.config import PROGRAM, Config
from experiments.study.command import refused

CONSOLE = rich.console.Console()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status is 0 if all is equal, 1 if not, 2 for bad input, 130 when interrupted."""
    try:
        config = tyro.cli(Config, args=args, prog=PROGRAM)
        CONSOLE.print(
            f"{config.processes} processes with {config.devices} CPU devices each; {config.steps:,} steps, batch "
            f"{config.batch_size}, {config.hidden_dim} units, padding and resets, float64",
            highlight=False,
            soft_wrap=True,
        )
        rows = merge(run_processes(config))
    except (ValueError, OSError) as error:
        return refused(error)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    CONSOLE.print(table(config, rows))
    if not all(is_equal(config, row) for row in rows):
        return 1
    CONSOLE.print(f"All are equal to one process within {config.tolerance:g}.", highlight=False)
    return 0


def run_processes(config: Config) -> list[dict[str, Any]]:
    """Runs all processes to their end and returns the rows that they printed.

    Raises:
      RuntimeError: one has failed, or they took too long; the others are stopped.
    """
    address, deadline = f"127.0.0.1:{free_port()}", time.monotonic() + config.timeout
    command = [sys.executable, "-m", "experiments.distributed.worker", config.to_json()]
    root = pathlib.Path(__file__).parents[2]
    processes: list[subprocess.Popen] = []
    outcomes: list[int | None] = [None]
    with tempfile.TemporaryDirectory() as folder:
        logs = [pathlib.Path(folder, str(index)) for index in range(config.processes)]
        try:
            for index, log in enumerate(logs):
                with log.open("w") as file:
                    arguments = [*command, str(index), address]
                    processes.append(subprocess.Popen(arguments, cwd=root, stdout=file, stderr=subprocess.STDOUT))
            while time.monotonic() < deadline:
                outcomes = [process.poll() for process in processes]
                if None not in outcomes or any(outcomes):
                    break
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        texts = [log.read_text() for log in logs]
    for outcome, text in zip(outcomes, texts, strict=False):
        if outcome:
            raise RuntimeError(f"a process failed:\n{text[-4000:]}")
    if None in outcomes:
        raise RuntimeError(f"the processes took more than {config.timeout:g} s; see --timeout.")
    return [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def merge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a model, the worst of all processes."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    worst = ("values", "gradients")
    return [
        found[0] | {name: float(np.max([row[name] for row in found])) for name in worst} for found in by_model.values()
    ]


def is_equal(config: Config, row: dict[str, Any]) -> bool:
    return row["values"] <= config.tolerance and row["gradients"] <= config.tolerance


def table(config: Config, rows: list[dict[str, Any]]) -> rich.table.Table:
    """What was run, and how far it is from a loop in one process."""
    made = rich.table.Table(title="largest difference from a loop in one process")
    made.add_column("model")
    for name in ("sweeps", "values", "gradients", ""):
        made.add_column(name, justify="right")
    for row in rows:
        verdict = "equal" if is_equal(config, row) else "DIFFERENT"
        sweeps = str(row["sweeps"] or "-")
        made.add_row(row["model"], sweeps, f"{row['values']:.1e}", f"{row['gradients']:.1e}", verdict)
    return made


if __name__ == "__main__":
    sys.exit(main())
