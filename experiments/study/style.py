# SPDX-License-Identifier: Apache-2.0
"""How the experiments' plots look."""

from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes

STYLE = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c510a", "#5e3c99")
"""Eight colours that colour-blind readers can tell apart, in the order of the models."""


def line(index: int) -> dict[str, Any]:
    """The colour and the dashes of the line of one of many rows."""
    return {"color": PALETTE[index % len(PALETTE)], "ls": ("-", "--", ":")[index // len(PALETTE) % 3]}


def logarithmic(axis: Axes) -> None:
    """Makes the vertical axis logarithmic, labelled at 1, 2 and 5 times a power of ten."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(matplotlib.ticker.FuncFormatter(_half_decades))


def _half_decades(value: float, place: int | None) -> str:
    """Leaves the other minor ticks bare."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""
