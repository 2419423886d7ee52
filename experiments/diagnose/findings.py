# SPDX-License-Identifier: Apache-2.0
"""From numbers to sentences, each of which states its number.

The functions take numbers alone, so that each threshold is tested on both of its sides.
"""

import math

import numpy as np

from experiments.diagnose.finding import EXPLODED, MUCH, NEUTRAL, RARELY, VANISHED, Finding, Level
from experiments.diagnose.gates import gate
from experiments.diagnose.measure import LayerNumbers, Numbers


def remedy(layer: str, stride: bool) -> str:
    """What lets a layer remember for longer, from its cell and from whether a stride can come before it.

    >>> remedy("0 Simple(4)", True), remedy("0 Simple(4)", False)
    ('a strided front end, LSTM or GRU', 'LSTM or GRU')
    """
    known = (cures for cell, cures in REMEDIES if cell in layer)
    *others, last = (*["a strided front end"] * stride, *next(known, ("LSTM", "a larger forget bias")))
    return f"{', '.join(others)} or {last}" if others else last


REMEDIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("MinGRU(", ("a lower bias of gate z, which writes",)),
    ("LSTM(", ("a larger forget bias",)),
    ("GRU(", ("a larger bias of the gate that keeps", "LSTM")),
    ("Simple(", ("LSTM", "GRU")),
    ("IndRNN(", ("recurrent weights nearer to 1", "LSTM", "GRU")),
    ("LRU(", ("decays that start nearer to 1",)),
)
"""What helps by a cell's name, or the end of it; the first that fits."""


def gradient(layer: str, norms: np.ndarray, rate: float, stride: bool = True) -> list[Finding]:
    """Whether the gradient that comes through the last output arrives at the first step, or explodes on its way.

    A gradient can also be larger at early steps because more of it comes in there: in a layer that goes backward,
    say, whose first step it is that the last output sees. What explodes is what the recurrence itself enlarges. It
    does so by about exp(λ) a step, λ being its largest Lyapunov exponent, so only as much of the growth counts.

    Args:
      layer: its name.
      norms: `[T]`, ‖dL/dh_t‖, in the order in which the layer goes.
      rate: λ of the sequence where it is largest, in nats a step.
      stride: whether a strided front end could come before it.
    """
    every, largest = len(norms), float(np.max(norms))
    if not np.isfinite(norms).all():
        sentence = "Gradients are not finite: clip, lower the learning rate, or look for NaN in the data."
        return [Finding("problem", layer, sentence, f"{int((~np.isfinite(norms)).sum())} of {every} steps not finite")]
    if largest == 0:
        return [Finding("problem", layer, "No gradient arrives at this layer at all.", "largest ‖dL/dh_t‖ = 0")]
    found = []
    seen, arrived = np.flatnonzero(norms), np.flatnonzero(norms >= VANISHED * largest)
    steps, first = int(seen[-1]) + 1, int(arrived[0])
    number = f"‖dL/dh_t‖ at the first step is {float(norms[0]) / largest:.2g} of its largest, {largest:.3g}"
    if first > 0:
        sentence = (
            f"Gradients vanish before step {first} of {steps}: what came earlier is not learnt from the last output"
        )
        much, cure = first > MUCH * steps, remedy(layer, stride)
        sentence += f"; {cure} would help." if much else f". If it should be, {cure} would help."
        found.append(Finding("problem" if much else "note", layer, sentence, number))
    place = int(np.argmax(norms))
    ratio = largest / float(norms[steps - 1])
    growth = min(ratio, math.exp(min(rate * (steps - 1 - place), 700))) if ratio > 1 else ratio
    if growth > EXPLODED:
        sentence = (
            f"Gradients explode backward in time: the recurrence makes them {growth:.3g} times larger from the last "
            f"step to step {place}. Clip them, normalize inside the recurrence, or start with smaller recurrent "
            "weights."
        )
        number = f"largest ‖dL/dh_t‖ / last = {ratio:.3g} (limit {EXPLODED:g}), exponent {rate:+.4f}"
        found.append(Finding("problem", layer, sentence, number))
    if not found:
        end = int(arrived[-1]) + 1
        which = f"all {every} steps" if end == every else f"the first {end} of {every} steps, all that it comes from"
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


def with_spread(exponents: np.ndarray) -> str:
    """The mean of those that are finite, with the sample standard deviation if there are several.

    >>> with_spread(np.array([-0.1, -0.3])), with_spread(np.array([-0.1, -np.inf]))
    ('-0.2000 ± 0.1414', '-0.1000')
    """
    finite = exponents[np.isfinite(exponents)]
    if not finite.size:
        return "-inf" if np.isneginf(exponents).any() else "unknown"
    return f"{finite.mean():+.4f}" + (f" ± {finite.std(ddof=1):.4f}" if finite.size > 1 else "")


