# SPDX-License-Identifier: Apache-2.0
"""What it means that a gate or an activation stands at its bounds."""

from typing import NamedTuple

from experiments.diagnose.finding import MUCH, OFF, Finding, Level


class Bound(NamedTuple):
    """What a gate does that stands at one of its bounds."""

    meaning: str
    harmless: bool = False
    """Whether gradients reach earlier states there: a gate that keeps is how a layer remembers, and may be meant to."""


KEEPS = Bound("keeps its state and takes in little", harmless=True)
GATES: dict[str, tuple[Bound, Bound]] = {
    "i": (Bound("lets little in", harmless=True), Bound("lets everything in", harmless=True)),
    "f": (Bound("forgets at once"), Bound("keeps everything", harmless=True)),
    "o": (Bound("shows nothing"), Bound("shows everything", harmless=True)),
    "z": (Bound("does not keep its state"), KEEPS),
    "r": (Bound("ignores its past"), Bound("sees all of its past", harmless=True)),
}
"""At the lower and the upper bound."""
GATES_OF: dict[tuple[str, str], tuple[Bound, Bound]] = {
    ("MinGRU", "z"): (KEEPS, Bound("overwrites its state")),
    ("MinLSTM", "f"): (Bound("overwrites its state"), KEEPS),
    ("DiagonalLSTM", "f"): (Bound("overwrites its state"), KEEPS),
    ("RGLRU", "r"): (KEEPS, Bound("forgets as fast as its decays allow", harmless=True)),
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
