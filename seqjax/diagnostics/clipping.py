# SPDX-License-Identifier: Apache-2.0
"""What clipping did over a training run, as told by its metrics."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from seqjax import require
from seqjax.training.records import Line

NEEDED = ("clipped_steps", "skipped_steps", "grad_norm")


class ClipHistory(NamedTuple):
    """Clipping and gradient norms over training. All steps count, logged or not; norms are of logged steps.

    Attributes:
      steps: `[blocks]` int: the last step of each block; a block begins after the one before it, the first at step 1.
      clipped: `[blocks]`: the fraction of the block's steps whose gradient was clipped.
      skipped: `[blocks]`: the fraction of the block's steps that were skipped because they were not finite.
      norms: `[blocks]`: the median of the block's logged gradient norms, before clipping; NaN if none was finite.
      clip_fraction: the fraction of all steps whose gradient was clipped.
      skip_count: the number of steps that were skipped.
    """

    steps: np.ndarray
    clipped: np.ndarray
    skipped: np.ndarray
    norms: np.ndarray
    clip_fraction: float
    skip_count: int


def clip_history(lines: Iterable[Line], blocks: int = 50) -> ClipHistory:
    """The fraction of training steps whose gradient was clipped, block by block.

    A line has the number of steps clipped so far, so the fractions are exact however seldom lines were logged.

    Args:
      lines: those of a run's `metrics.jsonl`, from `training.read_metrics` or `Run.history`.
      blocks: the most blocks to form; lines are divided evenly among them.

    Returns:
      The history.

    Raises:
      ValueError: no lines of training metrics, or a `blocks` that is not a positive integer.

    >>> lines = [{"step": t, "grad_norm": 18.0 / t, "clipped_steps": min(t, 6)} for t in (2, 4, 6, 8)]
    >>> history = clip_history([{**line, "skipped_steps": 0} for line in lines], blocks=2)
    >>> history.clip_fraction, history.steps.tolist(), history.clipped.tolist(), history.norms.tolist()
    (0.75, [4, 8], [1.0, 0.5], [6.75, 2.625])
    """
    require.positive("clip_history", blocks=blocks)
    known = [line for line in lines if line.keys() >= set(NEEDED)]
    if not known:
        raise ValueError(f"there are no lines with {', '.join(NEEDED)}: are these the metrics of a run?")
    parts = np.array_split(np.arange(len(known)), min(blocks, len(known)))
    ends = [known[part[-1]] for part in parts]
    steps, clipped, skipped = (
        np.array([line[name] for line in ends]) for name in ("step", "clipped_steps", "skipped_steps")
    )
    counts = np.diff(steps, prepend=0)
    norms = np.array([np.nan if line["grad_norm"] is None else line["grad_norm"] for line in known], float)
    finite = [norms[part][np.isfinite(norms[part])] for part in parts]
    return ClipHistory(
        steps=steps,
        clipped=np.diff(clipped, prepend=0) / counts,
        skipped=np.diff(skipped, prepend=0) / counts,
        norms=np.array([np.median(some) if some.size else np.nan for some in finite]),
        clip_fraction=float(clipped[-1] / steps[-1]),
        skip_count=int(skipped[-1]),
    )
