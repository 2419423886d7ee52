# SPDX-License-Identifier: Apache-2.0
"""Training: clipped optimizers, masked losses, a training step, a loop, and checkpoints.

`fit` does all of it; a loop of your own needs only `make_train_step`.
"""

from seqjax.training.batch import Batch
from seqjax.training.checkpoint import Loaded, all_steps, latest_step, load, read_manifest, restore, save
from seqjax.training.description import build, describe
from seqjax.training.loop import Run, fit
from seqjax.training.losses import (
    AtLastStep,
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    huber,
    mean_absolute_error,
    mean_squared_error,
)
from seqjax.training.optimizers import ClipState, clip, clipped, was_clipped
from seqjax.training.records import read_metrics
from seqjax.training.state import TrainState, init_state
from seqjax.training.step import evaluate, make_eval_step, make_train_step
from seqjax.training.stream import windows

__all__ = [
    "AtLastStep",
    "Batch",
    "ClipState",
    "Loaded",
    "Run",
    "TrainState",
    "accuracy",
    "all_steps",
    "binary_cross_entropy",
    "build",
    "clip",
    "clipped",
    "cross_entropy",
    "describe",
    "evaluate",
    "fit",
    "huber",
    "init_state",
    "latest_step",
    "load",
    "make_eval_step",
    "make_train_step",
    "mean_absolute_error",
    "mean_squared_error",
    "read_manifest",
    "read_metrics",
    "restore",
    "save",
    "was_clipped",
    "windows",
]
