# SPDX-License-Identifier: Apache-2.0
"""From images to sequences: scaled pixels in a fixed order, split, batches."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.pixels import images
from experiments.pixels.images import Images
from seqjax.training import Batch

VALID = 12
"""Every twelfth training image is kept for validation: 5,000 of 60,000."""

Part = Literal["train", "valid", "test"]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Pixels `[N, T]` uint8 in the order in which a model sees them, labels `[N]` int32; the training part's scale."""

    name: str
    pixels: dict[Part, np.ndarray]
    labels: dict[Part, np.ndarray]
    mean: float
    std: float

    @property
    def steps(self) -> int:
        """Pixels of an image, T."""
        return self.pixels["train"].shape[1]

    def describe(self) -> dict[str, Any]:
        """What the images were, as JSON."""
        digest = hashlib.sha256()
        for part, pixels in self.pixels.items():
            digest.update(np.ascontiguousarray(pixels).tobytes() + self.labels[part].tobytes())
        return {
            "name": self.name,
            "images": {part: len(labels) for part, labels in self.labels.items()},
            "sha256": digest.hexdigest(),
        }

    def batch(self, part: Part, rows: np.ndarray) -> Batch:
        """`xs [T, B, 1]` float32 with mean 0 and standard deviation 1, and `ys [1, B]`: a label for the last step."""
        xs = ((self.pixels[part][rows].T - self.mean) / self.std).astype(np.float32)
        return Batch(jnp.asarray(xs[..., None]), jnp.asarray(self.labels[part][rows][None]))

    def all(self, part: Part, size: int = 250) -> list[Batch]:
        """A part in batches of one shape, so that one compilation serves all; the last is filled with masked images."""
        count = len(self.labels[part])
        batches = []
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            there = np.broadcast_to(rows < count, (self.steps, size))
            batches.append(self.batch(part, np.minimum(rows, count - 1))._replace(mask=jnp.asarray(there)))
        return batches


@functools.lru_cache(maxsize=2)
def load(
    folder: str | None = None,
    *,
    permutation: int | None = None,
    pool: int = 1,
    limit: int | None = None,
    stand_in: bool = False,
) -> Sequences:
    """The images that `--data` names, as sequences.

    Args:
      folder: of idx files; None is the Debian package's.
      permutation: seed of one order of the pixels for all images; None takes them row by row.
      pool: squares of so many pixels a side become one, their mean.
      limit: use the first so many images of each part at most.
      stand_in: where there are no files and no folder is named, use images that are made up.

    Raises:
      ValueError: no images, or none that can be pooled so.
      OSError: they cannot be read.
    """
    made_up = stand_in and folder is None and not images.DEBIAN.is_dir()
    return sequences(
        images.made_up() if made_up else images.read(None if folder is None else pathlib.Path(folder)),
        permutation,
        pool,
        limit,
    )


def sequences(found: Images, permutation: int | None, pool: int, limit: int | None) -> Sequences:
    """`found` as sequences; see `load`."""
    learnt = pooled(found.train_images, pool)
    judged = pooled(found.test_images, pool)
    order = np.arange(learnt.shape[1])
    if permutation is not None:
        order = np.random.default_rng(permutation).permutation(order)
    valid = np.arange(len(learnt)) % VALID == VALID - 1
    pixels: dict[Part, np.ndarray] = {"train": learnt[~valid], "valid": learnt[valid], "test": judged}
    labels: dict[Part, np.ndarray] = {
        "train": found.train_labels[~valid],
        "valid": found.train_labels[valid],
        "test": found.test_labels,
    }
    if not len(labels["valid"]):
        raise ValueError(f"{found.name} has {len(learnt)} training images; at least {VALID} are needed.")
    pixels = {part: np.ascontiguousarray(held[:limit, order]) for part, held in pixels.items()}
    std = float(pixels["train"].std())
    if std == 0:
        raise ValueError(f"The training images of {found.name} are all of one grey; there is nothing to learn.")
    kind = "sequential" if permutation is None else f"permuted (seed {permutation})"
    name = f"{found.name}, {kind}, {len(order)} steps"
    return Sequences(name, pixels, {p: held[:limit] for p, held in labels.items()}, float(pixels["train"].mean()), std)


def pooled(grey: np.ndarray, side: int) -> np.ndarray:
    """`grey [N, rows, columns]` with the means of squares, row by row: `[N, rows * columns / side²]` uint8.

    Raises:
      ValueError: the images cannot be cut into such squares.

    >>> pooled(np.array([[[0, 2], [4, 6]]], np.uint8), 2).tolist()
    [[3]]
    """
    count, rows, columns = grey.shape
    if rows % side or columns % side:
        raise ValueError(f"--pool {side} does not divide images of {rows} x {columns} pixels.")
    squares = grey.reshape(count, rows // side, side, columns // side, side)
    return squares.mean((2, 4), dtype=np.float32).astype(np.uint8).reshape(count, -1)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch's images."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def batch(held: Sequences, *, size: int, seed: int, step: int) -> Batch:
    """The batch of one training step, a pure function of `(seed, step)`; each epoch is a permutation in full batches.

    Raises:
      ValueError: fewer training images than a batch.
    """
    count = len(held.labels["train"])
    if count < size:
        raise ValueError(f"There are {count} training images, fewer than --batch-size {size}; choose a smaller one.")
    epoch, index = divmod(step, count // size)
    return held.batch("train", _order(seed, epoch, count)[index * size : (index + 1) * size])


def least_squares_accuracy(held: Sequences) -> float:
    """Percent of the test images that one linear map of all pixels tells right, fitted in closed form."""
    inputs = [
        np.column_stack([np.ones(len(held.labels[part])), held.pixels[part].astype(np.float64) / 255])
        for part in ("train", "test")
    ]
    # the normal equations, not a decomposition of all images; a little ridge for pixels that never change
    gram = inputs[0].T @ inputs[0] + 1e-3 * np.eye(inputs[0].shape[1])
    aims = np.eye(images.CLASSES)[held.labels["train"]]
    weights = np.linalg.solve(gram, inputs[0].T @ aims)
    return float(100 * np.mean((inputs[1] @ weights).argmax(1) == held.labels["test"]))
