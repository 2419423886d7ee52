# SPDX-License-Identifier: Apache-2.0
"""From numbers to sentences. Every sentence states its number; every threshold is a constant here.

The functions take numbers alone, so that each threshold is tested on both of its sides.
"""

from typing import Literal, NamedTuple

import numpy as np

from experiments.diagnose.measure import LayerNumbers, Numbers

VANISHED = 0.01
"""A gradient below this part of its largest value has vanished."""
MUCH = 0.5
"""The part of the steps without gradient from which this is a problem; the part of the training steps
clipped, and of a gate's values at a bound, from which they are."""
OFF = 0.9
"""The same of an activation that is only ever at its lower bound, a relu say, which is off half of the time
when all is well."""
EXPLODED = 100.0
"""A gradient so many times larger than at the last step has exploded."""
NEUTRAL = 0.01
"""Lyapunov exponents of this size, in nats per step, neither forget nor are chaotic."""
RARELY = 0.01
"""The part of the training steps up to which clipping is rare."""

Level = Literal["problem", "note", "good"]


class Finding(NamedTuple):
    """One sentence with its evidence."""

    level: Level
    about: str
    """The layer, or what it is about: `"0 LSTM(20)"`, `"the model"`, `"training"`."""
    sentence: str
    number: str
    """The quantity and its value: what the sentence rests on."""


def remedy(layer: str) -> str:
    """What lets a layer remember for longer, from its cell."""
    for cell, words in (
        ("LSTM(", "a strided front end or a larger forget bias"),
        ("GRU(", "a strided front end, a larger bias of the gate that keeps, or LSTM"),
        ("Simple(", "a strided front end, LSTM or GRU"),
        ("IndRNN(", "a strided front end, recurrent weights nearer to 1, LSTM or GRU"),
        ("LRU(", "a strided front end or decays that start nearer to 1"),
    ):
        if cell in layer:
            return words
    return "a strided front end, LSTM or a larger forget bias"


def gradient(layer: str, norms: np.ndarray) -> list[Finding]:
    """Whether the gradient that comes through the last output arrives at the first step.

    The last steps have none where the last output does not see them: behind the last window of a strided
    convolution, or where a layer goes backward, whose first step it is that the last output sees.

    Args:
      layer: its name.
      norms: `[T]`, ‖dL/dh_t‖, in the order in which the layer goes.
    """
    every, largest = len(norms), float(np.max(norms))
    if not np.isfinite(norms).all():
        sentence = "Gradients are not finite: clip, lower the learning rate, or look for NaN in the data."
        return [Finding("problem", layer, sentence, f"{int((~np.isfinite(norms)).sum())} of {every} steps not finite")]
    if largest == 0:
        return [Finding("problem", layer, "No gradient arrives at this layer at all.", "largest ‖dL/dh_t‖ = 0")]
    found = []
    norms = norms[: 1 + np.flatnonzero(norms)[-1]]
    steps = len(norms)
    arrived = np.flatnonzero(norms >= VANISHED * largest)
    first = int(arrived[0])
    ratio = float(norms[0]) / largest
    number = f"‖dL/dh_t‖ at the first step is {ratio:.2g} of its largest, {largest:.3g}"
    if first > 0:
        sentence = (
            f"Gradients vanish before step {first} of {steps}: what came earlier is not learnt from the last output"
        )
        much = first > MUCH * steps
        cure = f"; {remedy(layer)} would help." if much else f". If it should be, {remedy(layer)} would help."
        found.append(Finding("problem" if much else "note", layer, sentence + cure, number))
    growth = largest / float(norms[-1])
    if growth > EXPLODED:
        place = int(np.argmax(norms))
        sentence = (
            f"Gradients explode backward in time: {growth:.3g} times larger at step {place} than at the last. "
            "Clip them, normalize inside the recurrence, or start with smaller recurrent weights."
        )
        found.append(
            Finding("problem", layer, sentence, f"largest ‖dL/dh_t‖ / last = {growth:.3g} (limit {EXPLODED:g})")
        )
    if not found:
        which = (
            f"all {steps} steps" if steps == every else f"the first {steps} of {every} steps, all that it comes from"
        )
        found.append(Finding("good", layer, f"The gradient arrives at {which}.", number))
    return found


