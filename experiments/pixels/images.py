# SPDX-License-Identifier: Apache-2.0
"""Images with labels: Fashion-MNIST as Debian packages it, files of one's own in the same format, or made-up ones."""

import gzip
import hashlib
import math
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's and Ubuntu's package `dataset-fashion-mnist` puts its files."""
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
"""Of the package's version 0.0~git20200523.55506a9-1."""
CLASSES = 10
SIZE = 28
"""Rows and columns of the images that are made up, as of MNIST's."""
MADE_UP = (2_000, 500)
"""How many of them are to learn from, and how many to be judged by."""


class Images(NamedTuple):
    """Grey images and what is on them."""

    name: str
    train_images: np.ndarray  # [N, rows, columns] uint8
    train_labels: np.ndarray  # [N] int32, 0 to 9
    test_images: np.ndarray  # [M, rows, columns] uint8
    test_labels: np.ndarray  # [M] int32


def read(folder: pathlib.Path | None = None) -> Images:
    """The four files of a data set in idx format, named as MNIST's are, with or without `.gz`.

    Args:
      folder: where they are; None is the Debian package's, whose sha256 are checked.

    Raises:
      ValueError: no such files, others than those known, or files that are damaged.
      OSError: they cannot be read.
    """
    place = DEBIAN if folder is None else folder
    if not place.is_dir():
        raise ValueError(
            f"There is no folder {place}: install the Debian package dataset-fashion-mnist (apt install "
            "dataset-fashion-mnist), or give the four files of MNIST or Fashion-MNIST as --data FOLDER. "
            "--preset smoke runs without, on images that are made up."
        )
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_find(place, f"{part}-images", 3), 3, known=folder is None)
        labels = read_idx(_find(place, f"{part}-labels", 1), 1, known=folder is None)
        if len(images) != len(labels) or not len(images):
            raise ValueError(f"{place} has {len(images)} {part} images and {len(labels)} labels for them.")
        if labels.max() >= CLASSES:
            raise ValueError(f"{part} labels in {place} must be from 0 to {CLASSES - 1}; one is {labels.max()}.")
        parts += [images, labels.astype(np.int32)]
    if parts[0].shape[1:] != parts[2].shape[1:]:
        raise ValueError(
            f"{place} has training images of {parts[0].shape[1:]} pixels and others of {parts[2].shape[1:]}."
        )
    return Images("Fashion-MNIST" if folder is None else place.resolve().name, *parts)


def _find(folder: pathlib.Path, stem: str, dimensions: int) -> pathlib.Path:
    names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for gz in (".gz", "") for dot in ("-", ".")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has no {names[0]}, packed or not.")


def read_idx(path: pathlib.Path, dimensions: int, *, known: bool = False) -> np.ndarray:
    """An array of bytes in idx format: two zeros, the type 8, the number of dimensions, their sizes, the bytes.

    Args:
      path: of the file, packed by gzip if its name ends in `.gz`.
      dimensions: that it must have.
      known: check it against `SHA256` first.

    Raises:
      ValueError: a file of something else, or cut off.
      OSError: it cannot be read.

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST Database, file formats.
    """
    held = path.read_bytes()
    if known and hashlib.sha256(held).hexdigest() != SHA256[path.name]:
        raise ValueError(
            f"{path} is not the file of Debian's dataset-fashion-mnist that is known (its sha256 differs); "
            "if you trust it, give its folder as --data."
        )
    if path.suffix == ".gz":
        try:
            held = gzip.decompress(held)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}.") from None
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if held[:4] != magic or len(held) < header:
        raise ValueError(
            f"{path} is not an idx file of bytes with {dimensions} dimensions: it begins with {held[:4].hex(' ')}, "
            f"not {magic.hex(' ')}."
        )
    shape = tuple(int.from_bytes(held[at : at + 4], "big") for at in range(4, header, 4))
    if len(held) - header != math.prod(shape):
        raise ValueError(
            f"{path} says it has {shape} bytes, but {len(held) - header} follow; it was cut off or padded."
        )
    return np.frombuffer(held, np.uint8, offset=header).reshape(shape)


def made_up() -> Images:
    """Bright spots in grey noise, each class at a place of its own: to see that the program runs, for nothing else."""
    parts = []
    for seed, count in enumerate(MADE_UP):
        draw = np.random.default_rng(seed)
        labels = draw.integers(CLASSES, size=count)
        angle = 2 * np.pi * labels / CLASSES
        centres = SIZE / 2 + SIZE / 4 * np.stack([np.sin(angle), np.cos(angle)]) + draw.normal(0, 1, (2, count))
        rows, columns = (np.square(np.arange(SIZE) - centre[:, None]) for centre in centres)
        spots = 200 * np.exp(-(rows[:, :, None] + columns[:, None, :]) / 18)
        noise = draw.integers(0, 56, (count, SIZE, SIZE))
        parts += [(spots + noise).astype(np.uint8), labels.astype(np.int32)]
    return Images("made-up spots", *parts)
