# SPDX-License-Identifier: Apache-2.0
"""What is looked into: a model from its checkpoint, what to run it on, and the metrics of its training."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax

from experiments.diagnose.config import Config
from experiments.diagnose.data import Seen, see
from experiments.study.runner import FINAL
from seqjax import training
from seqjax.base import Layer, Params
from seqjax.sequences import step_shape
from seqjax.training.batch import batch_in_time
from seqjax.training.records import Line


class Subject(NamedTuple):
    """A model, with what to run it on. Time is axis 0."""

    name: str
    model: Layer
    params: Params
    step: int
    """Of training, when it was saved."""
    seen: Seen
    history: Sequence[Line]
    """The lines of its metrics; none if they are not kept."""


def find(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The folder of a model, and where its checkpoints are: its finished state if there is one.

    Raises:
      ValueError: there is no checkpoint, or there are several models.
    """
    path = path.resolve()
    if path.name == "checkpoints":
        path = path.parent
    if path.name == FINAL and training.latest_step(path) is not None:
        return path.parent, path
    if training.latest_step(path / FINAL) is not None:
        return path, path / FINAL
    if training.latest_step(path) is not None:
        return path, path
    below = {folder.parent for depth in ("*", "*/*") for folder in path.glob(f"{depth}/checkpoints")}
    models = sorted({folder.parent if folder.name == FINAL else folder for folder in below})
    if len(models) == 1:
        return find(models[0])
    if models:
        raise ValueError(f"{path} has several models; choose one: {', '.join(map(str, models))}.")
    raise ValueError(f"{path} has no checkpoint; give the folder of a run.")


def load(config: Config) -> tuple[Subject, pathlib.Path]:
    """The subject that the command names, and its folder.

    Raises:
      ValueError: no such checkpoint or data, or data that do not fit the model.
      OSError: data that cannot be read.
    """
    folder, saved = find(config.checkpoint)
    loaded = training.load(saved)
    metrics = folder / "metrics.jsonl"
    history = training.read_metrics(metrics) if metrics.exists() else []
    trained = loaded.metadata.get("config", {})
    name = f"{trained['variant']} of {folder.parents[1].name}" if "variant" in trained else folder.name
    seen = see(config, folder, trained, training.read_manifest(saved)["inputs"], loaded.model)
    model, batch = batch_in_time(loaded.model, seen.batch)
    if len(step_shape(batch.xs)) > 1:
        batch = jax.tree.map(lambda array: array[:, : config.sequences], batch)
    seen = seen._replace(inputs=f"{seen.inputs}: {list(batch.xs.shape)}", batch=batch)
    return Subject(name, model, loaded.params, loaded.step, seen, history), folder
