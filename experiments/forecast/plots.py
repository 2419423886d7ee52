# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run: forecasts against truth, error by step ahead, gradient norm, what clipping did."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.style
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.forecast.data import HORIZON, Task
from experiments.forecast.models import UNCLIPPED
from experiments.study.style import PALETTE, STYLE, line

BASELINES = {"persistence": ("0.65", ":"), "least squares": ("0.35", "--")}

History = Sequence[Mapping[str, Any]]

Lines = Mapping[str, Mapping[str, Any]]
"""How the line of each model of a run is drawn, by its name."""


def lines(names: Iterable[str]) -> Lines:
    """Those of `study.plots.learning`; that of a generic twin, which lies on the other one's, is wide and pale.

    >>> lines(["lstm", "lstm-generic"])["lstm"]
    {'color': '#0072b2', 'ls': '-', 'lw': 1.6}
    """
    thin, wide = {"lw": 1.6}, {"lw": 6, "alpha": 0.35, "marker": None}
    return {name: line(i) | (wide if name.endswith("-generic") else thin) for i, name in enumerate(names)}


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def forecasts(
    path: pathlib.Path,
    task: Task,
    models: Mapping[str, np.ndarray],
    linear: np.ndarray,
    drawn: Lines,
) -> None:
    """Six validation windows: what was seen, what came, and what was forecast from the window's end.

    Args:
      path: of the PNG.
      task: whose validation windows are shown.
      models: `[count, HORIZON]` forecasts at the last step, by name, in scaled units.
      linear: the same of least squares.
      drawn: `lines` of all models of the run.
    """
    count, shown = len(task.valid), min(task.window, 4 * HORIZON)
    chosen = np.linspace(0, count - 1, 6, dtype=int)
    past, ahead = np.arange(1 - shown, 1), np.arange(1, HORIZON + 1)
    with matplotlib.style.context(STYLE):
        figure, axes = _figure(2, 3, (11, 5.6), sharex=True)
        for axis, row in zip(axes.flat, chosen, strict=True):
            values = task.scaler.unscale(task.valid[row])
            axis.plot(past, values[task.window - shown : task.window], color="0.45", lw=1.2)
            axis.plot(ahead, values[task.window :], color="black", lw=1.2, marker="o", ms=3, label="truth")
            axis.plot(ahead, task.scaler.unscale(linear[row]), color="0.35", lw=1.2, ls="--", label="least squares")
            for name, made in models.items():
                axis.plot(ahead, task.scaler.unscale(made[row]), **drawn[name], label=name)
            axis.axvspan(0.5, HORIZON + 0.5, color="0.96", zorder=0)
            axis.set_title(f"validation window {row:,}", loc="left")
        figure.supxlabel("steps from the last value seen")
        figure.supylabel(task.label)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2 + len(models))
        figure.savefig(path)


def horizon(
    path: pathlib.Path,
    task: Task,
    models: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    drawn: Lines,
) -> None:
    """Root mean squared error for each step ahead, from the window's end, in the data's own unit.

    Args:
      path: of the PNG.
      task: whose validation windows are forecast.
      models, base: `[count, HORIZON]` forecasts at the last step, by name, in scaled units.
      drawn: `lines` of all models of the run.
    """
    ahead = np.arange(1, HORIZON + 1)

    def error(made: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean((made.astype(np.float64) - task.valid[:, task.window :]) ** 2, axis=0)) * task.scaler.std

    with matplotlib.style.context(STYLE):
        figure, axes = _figure(1, 1, (8, 4.2))
        axis = axes[0, 0]
        for name, made in base.items():
            axis.plot(ahead, error(made), color=BASELINES[name][0], ls=BASELINES[name][1], lw=1.6, label=name)
        for name, made in models.items():
            axis.plot(ahead, error(made), **{"marker": "o", "ms": 3, **drawn[name]}, label=name)
        axis.set(xlabel="steps ahead", ylabel="RMSE" + (f" ({task.unit})" if task.unit else ""), xticks=ahead)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{task.name}: error by step ahead, validation", loc="left")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path)


