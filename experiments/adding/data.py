# SPDX-License-Identifier: Apache-2.0
"""Sequences of the adding problem: random numbers, two of them marked, and their sum."""

import jax.numpy as jnp
import numpy as np

from seqjax.training import Batch

CHANCE = 1 / 6
"""The mean squared error of always saying 1: the sum of two numbers of U(0, 1) has the variance 2/12."""
SHORTEST = 50
"""A curriculum begins with sequences of at least so many steps."""


def sequences(T: int, count: int, rng: np.random.Generator) -> Batch:
    """Draws `count` sequences of `T` steps.

    Feature 0 of a step is a number of U(0, 1), feature 1 is 1 at two steps and 0 at all others: one step
    of the first half of the sequence and one of the second, each uniform over its half.

    Args:
      T: steps, at least 2.
      count: sequences, B.
      rng: what to draw from.

    Returns:
      `xs [T, B, 2]` and `ys [1, B, 1]`, the sum of the two marked numbers; float32.

    >>> xs, ys, *_ = sequences(4, 1, np.random.default_rng(0))
    >>> bool(np.isclose((xs[..., 0] * xs[..., 1]).sum(), ys.item())), xs[..., 1].sum().item()
    (True, 2.0)

    Source: S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, 1997, experiment 4, as later papers have it
    (Q. V. Le, N. Jaitly and G. Hinton, 2015).
    """
    numbers = rng.random((T, count), dtype=np.float32)
    marks = np.zeros((T, count), np.float32)
    rows = np.arange(count)
    marks[rng.integers(0, T // 2, count), rows] = 1
    marks[rng.integers(T // 2, T, count), rows] = 1
    return Batch(jnp.asarray(np.stack([numbers, marks], axis=-1)), jnp.asarray((numbers * marks).sum(0)[None, :, None]))


def stage_length(T: int, step: int, curriculum: int) -> int:
    """The length of the sequences of a training step.

    T is halved as long as at least 50 steps are left; these lengths, from the shortest, share the
    `curriculum` steps evenly, and after them T itself is trained.

    >>> [stage_length(400, step, curriculum=6) for step in range(7)]
    [50, 50, 100, 100, 200, 200, 400]
    """
    lengths: list[int] = []
    shorter = T // 2
    while shorter >= SHORTEST:
        lengths.insert(0, shorter)
        shorter //= 2
    if step >= curriculum or not lengths:
        return T
    return lengths[step * len(lengths) // curriculum]