def exponent(layer: str, exponents: np.ndarray) -> list[Finding]:
    """What the largest Lyapunov exponents say of a layer's memory.

    Args:
      layer: its name.
      exponents: `[sequences]`, of each the largest one, in nats a step.
    """
    every, lost = len(exponents), int(np.isneginf(exponents).sum())
    if np.isnan(exponents).any():
        sentence = "The layer's states, or how they depend on each other, are not finite."
        number = f"Lyapunov exponents: {int(np.isnan(exponents).sum())} of {every} are not numbers"
        return [Finding("problem", layer, sentence, number)]
    found = []
    if lost:
        sentence = (
            f"In {lost} of {every} sequences there is a step that forgets everything before it, as one does in which "
            "all units of a relu are off: one such step is enough. Another bias at the start, or tanh, would help."
        )
        level: Level = "problem" if lost > MUCH * every else "note"
        found.append(Finding(level, layer, sentence, f"largest Lyapunov exponent -inf in {lost} of {every} sequences"))
    if lost < every:
        found.append(_rate(layer, float(np.mean(exponents[np.isfinite(exponents)])), with_spread(exponents)))
    return found


def _rate(layer: str, value: float, told: str) -> Finding:
    number = f"largest Lyapunov exponent {told} nats a step"
    if value > NEUTRAL:
        sentence = (
            f"The layer amplifies on these inputs: a small difference grows e-fold every {1 / value:.3g} steps, and so "
            "do gradients. It is chaotic if its states stay bounded. Smaller recurrent weights, normalization or "
            "clipping would help."
        )
        return Finding("problem", layer, sentence, number)
    if value < -NEUTRAL:
        sentence = f"The layer forgets a small difference e-fold every {-1 / value:.3g} steps."
        return Finding("note", layer, sentence, number)
    sentence = "The layer neither forgets nor amplifies: a small difference changes by at most 1% a step."
    return Finding("good", layer, sentence, number)


def clipping(clipped: int, skipped: int, steps: int) -> list[Finding]:
    """What clipping did in training.

    Args:
      clipped: how many steps were clipped.
      skipped: how many steps were not finite.
      steps: how many there were.
    """
    found = []
    fraction = clipped / steps
    number = f"{clipped:,} of {steps:,} steps clipped"
    if fraction > MUCH:
        sentence = (
            f"Gradients were clipped in {fraction:.0%} of the steps: the limit, and not the gradient, set the length "
            "of most. Raise the limit, or lower the learning rate."
        )
        found.append(Finding("problem", "training", sentence, number))
    elif fraction > RARELY:
        found.append(Finding("note", "training", f"Gradients were clipped in {fraction:.0%} of the steps.", number))
    elif clipped:
        found.append(Finding("good", "training", "Clipping was rare: it caught outliers alone.", number))
    else:
        sentence = "No gradient was clipped: none was above the limit, or there was no limit."
        found.append(Finding("good", "training", sentence, number))
    if skipped:
        sentence = (
            f"{skipped} training steps had a loss or gradient that was not finite and were skipped: look for NaN in "
            "the data, clip, or lower the learning rate."
        )
        found.append(Finding("problem", "training", sentence, f"{skipped} steps skipped (limit 0)"))
    return found


def of_layer(layer: LayerNumbers, stride: bool) -> list[Finding]:
    """Everything found in one layer; `stride` is whether a strided front end could come before it."""
    largest = float(np.max(layer.exponents[np.isfinite(layer.exponents)], initial=-np.inf))
    found = gradient(layer.name, layer.flow_last, largest, stride)
    for name, sides in layer.gates.items():
        found += gate(layer.name, name, float(np.mean(sides.low)), float(np.mean(sides.high)))
    return found + contraction(layer.name, layer.stretch) + exponent(layer.name, layer.exponents)


def findings(numbers: Numbers) -> list[Finding]:
    """Everything found, problems first."""
    found = [] if numbers.profile is None else [horizon(numbers.profile, numbers.horizon, numbers.reached)]
    for layer in numbers.layers:
        found += of_layer(layer, numbers.stride)
    if (history := numbers.clipping) is not None:
        steps = int(history.steps[-1])
        found += clipping(round(history.clip_fraction * steps), history.skip_count, steps)
    return sorted(found, key=lambda finding: ("problem", "note", "good").index(finding.level))