def gradients(path: pathlib.Path, histories: Mapping[str, History], clip_norm: float | None, drawn: Lines) -> None:
    """The gradient's global norm before clipping, step by step, and its running median.

    Args:
      path: of the PNG.
      histories: the lines of each model's metrics.
      clip_norm: where it was clipped.
      drawn: `lines` of all models of the run.
    """
    columns = min(len(histories), 4)
    rows = -(-len(histories) // columns)
    with matplotlib.style.context(STYLE):
        figure, axes = _figure(rows, columns, (max(2.8 * columns, 5), 2.6 * rows), sharex=True, sharey=True)
        for axis, name in zip(axes.flat, histories, strict=False):
            limit = None if name.endswith(UNCLIPPED) else clip_norm
            _gradient_panel(axis, histories[name], drawn[name]["color"], limit)
            clipped = np.mean([bool(line["clipped"]) for line in histories[name]])
            axis.set_title(f"{name}, {clipped:.0%} clipped", loc="left")
        for axis in axes.flat[len(histories) :]:
            axis.set_visible(False)
        figure.supxlabel("training step")
        figure.supylabel("gradient norm before clipping")
        figure.savefig(path)


def _gradient_panel(axis: Axes, history: History, colour: str, clip_norm: float | None) -> None:
    steps, norms = _series(history, "step"), _series(history, "grad_norm")
    width = max(1, len(norms) // 50)
    blocks = len(norms) // width
    axis.plot(steps, norms, color=colour, lw=0.5, alpha=0.35)
    axis.plot(
        steps[: blocks * width].reshape(blocks, width).mean(1),
        np.median(norms[: blocks * width].reshape(blocks, width), axis=1),
        color=colour,
        lw=1.6,
    )
    if clip_norm is not None:
        axis.axhline(clip_norm, color="black", ls="--", lw=0.9)
        axis.text(steps[-1], clip_norm * 1.2, "clipped above", ha="right", va="bottom", fontsize=7.5)
    axis.set_yscale("log")


def _series(history: History, measure: str) -> np.ndarray:
    """A measure at every step, NaN where it was not finite."""
    return np.array([line[measure] for line in history], np.float64)


def clipping(path: pathlib.Path, histories: Mapping[str, Sequence[History]]) -> None:
    """Training loss and gradient norm step by step, of a model clipped and not; a cross is the last finite value.

    Args:
      path: of the PNG.
      histories: the lines of metrics of each model's runs, a line in the picture for each.
    """
    twins = list(dict.fromkeys(name.removesuffix(UNCLIPPED) for name in histories))
    with matplotlib.style.context(STYLE):
        figure, axes = _figure(2, len(twins), (max(3 * len(twins), 5), 5), sharex=True, sharey="row")
        for column, twin in zip(axes.T, twins, strict=True):
            for name, colour, label in ((twin + UNCLIPPED, PALETTE[1], "not clipped"), (twin, PALETTE[0], "clipped")):
                for history in histories.get(name, ()):
                    _explosion(column, history, colour, label)
            column[0].set_title(twin, loc="left")
        axes[0, 0].set_ylabel("training loss")
        axes[1, 0].set_ylabel("gradient norm before clipping")
        figure.supxlabel("training step")
        shown = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown.keys(), loc="outside upper right", ncols=2)
        figure.savefig(path)


def _explosion(column: np.ndarray, history: History, colour: str, label: str) -> None:
    for axis, measure in zip(column, ("loss", "grad_norm"), strict=True):
        steps, values = _series(history, "step"), _series(history, measure)
        axis.loglog(steps, values, color=colour, lw=0.8, marker=".", ms=2, label=label)
        finite = np.flatnonzero(np.isfinite(values))
        if finite.size and finite[-1] + 1 < len(values):
            axis.plot(steps[finite[-1]], values[finite[-1]], "x", color="black")


def future(path: pathlib.Path, label: str, values: np.ndarray, made: Mapping[int, np.ndarray]) -> None:
    """The end of a series with forecasts from a few places, the last of them beyond its end.

    Args:
      path: of the PNG.
      label: of the vertical axis.
      values: `[N]`, the whole series or its end.
      made: `[HORIZON]` forecasts by the place of the last value seen.
    """
    first = max(0, min(made) - HORIZON)
    with matplotlib.style.context(STYLE):
        figure, axes = _figure(1, 1, (10, 3.8))
        axis = axes[0, 0]
        axis.plot(np.arange(first, len(values)), values[first:], color="0.35", lw=1.2, label="truth")
        for i, (place, ahead) in enumerate(made.items()):
            beyond = place == len(values) - 1
            axis.plot(
                np.arange(place, place + HORIZON + 1),
                np.concatenate([values[place : place + 1], ahead]),
                color=PALETTE[1] if beyond else PALETTE[0],
                lw=1.6,
                marker="o",
                ms=2.5,
                markevery=range(1, HORIZON + 1),
                label="forecast beyond the end" if beyond else "forecast" if i == 0 else None,
            )
        axis.set(xlabel="row", ylabel=label)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        figure.savefig(path)
