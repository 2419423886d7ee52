# SPDX-License-Identifier: Apache-2.0
"""The report's pictures, as SVG text."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.diagnose.finding import MUCH, NEUTRAL, VANISHED
from experiments.diagnose.findings import with_spread
from experiments.diagnose.measure import LayerNumbers, Numbers
from experiments.study.style import PALETTE, STYLE
from seqjax.diagnostics import ClipHistory

Layers = Sequence[LayerNumbers]


@contextmanager
def _svg(name: str, width: float, height: float, columns: int = 1) -> Iterator[tuple[np.ndarray, Callable[[], str]]]:
    """Axes to draw in, and a function that gives the SVG when they are drawn; the same numbers, the same text."""
    with matplotlib.style.context([STYLE, {"svg.hashsalt": name}]):
        figure = Figure(figsize=(width, height), layout="constrained")

        def text() -> str:
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
            return file.getvalue()

        yield figure.subplots(1, columns, squeeze=False)[0], text


def _log(axis: Axes, *curves: np.ndarray) -> None:
    """A logarithmic axis, if there is anything to show on one."""
    if any((curve > 0).any() for curve in curves):
        axis.set_yscale("log")


def flow(layers: Layers) -> str:
    """‖dL/dh_t‖ of every layer, through the last output alone and through all of them."""
    with _svg("flow", 10, 3.6, 2) as (axes, text):
        for axis, title, of in (
            (axes[0], "through the last output", lambda layer: layer.flow_last),
            (axes[1], "through all outputs", lambda layer: layer.flow_all),
        ):
            for i, layer in enumerate(layers):
                norms = of(layer)
                axis.plot(
                    np.arange(len(norms)),
                    norms / (norms.max() or 1),
                    color=_colour(i),
                    lw=1.5,
                    label=_short(layer.name),
                )
            axis.axhline(VANISHED, color="0.4", ls=":", lw=1)
            axis.text(0, VANISHED, " 1%", fontsize=7.5, va="bottom", color="0.4")
            _log(axis, *(of(layer) for layer in layers))
            axis.set(xlabel="step t, in the order in which the layer goes", title=title)
        axes[0].set_ylabel("‖dL/dh_t‖ / largest")
        axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        return text()


def memory(numbers: Numbers) -> str:
    """‖∂y_T/∂x_t‖ against the lag."""
    profile = numbers.profile
    if profile is None:
        raise ValueError("there is no memory profile to draw.")
    with _svg("memory", 7, 3.4) as ((axis,), text):
        axis.plot(np.arange(len(profile)), profile, color=PALETTE[0], lw=1.5)
        axis.axhline(0.01 * profile.max(), color="0.4", ls=":", lw=1)
        axis.text(0, 0.01 * profile.max(), " 1% of the largest", fontsize=7.5, va="bottom", color="0.4")
        if numbers.reached:
            axis.axvline(numbers.horizon, color=PALETTE[1], lw=1, ls="--", label=f"horizon: lag {numbers.horizon}")
            axis.legend()
        _log(axis, profile)
        axis.set(xlabel="lag T - t, in steps of the input", ylabel="‖∂y_T/∂x_t‖")
        return text()


def saturation(layers: Layers) -> str:
    """How much of the time each gate of each layer stands at its bounds."""
    rows = [(f"{_short(layer.name)}: {name}", sides) for layer in layers for name, sides in layer.gates.items()]
    with _svg("saturation", 8, 0.8 + 0.28 * len(rows)) as ((axis,), text):
        for side, colour, of in (
            ("at the lower bound", PALETTE[0], lambda sides: -float(np.mean(sides.low))),
            ("at the upper bound", PALETTE[1], lambda sides: float(np.mean(sides.high))),
        ):
            axis.barh(range(len(rows)), [of(sides) for _, sides in rows], color=colour, height=0.7, label=side)
        axis.axvline(0, color="0.3", lw=0.8)
        for limit in (-MUCH, MUCH):
            axis.axvline(limit, color="0.4", ls=":", lw=1)
        axis.set(xlim=(-1, 1), xlabel="part of the values", yticks=range(len(rows)))
        axis.set_yticklabels([label for label, _ in rows])
        axis.set_xticks([-1, -0.5, 0, 0.5, 1], ["100%", "50%", "0", "50%", "100%"])
        axis.invert_yaxis()
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        return text()


def jacobians(layers: Layers) -> str:
    """The largest singular value and the spectral radius of the steps' Jacobians."""
    with _svg("jacobians", 7, 3.4) as ((axis,), text):
        for i, layer in enumerate(layers):
            axis.plot(
                layer.spectrum_steps,
                layer.singular,
                color=_colour(i),
                lw=1.5,
                label=f"{_short(layer.name)}: singular value",
            )
            axis.plot(layer.spectrum_steps, layer.radius, color=_colour(i), lw=1.2, ls="--", label="spectral radius")
        axis.axhline(1, color="0.4", ls=":", lw=1)
        axis.set(xlabel="step t, in the order in which the layer goes", ylabel="stretch of one step")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return text()


def exponents(layers: Layers) -> str:
    """The largest Lyapunov exponent of every sequence, and their mean, for each layer."""
    with _svg("exponents", 8, 1 + 0.4 * len(layers)) as ((axis,), text):
        labels = []
        for i, layer in enumerate(layers):
            values = layer.exponents[np.isfinite(layer.exponents)]
            axis.plot(values, np.full(len(values), i), "o", color=_colour(i), alpha=0.3, ms=5, mec="none")
            if values.size:
                axis.plot([values.mean()], [i], "|", color="0.1", ms=16, mew=1.5)
            labels.append(f"{_short(layer.name)}\n{with_spread(layer.exponents)}")
        axis.axvline(0, color="0.3", lw=0.8)
        axis.axvspan(-NEUTRAL, NEUTRAL, color="0.5", alpha=0.15, lw=0)
        axis.set(
            xlabel="largest Lyapunov exponent, nats a step", yticks=range(len(layers)), ylim=(-0.6, len(layers) - 0.4)
        )
        axis.set_yticklabels(labels)
        axis.invert_yaxis()
        return text()


def clipping(history: ClipHistory) -> str:
    """The clipped part of the training steps, and the gradient's norm, over training."""
    with _svg("clipping", 10, 3.2, 2) as (axes, text):
        axes[0].plot(history.steps, history.clipped, color=PALETTE[0], lw=1.5, label="clipped")
        if history.skip_count:
            axes[0].plot(history.steps, history.skipped, color=PALETTE[1], lw=1.5, label="skipped: not finite")
        axes[0].set(xlabel="training step", ylabel="part of the steps", ylim=(-0.02, 1.02))
        axes[0].legend()
        axes[1].plot(history.steps, history.norms, color=PALETTE[2], lw=1.5)
        _log(axes[1], history.norms)
        axes[1].set(xlabel="training step", ylabel="median gradient norm before clipping")
        return text()


def _short(name: str, most: int = 32) -> str:
    """A layer's name as far as there is room for it."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]
