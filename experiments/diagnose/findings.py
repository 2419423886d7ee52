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
    """Whether the gradient of the loss at the last step arrives at the first one.

    Args:
      layer: its name.
      norms: `[T]`, ‖dL/dh_t‖.
    """
    steps, largest = len(norms), float(np.max(norms))
    if not np.isfinite(norms).all():
        sentence = "Gradients are not finite: clip, lower the learning rate, or look for NaN in the data."
        return [Finding("problem", layer, sentence, f"{int((~np.isfinite(norms)).sum())} of {steps} steps not finite")]
    if largest == 0:
        return [Finding("problem", layer, "No gradient arrives at this layer at all.", "largest ‖dL/dh_t‖ = 0")]
    found = []
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
    growth = largest / float(norms[-1]) if norms[-1] > 0 else np.inf
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
        found.append(Finding("good", layer, f"The gradient arrives at all {steps} steps.", number))
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


MEANINGS: dict[str, tuple[str, str]] = {
    "i": ("lets nothing in", "lets everything in"),
    "f": ("forgets at once", "keeps everything"),
    "o": ("shows nothing", "shows everything"),
    "z": ("does not keep its state", "keeps its state and takes nothing in"),
    "r": ("ignores its past", "sees all of its past"),
}
"""What a gate does at its lower and at its upper bound."""
HARMLESS = {("f", "high"), ("r", "high"), ("o", "high"), ("i", "high")}
"""Bounds at which a gate lets gradients through."""


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
    meanings = MEANINGS.get(name, ("is closed", "is open"))
    if layer_writes(layer) and name == "z":
        meanings = ("keeps its state and takes nothing in", "overwrites its state")
    found = []
    for side, part, meaning in (("low", low, meanings[0]), ("high", high, meanings[1])):
        if part > MUCH:
            level: Level = "note" if (name, side) in HARMLESS else "problem"
            sentence = f"Gate {name} {meaning} {part:.0%} of the time."
            if level == "problem":
                sentence += " Its own weights hardly learn there: another bias at the start would help."
            found.append(Finding(level, layer, sentence, f"{name} at its {side} bound: {part:.3f} (limit {MUCH:g})"))
    return found


def layer_writes(layer: str) -> bool:
    """Whether the layer's gate z writes, as a minimal GRU's does, and not keeps."""
    return "MinGRU(" in layer


def contraction(layer: str, singular: np.ndarray) -> list[Finding]:
    """Whether no step stretches the state in any direction, so that gradients can only shrink.

    Args:
      layer: its name.
      singular: `[steps]`, the largest singular value of each step's Jacobian.
    """
    largest = float(np.max(singular))
    if not largest < 1:
        return []
    sentence = "Every step shrinks the state in all directions, and gradients on their way back with it."
    return [Finding("note", layer, sentence, f"largest singular value over the steps {largest:.3f} (limit 1)")]


def exponent(layer: str, value: float, spread: float) -> Finding:
    """What the largest Lyapunov exponent says of a layer's memory."""
    number = f"largest Lyapunov exponent {value:+.4f} ± {spread:.4f} nats a step"
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
    number = f"{fraction:.3f} of the logged steps clipped"
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
    found += contraction(layer.name, layer.singular)
    return [*found, exponent(layer.name, layer.exponent, layer.exponent_spread)]


def findings(numbers: Numbers) -> list[Finding]:
    """Everything found, problems first."""
    found = [] if numbers.profile is None else [horizon(numbers.profile, numbers.horizon, numbers.reached)]
    for layer in numbers.layers:
        found += of_layer(layer)
    if numbers.clipping is not None:
        found += clipping(numbers.clipping.clip_fraction, numbers.clipping.skip_count)
    return sorted(found, key=lambda finding: ("problem", "note", "good").index(finding.level))
