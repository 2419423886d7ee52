# SPDX-License-Identifier: Apache-2.0
"""What clipping did over a training run, as told by its metrics."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from seqjax import require
from seqjax.training.records import Line


class ClipHistory(NamedTuple):
    """Clipping and gradient norms over training, for the steps that were logged.

    Attributes:
      steps: `[blocks]` int: the last step of each block.
      clipped: `[blocks]`: the fraction of the block's steps whose gradient was clipped.
      skipped: `[blocks]`: the fraction of the block's steps that were skipped because they were not finite.
      norms: `[blocks]`: the median of the block's gradient norms before clipping; NaN if none was finite.
      clip_fraction: the fraction of all logged steps whose gradient was clipped.
      skip_count: the number of steps skipped in the whole run, logged or not.
    """

    steps: np.ndarray
    clipped: np.ndarray
    skipped: np.ndarray
    norms: np.ndarray
    clip_fraction: float
    skip_count: int


def clip_history(lines: Iterable[Line], blocks: int = 50) -> ClipHistory:
    """The fraction of training steps whose gradient was clipped, block by block.

    Args:
      lines: those of a run's `metrics.jsonl`, from `training.read_metrics` or `Run.history`.
      blocks: the most blocks to form; lines are divided evenly among them.

    Returns:
      The history.

    Raises:
      ValueError: no lines of training metrics, or a `blocks` that is not a positive integer.

    >>> lines = [{"step": t, "grad_norm": 9.0 / t, "clipped": t < 4} for t in range(1, 7)]
    >>> history = clip_history([{**line, "skipped": False, "skipped_steps": 0} for line in lines], blocks=2)
    >>> history.clip_fraction, history.steps.tolist(), history.clipped.tolist(), history.norms.tolist()
    (0.5, [3, 6], [1.0, 0.0], [4.5, 1.8])
    """
    require.positive("clip_history", blocks=blocks)
    known = [line for line in lines if {"clipped", "skipped", "skipped_steps", "grad_norm"} <= line.keys()]
    if not known:
        raise ValueError(
            "there are no lines with clipped, skipped, skipped_steps and grad_norm: are these the metrics of a run?"
        )
    parts = np.array_split(np.arange(len(known)), min(blocks, len(known)))
    clipped = np.array([bool(line["clipped"]) for line in known], float)
    skipped = np.array([bool(line["skipped"]) for line in known], float)
    norms = np.array([np.nan if line["grad_norm"] is None else line["grad_norm"] for line in known], float)
    finite = [norms[part][np.isfinite(norms[part])] for part in parts]
    return ClipHistory(
        steps=np.array([known[part[-1]]["step"] for part in parts]),
        clipped=np.array([clipped[part].mean() for part in parts]),
        skipped=np.array([skipped[part].mean() for part in parts]),
        norms=np.array([np.median(some) if some.size else np.nan for some in finite]),
        clip_fraction=float(clipped.mean()),
        skip_count=known[-1]["skipped_steps"],
    )
