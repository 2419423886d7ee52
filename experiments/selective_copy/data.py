# SPDX-License-Identifier: Apache-2.0
"""Sequences of the selective copying task, and what can be reached without memory."""

import math

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
      `xs` and `ys [L + recalled, B]`, tokens of the default integer; only the last `recalled` targets count.

    >>> xs, ys, *_ = sequences(5, 2, 1, np.random.default_rng(0))
    >>> xs[:5][xs[:5] > 0].tolist() == ys[5:, 0].tolist(), xs[5:, 0].tolist()
    (True, [15, 15])

    Source: A. Gu and T. Dao, Mamba, 2023, section 4.1.1; L. Feng et al., Were RNNs All We Needed?, 2024, section 4.2.
    """
    symbols = rng.integers(1, SYMBOLS + 1, (recalled, count))
    places = np.sort(np.argsort(rng.random((L, count), dtype=np.float32), axis=0)[:recalled], axis=0)
    tokens = np.zeros((L + recalled, count), int)
    tokens[places, np.arange(count)] = symbols
    tokens[L:] = TOKENS - 1
    targets = np.zeros_like(tokens)
    targets[L:] = symbols
    return Batch(jnp.asarray(tokens), jnp.asarray(targets))