def horizon(profile: np.ndarray, lag: int, reached: bool) -> Finding:
    """How far back the last output still hears its inputs.

    Args:
      profile: `[T]`, ‖∂y_T/∂x_t‖ against the lag.
      lag: from which it stays below 1% of its largest.
      reached: whether there is such a lag.
    """
    steps = len(profile)
    if not np.isfinite(profile).all() or profile.max() == 0:
        sentence = "The last output does not move with any input, or its derivatives are not finite."
        return Finding("problem", "the model", sentence, f"largest ‖∂y_T/∂x_t‖ = {np.max(profile):.3g}")
    if reached:
        return Finding(
            "note",
            "the model",
            f"The last output hears the last {lag} of {steps} inputs: older ones move it by less than 1% of the most "
            "that one does. What lies further back cannot matter to it as it is.",
            f"‖∂y_T/∂x_t‖ falls below 1% of its largest at lag {lag}",
        )
    return Finding(
        "good",
        "the model",
        f"The last output hears all {steps} inputs; its memory may be longer than these sequences.",
        f"‖∂y_T/∂x_t‖ stays above 1% of its largest over all {steps} lags",
    )


class Bound(NamedTuple):
    """What a gate does that stands at one of its bounds, and whether gradients go through it there."""

    meaning: str
    harmless: bool = False


STUCK = Bound("keeps its state and takes nothing in")
GATES: dict[str, tuple[Bound, Bound]] = {
    "i": (Bound("lets nothing in"), Bound("lets everything in", harmless=True)),
    "f": (Bound("forgets at once"), Bound("keeps everything", harmless=True)),
    "o": (Bound("shows nothing"), Bound("shows everything", harmless=True)),
    "z": (Bound("does not keep its state"), STUCK),
    "r": (Bound("ignores its past"), Bound("sees all of its past", harmless=True)),
}
"""At the lower and the upper bound."""
GATES_OF: dict[tuple[str, str], tuple[Bound, Bound]] = {
    ("MinGRU", "z"): (STUCK, Bound("overwrites its state")),
    ("MinLSTM", "f"): (Bound("overwrites its state"), STUCK),
    ("DiagonalLSTM", "f"): (Bound("overwrites its state"), STUCK),
    ("RGLRU", "r"): (STUCK, Bound("forgets as fast as its decays allow", harmless=True)),
}
"""Of cells where a letter says something else: z writes, what f keeps is not written, r is the speed of a decay."""


def bounds(layer: str, name: str) -> tuple[Bound, Bound]:
    """What the gate `name` of a layer does at its bounds."""
    own = (found for (cell, gate), found in GATES_OF.items() if gate == name and f"{cell}(" in layer)
    return next(own, GATES[name])


def gate(layer: str, name: str, low: float, high: float) -> list[Finding]:
    """What a gate does that stands at a bound most of the time.

    Args:
      layer: its name.
      name: of the gate.
      low, high: the parts of its values at the lower and at the upper bound.
    """
    if name in ("g", "h", "phi_c"):
        limit = MUCH if high > 0 else OFF
        if low + high <= limit:
            return []
        what = {"g": "candidate", "h": "state", "phi_c": "squashed memory cell"}[name]
        sentence = (
            f"The {what} {name} stands at a bound of its activation {low + high:.0%} of the time, where no gradient "
            "goes through it: smaller weights, another bias at the start, or layer normalization would help."
        )
        return [Finding("problem", layer, sentence, f"{name} at a bound: {low + high:.3f} (limit {limit:g})")]
    found = []
    for side, part, bound in zip(("low", "high"), (low, high), bounds(layer, name), strict=True):
        if part > MUCH:
            sentence = f"Gate {name} {bound.meaning} {part:.0%} of the time."
            if not bound.harmless:
                sentence += " Its own weights hardly learn there: another bias at the start would help."
            level: Level = "note" if bound.harmless else "problem"
            found.append(Finding(level, layer, sentence, f"{name} at its {side} bound: {part:.3f} (limit {MUCH:g})"))
    return found


