# SPDX-License-Identifier: Apache-2.0
"""140 smartwatch recordings of ten people and seven exercises, as the package `seglearn` ships them."""

import functools
import hashlib
import importlib.util
import io
import pathlib
from typing import NamedTuple, Self

import numpy as np

CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
"""Acceleration in g, gravity included, and angular velocity in radians a second."""
MIRROR = np.array([-1, 1, 1, 1, -1, -1], np.float32)
"""What turns a movement of one arm into the other's: x, along the forearm, is the axis whose sense depends on the arm.
Angular velocity is a pseudovector, so that of its parts the two across the mirrored axis change their sign."""
EXERCISES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
PEOPLE = tuple(range(1, 11))
FOLDS = 5
PADDED = 2640
"""Steps that whole recordings are padded to: the longest has 2,618, and 2,640 is five pieces of 528, which
every stride up to 4, and 6, 8, 12 and 16, divides."""
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


class Recordings(NamedTuple):
    """Recordings of 50 steps a second, one entry each."""

    signals: tuple[np.ndarray, ...]  # [T, 6] float32, T from 947 to 2,618
    labels: np.ndarray  # [N] int32, 0 to 6, an index of EXERCISES
    people: np.ndarray  # [N] int32, 1 to 10
    right: np.ndarray  # [N] bool, the arm that the watch was on

    def of(self, people: tuple[int, ...]) -> Self:
        """Those of some people."""
        rows = np.flatnonzero(np.isin(self.people, people))
        signals = tuple(self.signals[row] for row in rows)
        return type(self)(signals, self.labels[rows], self.people[rows], self.right[rows])

    def as_right(self) -> Self:
        """All as the right arm would have made them: those of the left are mirrored, see `MIRROR`."""
        signals = tuple(s if right else s * MIRROR for s, right in zip(self.signals, self.right, strict=True))
        return self._replace(signals=signals, right=np.ones_like(self.right))


class Split(NamedTuple):
    """Who is learnt from, and who is judged by: disjoint."""

    learnt: tuple[int, ...]
    judged: tuple[int, ...]


class Scaler(NamedTuple):
    """What brings channels to mean 0 and standard deviation 1."""

    mean: np.ndarray  # [6] float32
    std: np.ndarray  # [6] float32

    @classmethod
    def fit(cls, recordings: Recordings) -> Self:
        """That of all steps of `recordings`: of the people learnt from, and nobody else."""
        steps = np.concatenate(recordings.signals).astype(np.float64)
        return cls(steps.mean(0).astype(np.float32), steps.std(0).astype(np.float32))

    def scale(self, signal: np.ndarray) -> np.ndarray:
        """`signal [..., 6]`, scaled."""
        return (signal - self.mean) / self.std


@functools.lru_cache(maxsize=1)
def load() -> Recordings:
    """Reads the recordings, after checking that the file is the known one: it is a pickle, which could do anything.

    Raises:
      ValueError: the package is not there, or its file is not that of version 1.2.5.

    Source: D. Burns et al., Shoulder physiotherapy exercise recognition: machine learning the inertial
    signals from a smartwatch, Physiological Measurement 39 (2018), arXiv 1802.01489.
    """
    found = importlib.util.find_spec("seglearn")
    if found is None or found.origin is None:
        raise ValueError(
            "The recordings are in the package seglearn, which is not installed; "
            "install it with: pip install 'seqjax[watch]'."
        )
    raw = read_checked(pathlib.Path(found.origin).parent / "data" / "watch_dataset.npy")
    # the pickle holds arrays and strings alone; which ones is settled by its hash
    fields = np.load(io.BytesIO(raw), allow_pickle=True).item()
    if tuple(fields["X_labels"]) != CHANNELS or tuple(fields["y_labels"]) != EXERCISES:
        raise ValueError(f"The recordings have other channels or exercises than {CHANNELS} and {EXERCISES}.")
    signals = tuple(np.ascontiguousarray(signal, np.float32) for signal in fields["X"])
    for signal in signals:
        signal.flags.writeable = False
    labels, people = (np.asarray(fields[name], np.int32) for name in ("y", "subject"))
    return Recordings(signals, labels, people, np.asarray(fields["side"]) == 1)


def read_checked(path: pathlib.Path) -> bytes:
    """The bytes of the file of recordings.

    Raises:
      ValueError: its sha256 is another one; nothing in it is trusted then.
    """
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the file of seglearn 1.2.5 (its sha256 differs); install that version.")
    return raw


def split(fold: int, *, validation: bool = False) -> Split:
    """The people of a fold. Fold r is judged by people 2r + 1 and 2r + 2, and learns from the other eight.

    Args:
      fold: 0 to 4.
      validation: leave the judges out altogether. The next pair, cyclically, takes their place, and the
        other six are learnt from: what is chosen in this way has never seen whom the fold is judged by.

    Raises:
      ValueError: a fold that there is not.

    >>> split(4)
    Split(learnt=(1, 2, 3, 4, 5, 6, 7, 8), judged=(9, 10))
    >>> split(4, validation=True)
    Split(learnt=(3, 4, 5, 6, 7, 8), judged=(1, 2))
    """
    if fold not in range(FOLDS):
        raise ValueError(f"There are {FOLDS} folds, 0 to {FOLDS - 1}; got {fold}.")
    test, inner = pair(fold), pair((fold + 1) % FOLDS)
    left_out = test + inner if validation else test
    return Split(tuple(p for p in PEOPLE if p not in left_out), inner if validation else test)


def pair(index: int) -> tuple[int, int]:
    """The two people that are judged by together."""
    return 2 * index + 1, 2 * index + 2


def padded(recordings: Recordings, scaler: Scaler, steps: int = PADDED) -> tuple[np.ndarray, np.ndarray]:
    """Whole recordings side by side, with zeros after their ends.

    Returns:
      xs `[steps, N, 6]` float32, scaled, and lengths `[N]` int32.
    """
    xs = np.zeros((steps, len(recordings.signals), len(CHANNELS)), np.float32)
    for index, signal in enumerate(recordings.signals):
        xs[: len(signal), index] = scaler.scale(signal)
    return xs, np.array([len(signal) for signal in recordings.signals], np.int32)


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch's recordings."""
    return np.random.default_rng((seed, epoch)).permutation(count)
