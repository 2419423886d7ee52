# SPDX-License-Identifier: Apache-2.0
"""Batches for stateful training: long sequences, window by window."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from seqjax import require
from seqjax.training.batch import Batch


def windows(xs: ArrayLike, ys: ArrayLike, *, window: int, batch: int) -> Callable[[int, int], Batch]:
    """Cuts one long sequence into `batch` lanes and goes through all of them, `window` steps at a time.

    Lane b is steps [b·L, (b + 1)·L) with L = N // batch. Batch t holds the window of each lane that starts
    at its step (t mod (L // window))·window, with a reset where a lane starts, so that a carry passes from
    window to window but never from the end of a lane to its start. Steps that do not fill a lane or a
    window are left out. Arrays are read one window at a time, so a memory-mapped file need not fit in memory.

    Args:
      xs: `[N, D]`, or ids `[N]`.
      ys: `[N, ...]`, the targets of the same steps.
      window: W, the steps in a batch.
      batch: B, the number of lanes.

    Returns:
      `make_batch(seed, t)` for `fit(..., stateful=True)`: xs `[W, B, D]`, ys `[W, B, ...]`, resets `[W, B]`.

    Raises:
      ValueError: sequences of different lengths, or too short for one window per lane; a size that is not a positive
        integer.

    >>> make_batch = windows(np.arange(10.0)[:, None], np.arange(10.0), window=2, batch=2)
    >>> make_batch(0, 1).xs[..., 0].tolist(), make_batch(0, 1).resets.any().item()
    ([[2.0, 7.0], [3.0, 8.0]], False)
    >>> make_batch(0, 2).resets.tolist()
    [[True, True], [False, False]]
    """
    require.positive("windows", window=window, batch=batch)
    xs, ys = np.asanyarray(xs), np.asanyarray(ys)
    if len(xs) != len(ys):
        raise ValueError(f"windows needs a target for every step, got {len(xs)} steps and {len(ys)} targets.")
    lane = len(xs) // batch
    count = lane // window
    if count < 1:
        raise ValueError(
            f"windows: {len(xs)} steps do not fill one window of {window} steps in each of {batch} lanes; "
            "give a longer sequence, or a smaller window or batch."
        )

    def make_batch(seed: int, t: int) -> Batch:
        start = t % count * window
        lanes = [slice(b * lane + start, b * lane + start + window) for b in range(batch)]
        x, y = (np.stack([array[piece] for piece in lanes], axis=1) for array in (xs, ys))
        resets = np.zeros((window, batch), bool)
        resets[0] = start == 0
        return Batch(jnp.asarray(x), jnp.asarray(y), resets=jnp.asarray(resets))

    return make_batch