def contraction(layer: str, largest: float) -> list[Finding]:
    """Whether no step stretches the state in any direction, so that gradients can only shrink.

    Args:
      layer: its name.
      largest: singular value of any step's Jacobian, in any sequence.
    """
    if not largest < 1:
        return []
    sentence = "Every step shrinks the state in all directions, and gradients on their way back with it."
    return [Finding("note", layer, sentence, f"largest singular value of all steps {largest:.6g} (limit 1)")]


def with_spread(value: float, spread: float) -> str:
    """A mean with its standard deviation, if it has one.

    >>> with_spread(-0.1, 0.02), with_spread(-0.1, float("nan"))
    ('-0.1000 ± 0.0200', '-0.1000')
    """
    return f"{value:+.4f} ± {spread:.4f}" if np.isfinite(spread) else f"{value:+.4f}"


def exponent(layer: str, value: float, spread: float) -> Finding:
    """What the largest Lyapunov exponent says of a layer's memory: its mean over sequences, and their spread."""
    number = f"largest Lyapunov exponent {with_spread(value, spread)} nats a step"
    if not np.isfinite(value):
        sentence = "The layer keeps nothing from one step to the next, or its states are not finite."
        return Finding("problem", layer, sentence, number)
    if value > NEUTRAL:
        sentence = (
            f"The layer is chaotic on these inputs: a small difference grows e-fold every {1 / value:.3g} steps, and "
            "so do gradients. Smaller recurrent weights, normalization or clipping would help."
        )
        return Finding("problem", layer, sentence, number)
    if value < -NEUTRAL:
        sentence = f"The layer forgets a small difference e-fold every {-1 / value:.3g} steps."
        return Finding("note", layer, sentence, number)
    return Finding("good", layer, "The layer neither forgets nor amplifies: it stands at the edge of chaos.", number)


def clipping(fraction: float, skipped: int) -> list[Finding]:
    """What clipping did in training.

    Args:
      fraction: of the steps that were clipped.
      skipped: how many steps were not finite.
    """
    found = []
    number = f"{fraction:.3f} of the steps clipped"
    if fraction > MUCH:
        sentence = (
            f"Gradients were clipped in {fraction:.0%} of the steps: the limit, and not the gradient, set the length "
            "of most. Raise the limit, or lower the learning rate."
        )
        found.append(Finding("problem", "training", sentence, number))
    elif fraction > RARELY:
        found.append(Finding("note", "training", f"Gradients were clipped in {fraction:.0%} of the steps.", number))
    else:
        sentence = "Clipping was rare, or off: it caught outliers alone."
        found.append(Finding("good", "training", sentence, number))
    if skipped:
        sentence = (
            f"{skipped} training steps had a loss or gradient that was not finite and were skipped: look for NaN in "
            "the data, clip, or lower the learning rate."
        )
        found.append(Finding("problem", "training", sentence, f"{skipped} steps skipped (limit 0)"))
    return found


def of_layer(layer: LayerNumbers) -> list[Finding]:
    """Everything found in one layer."""
    found = gradient(layer.name, layer.flow_last)
    for name, sides in layer.gates.items():
        found += gate(layer.name, name, float(np.mean(sides.low)), float(np.mean(sides.high)))
    found += contraction(layer.name, layer.stretch)
    return [*found, exponent(layer.name, *layer.exponent)]


def findings(numbers: Numbers) -> list[Finding]:
    """Everything found, problems first."""
    found = [] if numbers.profile is None else [horizon(numbers.profile, numbers.horizon, numbers.reached)]
    for layer in numbers.layers:
        found += of_layer(layer)
    if numbers.clipping is not None:
        found += clipping(numbers.clipping.clip_fraction, numbers.clipping.skip_count)
    return sorted(found, key=lambda finding: ("problem", "note", "good").index(finding.level))
