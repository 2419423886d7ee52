# SPDX-License-Identifier: Apache-2.0
"""Bach's four-part pieces from package music21 as piano rolls, and piano rolls as MIDI files.

Parsing takes most of a minute, so that its result is kept: in `$XDG_CACHE_HOME/seqjax`, or `~/.cache/seqjax`,
one file for each version of music21.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
import tempfile
import types
import zipfile
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

KEYS = 88
"""Of a piano."""
LOWEST = 21
"""The MIDI number of its lowest key, A0."""
PER_QUARTER = 4
"""Steps of a quarter note: a step is a sixteenth."""
PARTS = 4
"""Voices of a piece that is taken: soprano, alto, tenor, bass."""
KNOWN = {"10.5.1": "93cd75efe760c382f7ba9ae537ec05194a3a305798176655889836863890a129"}
"""sha256 of the rolls of known versions of music21, see `digest`."""

Note = tuple[float, float, int]
"""Onset and length in quarter notes, and MIDI number."""
Pieces = dict[str, np.ndarray]
"""`[T, KEYS]` bool by the name of the piece's file: which keys sound in each sixteenth."""


def roll(notes: Iterable[Note]) -> np.ndarray:
    """Notes on the grid of sixteenths.

    What begins or ends between two steps is moved to the nearest one; a note sounds for one step at
    least, a grace note, which has no length, for none. A note that is struck again is not told from one
    that is held.

    Args:
      notes: of all voices.

    Returns:
      `[T, KEYS]` bool, T up to the end of the last note.

    Raises:
      ValueError: no notes, or one that a piano does not have.

    >>> roll([(0.0, 0.5, 60), (0.25, 0.25, 64)])[:, [39, 43]].astype(int).tolist()
    [[1, 0], [1, 1]]
    """
    spans = []
    for onset, length, pitch in notes:
        if not LOWEST <= pitch < LOWEST + KEYS:
            raise ValueError(
                f"a piano has no key for MIDI number {pitch}; {LOWEST} to {LOWEST + KEYS - 1} are its own."
            )
        if length > 0:
            first = round(PER_QUARTER * onset)
            spans.append((first, max(first + 1, round(PER_QUARTER * (onset + length))), pitch - LOWEST))
    if not spans:
        raise ValueError("there are no notes.")
    made = np.zeros((max(last for _, last, _ in spans), KEYS), bool)
    for first, last, key in spans:
        made[first:last, key] = True
    return made


def pieces() -> Pieces:
    """All pieces of the collection's Bach that have four parts, from the cache or from music21.

    Raises:
      ValueError: music21 is not installed; or a version that is known has other music than it should.
    """
    music21 = _music21()
    version = music21.__version__
    path = cache_folder() / f"chorales-music21-{version}.npz"
    found = read(path)
    if found is None or digest(found) != KNOWN.get(version, digest(found)):
        print("Parsing the scores of music21, once; this takes about a minute.", file=sys.stderr)
        found = parse()
        write(path, found)
    if digest(found) != KNOWN.get(version, digest(found)):
        raise ValueError(
            f"The scores of music21 {version} are not those that are known (sha256 {digest(found)}): "
            "its corpus was changed; install it anew."
        )
    return found


def parse() -> Pieces:
    """Reads the scores, without music21's own cache."""
    music21 = _music21()
    found = {}
    for path in music21.corpus.getComposer("bach"):
        score = music21.converter.parse(path, forceSource=True)
        parts = list(score.parts)
        if len(parts) == PARTS:
            found[pathlib.Path(path).name] = roll(
                (float(note.offset), float(note.quarterLength), pitch.midi)
                for part in parts
                for note in part.flatten().notes
                for pitch in note.pitches
            )
    return dict(sorted(found.items()))


def _music21() -> types.ModuleType:
    try:
        import music21
    except ImportError:
        raise ValueError(
            'The chorales and MIDI files need package music21: pip install "seqjax[experiments,chorales]".'
        ) from None
    return music21


def cache_folder() -> pathlib.Path:
    """Where parsed scores are kept."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seqjax"


def digest(found: Mapping[str, np.ndarray]) -> str:
    """sha256 over the names, lengths and keys of all pieces."""
    made = hashlib.sha256()
    for name, keys in sorted(found.items()):
        made.update(f"{name} {len(keys)}\n".encode() + np.packbits(keys).tobytes())
    return made.hexdigest()


def write(path: pathlib.Path, found: Mapping[str, np.ndarray]) -> None:
    """Keeps pieces in a file that is there whole or not at all. A cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                lengths = np.array([len(keys) for keys in found.values()])
                bits = np.packbits(np.concatenate(list(found.values())), axis=1)
                np.savez_compressed(file, names=np.array(list(found)), lengths=lengths, bits=bits)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise


def read(path: pathlib.Path) -> Pieces | None:
    """The pieces that were kept; None where there are none, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            keys = np.unpackbits(kept["bits"], axis=1, count=KEYS).astype(bool)
            cuts = np.cumsum(kept["lengths"])
            if cuts[-1] != len(keys):
                return None
            parts = np.split(keys, cuts[:-1])
            return dict(zip((str(name) for name in kept["names"]), parts, strict=True))
    except (OSError, EOFError, ValueError, KeyError, IndexError, zlib.error, zipfile.BadZipFile):
        return None


def notes(keys: np.ndarray, steps_per_quarter: int) -> list[Note]:
    """The notes of a roll: each key from where it begins to sound to where it ends.

    Args:
      keys: `[T, KEYS]` bool.
      steps_per_quarter: of the roll.

    >>> made = np.zeros((4, KEYS), bool)
    >>> made[1:3, 39] = True
    >>> notes(made, 4)
    [(0.25, 0.5, 60)]
    """
    edges = np.diff(np.pad(keys.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    made = []
    for key in range(KEYS):
        starts, ends = np.flatnonzero(edges[:, key] == 1), np.flatnonzero(edges[:, key] == -1)
        made += [
            (start / steps_per_quarter, (end - start) / steps_per_quarter, LOWEST + key)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
    return sorted(made)


def write_midi(path: pathlib.Path, keys: np.ndarray, steps_per_quarter: int) -> None:
    """Writes a roll as a MIDI file, at music21's 120 quarter notes a minute.

    Raises:
      ValueError: music21 is not installed, or no note sounds.
      OSError: the file cannot be written.
    """
    music21 = _music21()
    stream = music21.stream.Stream()
    for onset, length, pitch in notes(keys, steps_per_quarter):
        stream.insert(onset, music21.note.Note(pitch, quarterLength=length))
    if not len(stream):
        raise ValueError("no note sounds; there is no music to write.")
    stream.write("midi", fp=path)
