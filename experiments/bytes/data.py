# SPDX-License-Identifier: Apache-2.0
"""Text as bytes: Python's own sources or the user's, the first 90% to learn from and the last 10% to be judged by."""

import bz2
import dataclasses
import functools
import hashlib
import lzma
import pathlib
import platform
import sysconfig
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

LEARNT = 0.9
"""The part of the text that is learnt from."""
COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "zlib": lambda text: zlib.compress(text, 9),
    "bz2": lambda text: bz2.compress(text, 9),
    "lzma": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}
"""Each at its strongest."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text.

    Args:
      name: in words.
      text: all files, one after the other.
      manifest: `(name, bytes, sha256)` of each file, in their order.
    """

    name: str
    text: bytes
    manifest: tuple[tuple[str, int, str], ...]

    @property
    def cut(self) -> int:
        """Where the part to be judged by begins."""
        return int(len(self.text) * LEARNT)

    @property
    def ids(self) -> np.ndarray:
        """`[N]` int32, 0 to 255."""
        return np.frombuffer(self.text, np.uint8).astype(np.int32)

    @property
    def sha256(self) -> str:
        """Of the manifest: which text it was."""
        lines = "".join(f"{name}\t{size}\t{digest}\n" for name, size, digest in self.manifest)
        return hashlib.sha256(lines.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the text was, as JSON."""
        return {
            "name": self.name,
            "files": len(self.manifest),
            "bytes": len(self.text),
            "learnt": self.cut,
            "sha256": self.sha256,
            "manifest": [list(entry) for entry in self.manifest],
        }


@functools.lru_cache(maxsize=2)
def load(path: str | None = None, limit: int | None = None) -> Corpus:
    """The text of a file, of all files in a folder, or of Python's standard library.

    The library's text is that of its modules that are one file, `abc.py` to `zipimport.py`, in the order of
    their names: 4.7 MB in Python 3.11. It differs between versions, and the manifest says which it is.

    Args:
      path: a file; or a folder, whose files, those of its folders too, come in the order of their paths,
        hidden ones left out; or None.
      limit: the first so many bytes alone.

    Raises:
      ValueError: nothing there, or less than 1,000 bytes.
      OSError: a file that cannot be read.
    """
    if path is None:
        root = pathlib.Path(sysconfig.get_path("stdlib"))
        name, files = f"standard library of Python {platform.python_version()}", sorted(root.glob("*.py"))
    else:
        root = pathlib.Path(path)
        name, files = root.name, [root] if root.is_file() else _visible(root)
    if not files:
        raise ValueError(f"{root} holds no files; give a file or a folder of text with --data.")
    return join(name, root, files, limit)


def join(name: str, root: pathlib.Path, files: Sequence[pathlib.Path], limit: int | None = None) -> Corpus:
    """The text of these files, named from `root`."""
    pieces, manifest = [], []
    for file in files:
        piece = file.read_bytes()
        pieces.append(piece)
        called = file.relative_to(root).as_posix() if file != root else file.name
        manifest.append((called, len(piece), hashlib.sha256(piece).hexdigest()))
    text = b"".join(pieces)[:limit]
    if len(text) < 1000:
        raise ValueError(
            f"{root} has {len(text)} bytes of text; at least 1,000 are needed to learn from and be judged."
        )
    return Corpus(name, text, tuple(manifest))


def _visible(root: pathlib.Path) -> list[pathlib.Path]:
    found = (file for file in root.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts))


@functools.lru_cache(maxsize=2)
def compressed(corpus: Corpus) -> dict[str, float]:
    """Bits a byte that compressors need for the last part when they have seen the first.

    Of each: what the whole becomes, less what the first part becomes, measured here and now.

    >>> corpus = Corpus("zeros", bytes(2000), ())
    >>> compressed(corpus)["lzma"] < 0.5
    True
    """
    first, judged = corpus.text[: corpus.cut], len(corpus.text) - corpus.cut
    return {
        name: 8 * (len(compress(corpus.text)) - len(compress(first))) / judged for name, compress in COMPRESSORS.items()
    }
