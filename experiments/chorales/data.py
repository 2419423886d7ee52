# SPDX-License-Identifier: Apache-2.0
"""A corpus of piano rolls in three parts, and batches of it."""

import dataclasses
import functools
import hashlib
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from experiments.chorales import scores
from experiments.chorales.scores import KEYS
from seqjax.training import Batch

Part = Literal["train", "valid", "test"]
SHARES = (0.6, 0.8)
"""Where validation begins and where it ends, as parts of the pieces."""
OPENING = 12
"""Steps of a melody by which it is known."""
SPLIT_SEED = 0
LITERATURE = {"jsb": "JSB", "nottingham": "Nottingham"}
"""The names of published sets by what the file's name contains."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Pieces to learn from and to be judged by; each is `[T, KEYS]` bool.

    Args:
      name: of the collection.
      published: the set of the literature that it is, if it is one.
      steps_per_quarter: how long a step sounds.
      transpose: by how many semitones training pieces may be shifted up or down, where nothing else is asked for.
      train, valid, test: pieces.
    """

    name: str
    published: str | None
    steps_per_quarter: int
    transpose: int
    train: Sequence[np.ndarray]
    valid: Sequence[np.ndarray]
    test: Sequence[np.ndarray]

    @property
    def parts(self) -> Mapping[Part, Sequence[np.ndarray]]:
        """The three parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def sha256(self) -> str:
        """By which all pieces are known again."""
        digest = hashlib.sha256()
        for part in self.parts.values():
            for keys in part:
                digest.update(str(keys.shape).encode() + np.ascontiguousarray(keys).tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """The name, and how many pieces and steps each part has."""
        counts = (f"{len(part)} pieces with {sum(map(len, part)):,} steps" for part in self.parts.values())
        return f"{self.name}: training, validation and test have " + ", ".join(counts)


@functools.lru_cache(maxsize=4)
def load(data: str | None = None, steps_per_quarter: int | None = None) -> Corpus:
    """The corpus that `--data` and `--steps-per-quarter` name.

    Args:
      data: a `.mat` file of the literature; None is music21's Bach.
      steps_per_quarter: of music21's, 4, 2 or 1: the grid; of a file: how long its steps sound, 1 if None.

    Raises:
      ValueError: no such data, or something else than that.
      OSError: the file cannot be read.
    """
    if data is not None:
        return read_mat(pathlib.Path(data), steps_per_quarter or 1)
    grid = steps_per_quarter or scores.PER_QUARTER
    if scores.PER_QUARTER % grid:
        raise ValueError(f"--steps-per-quarter must divide {scores.PER_QUARTER}, got {grid}: the scores are in 16ths.")
    found = {name: keys[:: scores.PER_QUARTER // grid] for name, keys in scores.pieces().items()}
    names = {4: "sixteenths", 2: "eighths", 1: "quarters"}
    train, valid, test = ([found[name] for name in part] for part in split(scores.pieces()))
    return Corpus(f"Bach in four parts (music21), {names[grid]}", None, grid, 5, train, valid, test)


def split(pieces: Mapping[str, np.ndarray]) -> tuple[list[str], list[str], list[str]]:
    """Names of the training, validation and test pieces: 60, 20 and 20% of them, the same at every call.

    Pieces that open with the same melody, in whatever key, stay together: Bach set many hymns several
    times, and some pieces stand twice in the collection.
    """
    families: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(pieces):
        families.setdefault(melody(pieces[name]), []).append(name)
    groups = list(families.values())
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    dealt = 0
    for index in np.random.default_rng(SPLIT_SEED).permutation(len(groups)):
        parts[sum(dealt >= share * len(pieces) for share in SHARES)].extend(groups[index])
        dealt += len(groups[index])
    return parts


def melody(keys: np.ndarray) -> tuple[int, ...]:
    """The first intervals of the highest voice in semitones, repeated notes left out."""
    top = KEYS - 1 - np.argmax(keys[:, ::-1], axis=1)[keys.any(1)]
    intervals = np.diff(top)
    return tuple(intervals[intervals != 0][:OPENING].tolist())


def read_mat(path: pathlib.Path, steps_per_quarter: int = 1) -> Corpus:
    """A `.mat` file of the literature: cell arrays `traindata`, `validdata` and `testdata` of `[T, 88]` rolls.

    Raises:
      ValueError: a file that has something else.
      OSError: it cannot be read.
    """
    import scipy.io

    file = io.BytesIO(path.read_bytes())
    try:
        held = scipy.io.loadmat(file)
    except Exception as error:  # of many kinds, by the byte that is wrong or missing
        raise ValueError(f"{path} is not a MATLAB file that can be read: {error}.") from None
    parts = {}
    for name in ("traindata", "validdata", "testdata"):
        if name not in held:
            there = ", ".join(sorted(key for key in held if not key.startswith("__"))) or "nothing"
            raise ValueError(f"{path} has no {name}; it has {there}.")
        cells = held[name].ravel()
        if held[name].dtype != object or not cells.size:
            raise ValueError(f"{name} of {path} must be a cell array of pieces, got an array of {held[name].dtype}.")
        parts[name] = [_piece(f"{name}[{i}] of {path}", keys) for i, keys in enumerate(cells)]
    known = next((name for part, name in LITERATURE.items() if part in path.name.lower()), None)
    return Corpus(path.stem, known, steps_per_quarter, 0, *parts.values())


def _piece(name: str, keys: np.ndarray) -> np.ndarray:
    if keys.ndim != 2 or keys.shape[1] != KEYS or len(keys) < 2:
        raise ValueError(f"{name} must be [T, {KEYS}] with T of at least 2, got {list(keys.shape)}.")
    if not np.isin(keys, (0, 1)).all():
        raise ValueError(f"{name} must hold zeros and ones alone.")
    return keys.astype(bool)


def batch(pieces: Sequence[np.ndarray], *, size: int, crop: int, transpose: int, seed: int, step: int) -> Batch:
    """The batch of one training step, a pure function of `(seed, step)`.

    Pieces are drawn as often as they are long, so that steps count alike. Of a longer one a random
    stretch is taken, and each is shifted by a random number of semitones, as far as the piano goes.

    Args:
      pieces: `[T, KEYS]` bool each.
      size: of the batch, B.
      crop: steps that are predicted at most.
      transpose: semitones up or down at most.
      seed, step: decide what is drawn.

    Returns:
      See `padded`; T is `crop`.
    """
    draw = np.random.default_rng((seed, step))
    lengths = np.array([len(keys) for keys in pieces])
    chosen = draw.choice(len(pieces), size, p=lengths / lengths.sum())
    taken = []
    for index in chosen:
        start = int(draw.integers(max(lengths[index] - crop, 1)))
        taken.append(shifted(pieces[index][start : start + crop + 1], int(draw.integers(-transpose, transpose + 1))))
    return padded(taken, crop)


def shifted(keys: np.ndarray, semitones: int) -> np.ndarray:
    """`keys` that many semitones higher, or as far as they go without leaving the piano."""
    used = np.flatnonzero(keys.any(0))
    if not used.size:
        return keys
    return np.roll(keys, np.clip(semitones, -used[0], KEYS - 1 - used[-1]), axis=1)


def padded(pieces: Sequence[np.ndarray], T: int) -> Batch:
    """Pieces side by side: from all steps up to t the keys of step t + 1 are to be predicted.

    Returns:
      `xs` and `ys` `[T, B, KEYS]` float32 of zeros and ones, and `mask [T, B]`, False after a piece's last step.
    """
    xs = np.zeros((T, len(pieces), KEYS), np.float32)
    ys, mask = np.zeros_like(xs), np.zeros(xs.shape[:2], bool)
    for column, keys in enumerate(pieces):
        steps = len(keys) - 1
        xs[:steps, column], ys[:steps, column], mask[:steps, column] = keys[:-1], keys[1:], True
    return Batch(jnp.asarray(xs), jnp.asarray(ys), jnp.asarray(mask))


def whole(pieces: Sequence[np.ndarray], T: int, size: int = 32) -> list[Batch]:
    """All pieces in their full length, in batches of one shape: the last is filled with padding alone."""
    nothing = np.zeros((1, KEYS), bool)
    batches = []
    for start in range(0, len(pieces), size):
        chosen = list(pieces[start : start + size])
        batches.append(padded(chosen + [nothing] * (size - len(chosen)), T))
    return batches
