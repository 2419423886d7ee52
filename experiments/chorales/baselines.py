# SPDX-License-Identifier: Apache-2.0
"""What any model must beat: counted frequencies of notes, alone and given the chord before. In closed form."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiments.chorales.data import KEYS

Pieces = Sequence[np.ndarray]


def independent(train: Pieces, test: Pieces) -> float:
    """Each note has a probability of its own, p = (times that it sounds + 1) / (steps + 2).

    Args:
      train, test: `[T, KEYS]` bool each; the first step of a piece is not predicted.

    Returns:
      The mean over steps of -Σ log p over the 88 notes, in nats.
    """
    _, after = _pairs(train)
    return _nats(np.broadcast_to(_share(after.sum(0), len(after)), (1, KEYS)), _pairs(test)[1])


def repeat_last(train: Pieces, test: Pieces) -> float:
    """The last chord goes on, smoothed: one probability for a note that sounds, one for a note that does not.

    Args and Returns: see `independent`.
    """
    before, after = _pairs(train)
    on = _share((before & after).sum(), before.sum())
    new = _share((~before & after).sum(), (~before).sum())
    before, after = _pairs(test)
    return _nats(np.where(before, on, new), after)


def note_chains(train: Pieces, test: Pieces) -> float:
    """As `repeat_last`, with two probabilities for each of the 88 notes.

    Args and Returns: see `independent`.
    """
    before, after = _pairs(train)
    on = _share((before & after).sum(0), before.sum(0))
    new = _share((~before & after).sum(0), (~before).sum(0))
    before, after = _pairs(test)
    return _nats(np.where(before, on, new), after)


def _pairs(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """All steps that have one after them, and those after them: `[steps, KEYS]` bool each."""
    return np.concatenate([keys[:-1] for keys in pieces]), np.concatenate([keys[1:] for keys in pieces])


def _share(times: ArrayLike, steps: ArrayLike) -> np.ndarray:
    """Laplace's rule: never 0, never 1."""
    return (np.asarray(times) + 1) / (np.asarray(steps) + 2)


def _nats(probabilities: np.ndarray, keys: np.ndarray) -> float:
    return float(-np.where(keys, np.log(probabilities), np.log1p(-probabilities)).sum(1).mean())
