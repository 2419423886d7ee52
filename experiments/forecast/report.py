# SPDX-License-Identifier: Apache-2.0
"""What a run says at its end: a row for each model and baseline, printed as a table and kept as JSON."""

import dataclasses
import json
import pathlib
from typing import Any, Self

import rich.table

from experiments.forecast.baselines import Score
from experiments.forecast.data import Task


@dataclasses.dataclass(frozen=True)
class Row:
    """One forecaster's line.

    Args:
      name: of the model or baseline.
      parameters: how many weights it fits.
      strided: whether it forecasts, and is judged, at every second step from the fourth.
      valid, test: its scores.
      milliseconds: a training step's median, without compilation; `None` where none was timed.
    """

    name: str
    parameters: int
    strided: bool
    valid: Score
    test: Score
    milliseconds: float | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**fields, "valid": Score(**fields["valid"]), "test": Score(**fields["test"])})


def table(task: Task, rows: list[Row]) -> rich.table.Table:
    """The validation scores of `rows`; forecasters that are judged at other steps stand apart."""
    units = "scaled units" if task.scaler.std != 1 else "the series' own units"
    caption = "MSE: over all steps, and of the ten values forecast at the last one; MAE: there."
    if any(row.strided for row in rows):
        caption += " [3::2]: judged at every second step from the fourth."
    made = rich.table.Table(title=f"{task.name}: ten steps ahead, validation MSE in {units}", caption=caption)
    made.add_column("model", no_wrap=True)
    unit = f" ({task.unit})" if task.unit else ""
    for heading in ("parameters", "MSE\nall", "MSE\nlast", f"MAE\nlast{unit}", "ms a train\nstep"):
        made.add_column(heading, justify="right", no_wrap=True)
    groups = [[row for row in rows if row.strided == strided] for strided in (False, True)]
    for group in groups:
        for row in group:
            best = row is min(group, key=lambda row: row.valid.mse_last)
            made.add_row(
                f"{row.name} \\[3::2]" if row.strided else row.name,
                f"{row.parameters:,}",
                f"{row.valid.mse:.4f}",
                f"{row.valid.mse_last:.4f}",
                f"{row.valid.mae_last:.3f}",
                "" if row.milliseconds is None else f"{row.milliseconds:.2f}",
                style="bold" if best and len(group) > 1 else None,
            )
        made.add_section()
    return made


def write_summary(path: pathlib.Path, task: Task, config: dict[str, Any], rows: list[Row]) -> None:
    """Writes the configuration, what the data was, and every row, validation and test, as JSON."""
    summary = {"config": config, "data": task.describe(), "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(summary, indent=2) + "\n")
