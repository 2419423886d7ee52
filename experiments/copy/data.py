# SPDX-License-Identifier: Apache-2.0
"""Sequences of the copy memory task, and what can be reached without memory."""

import math

import jax.numpy as jnp
import numpy as np

from seqjax.training import Batch

SYMBOLS = 8
"""1 to 8; 0 is the blank, 9 asks for the symbols."""
RECALLED = 10
"""Symbols to be repeated."""
TOKENS = SYMBOLS + 2


def chance(T: int) -> float:
    """The cross-entropy, in nats a step, of the best that has no memory: 10 ln 8 / (T + 20).

    It knows the blanks, which the clock tells, and gives each of the eight symbols 1/8 at the last ten steps.

    >>> round(chance(1000), 4)
    0.0204
    """
    return RECALLED * math.log(SYMBOLS) / (T + 2 * RECALLED)


def sequences(T: int, count: int, rng: np.random.Generator) -> Batch:
    """Draws `count` sequences of `T + 20` steps.

    Ten symbols, T - 1 blanks, then 11 times the token 9: the last ten targets are the symbols, all others blanks.

    Args:
      T: the pause, at least 1.
      count: sequences, B.
      rng: what to draw from.

    Returns:
      `xs [T + 20, B, 10]`, tokens as float32 unit vectors, and `ys [T + 20, B]` of the default integer.

    >>> xs, ys, *_ = sequences(2, 1, np.random.default_rng(0))
    >>> xs.argmax(-1)[10:, 0].tolist()
    [0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]
    >>> bool((xs.argmax(-1)[:10] == ys[-10:]).all())
    True

    Source: M. Arjovsky, A. Shah and Y. Bengio, Unitary Evolution Recurrent Neural Networks, 2016, section 5.1; the
    eleven tokens at the end are those of S. Bai, J. Z. Kolter and V. Koltun, 2018.
    """
    symbols = rng.integers(1, SYMBOLS + 1, (RECALLED, count))
    tokens = np.zeros((T + 2 * RECALLED, count), int)
    tokens[:RECALLED] = symbols
    tokens[T + RECALLED - 1 :] = SYMBOLS + 1
    targets = np.zeros_like(tokens)
    targets[-RECALLED:] = symbols
    return Batch(jnp.asarray(np.eye(TOKENS, dtype=np.float32)[tokens]), jnp.asarray(targets))
