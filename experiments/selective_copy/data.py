# SPDX-License-Identifier: Apache-2.0
"""Sequences of the selective copying task, and what can be reached without memory."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from seqjax.training import Batch

TOKENS = 16
"""0 is the blank, 1 to 14 are symbols, 15 asks for one of them."""
SYMBOLS = TOKENS - 2
CHANCE_ACCURACY = 1 / SYMBOLS
"""The share of symbols that a guess gets right; whatever is guessed, as they are uniform and independent."""
CHANCE_CROSS_ENTROPY = math.log(SYMBOLS)
"""In nats a symbol: the best that has no memory gives each symbol the same probability."""
TRAINING, FRESH = 0, 1
"""Streams of random numbers: what is trained on, and what models are judged by, are never the same."""


def sequences(L: int, recalled: int, count: int, rng: np.random.Generator) -> Batch:
    """Draws `count` sequences of `L + recalled` steps.

    `recalled` symbols stand at as many of the first L steps, all choices of steps being equally likely, and
    blanks at the others; then the token 15 asks for each symbol, in their order.

    Args:
      L: steps among which the symbols are.
      recalled: how many symbols, at most L.
      count: sequences, B.
      rng: what to draw from.

    Returns:
      `xs [L + recalled, B]` and `ys [recalled, B]`, the targets of the last steps alone: tokens of the default integer.

    >>> xs, ys, *_ = sequences(5, 2, 1, np.random.default_rng(0))
    >>> xs[:5][xs[:5] > 0].tolist() == ys[:, 0].tolist(), xs[5:, 0].tolist()
    (True, [15, 15])

    Source: A. Gu and T. Dao, Mamba, 2023, section 4.1.1; L. Feng et al., Were RNNs All We Needed?, 2024, section 4.2.
    """
    symbols = rng.integers(1, SYMBOLS + 1, (recalled, count))
    places = np.sort(np.argsort(rng.random((L, count), dtype=np.float32), axis=0)[:recalled], axis=0)
    tokens = np.zeros((L + recalled, count), int)
    tokens[places, np.arange(count)] = symbols
    tokens[L:] = TOKENS - 1
    return Batch(jnp.asarray(tokens), jnp.asarray(symbols))


def batches(L: int, recalled: int, size: int) -> Callable[[int, int], Batch]:
    """A pure `make_batch(seed, step)` of `size` new sequences for every step."""

    def make_batch(seed: int, step: int) -> Batch:
        return sequences(L, recalled, size, np.random.default_rng((TRAINING, seed, step)))

    return make_batch


def fresh(L: int, recalled: int, count: int, seed: int, size: int = 100) -> list[Batch]:
    """`count` sequences that training never sees, in batches of at most `size`."""
    return [
        sequences(L, recalled, min(size, count - begin), np.random.default_rng((FRESH, seed, begin)))
        for begin in range(0, count, size)
    ]
