# SPDX-License-Identifier: Apache-2.0
"""The experiment's command: looks into a checkpoint and writes the report."""

import sys
from collections.abc import Sequence

import rich.console
import tyro

from experiments.diagnose import report, subject
from experiments.diagnose.config import PROGRAM, Config
from experiments.diagnose.finding import Finding
from experiments.diagnose.findings import findings
from experiments.diagnose.measure import measure
from experiments.study.command import refused

CONSOLE = rich.console.Console()
COLOURS = {"problem": "red", "note": "blue", "good": "green"}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        config = tyro.cli(Config, prog=PROGRAM, args=args)
        looked_at, folder = subject.load(config)
        out = config.out or folder / "diagnosis.html"
        report.check(out)
        seen = looked_at.seen
        what = f"{looked_at.model} on {seen.inputs}; the loss is {seen.objective}"
        CONSOLE.print(what, highlight=False, markup=False, soft_wrap=True)
        numbers = measure(looked_at)
        found = findings(numbers)
        for finding in found:
            show(finding)
        out.write_text(report.page(looked_at, numbers, found), encoding="utf-8")
        CONSOLE.print(f"The report is in {out}.", markup=False, soft_wrap=True)
        return 0
    except (ValueError, OSError) as error:
        return refused(error)
    except KeyboardInterrupt:
        return 130


def show(finding: Finding) -> None:
    """Prints one finding with its number."""
    CONSOLE.print(f"[{COLOURS[finding.level]}]{finding.level}[/]", end=" ")
    words = f"{finding.about}: {finding.sentence} ({finding.number})"
    CONSOLE.print(words, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
