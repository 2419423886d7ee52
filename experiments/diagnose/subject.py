# SPDX-License-Identifier: Apache-2.0
"""What is looked into: a model from its checkpoint, data to run it on, and the metrics of its training."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.diagnose.config import Config
from experiments.forecast import config as forecast
from experiments.forecast import data
from experiments.forecast.models import MODELS
from experiments.study.runner import FINAL, INPUTS
from seqjax import training
from seqjax.base import Layer, Params
from seqjax.layers import BatchMajor, Embed, Serial
from seqjax.training.records import Line

KINDS = {"i": "biu", "u": "biu", "c": "biufc"}
"""By the kind of a model's inputs, the kinds of NumPy's dtypes that become one without a loss; "biuf" for others."""


class Subject(NamedTuple):
    """A model, with what to run it on. Time is axis 0."""

    name: str
    model: Layer
    params: Params
    step: int
    """Of training, when it was saved."""
    inputs: str
    """What `xs` are, in words."""
    xs: np.ndarray
    """`[T, B, D]`."""
    targets: np.ndarray | None
    """`[T', B, F]`, or None: then the loss is the mean square of the outputs."""
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
    if trained.get("variant") in MODELS and "windows" in trained:
        name = f"{trained['variant']} of {folder.parents[1].name}"
        inputs, xs, targets = _windows(config, trained)
    else:
        name, targets = folder.name, None
        inputs, xs = _arrays(config, folder / INPUTS, training.read_manifest(saved)["inputs"], loaded.model)
    model = loaded.model.layer if isinstance(loaded.model, BatchMajor) else loaded.model
    return Subject(name, model, loaded.params, loaded.step, inputs, xs, targets, history), folder


def _windows(config: Config, trained: Mapping[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
    """Windows of a forecasting task, scaled as the training data was, spread evenly."""
    if config.data is None and config.column is not None:
        raise ValueError("--column goes with --data, which is not given.")
    window, positions = trained["windows"]["window"], data.POSITIONS[MODELS[trained["variant"]].at]
    asked = forecast.Config.of(trained) if config.data is None else config
    source, column, station = asked.data or "weather", asked.column, asked.station
    if source == "synthetic" or config.data is None:
        task = data.load_task(source, column, station, window)
        rows, what = task.valid, f"validation windows of {task.name}"
    else:
        series = data.load_series(source, column, station)
        if len(series.values) < window + data.HORIZON:
            raise ValueError(
                f"{series.name} has {len(series.values)} rows; the model needs {window} and {data.HORIZON} after them."
            )
        values = data.Scaler(**trained["windows"]["scaler"]).scale(series.values)
        rows = np.lib.stride_tricks.sliding_window_view(values, window + data.HORIZON)
        what = f"windows of {series.name}"
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, config.sequences, dtype=int))]
    xs, targets = data.time_major(chosen, window, positions)
    return f"{len(chosen)} {what}, {window} steps each", xs, targets


def _arrays(config: Config, kept: pathlib.Path, inputs: Mapping[str, Any], model: Layer) -> tuple[str, np.ndarray]:
    """An array of the user's, or what the model was trained on, if it is kept, or random numbers of that shape."""
    shape, dtype = tuple(inputs["shape"]), jnp.dtype(inputs["dtype"])
    if config.data is not None:
        given = pathlib.Path(config.data)
        xs, what = _read(given, shape, dtype, _ids(model)), given.name
    elif kept.exists():
        xs, what = _read(kept, shape, dtype, _ids(model)), "the first batch of its training"
    elif jnp.issubdtype(dtype, jnp.integer):
        raise ValueError("the model takes ids, which are not made up here; give some as --data FILE.npy.")
    else:
        xs = np.random.default_rng(config.seed).normal(size=shape).astype(dtype)
        what = "random normal numbers, as there is no --data"
    xs = xs.swapaxes(0, 1) if isinstance(model, BatchMajor) else xs
    batched = xs.ndim > (1 if jnp.issubdtype(dtype, jnp.integer) else 2)
    xs = xs[:, : config.sequences] if batched else xs
    return f"{what}: {list(xs.shape)}", xs


def _read(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, ids: int | None) -> np.ndarray:
    """The array of an .npy file, as a model takes it.

    Args:
      path: of the file.
      shape, dtype: that the model was made for; its first two axes may have other lengths.
      ids: how many a model of ids knows; None if it is not known.

    Raises:
      ValueError: another kind of file, shape or type; numbers that are not finite; ids that there are not.
      OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            xs = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not an .npy file of one array of numbers: {error}.") from None
    if xs.ndim != len(shape) or xs.shape[2:] != shape[2:]:
        raise ValueError(f"{path} has shape {list(xs.shape)}; the model was made for {list(shape)}.")
    if not xs.size:
        raise ValueError(f"{path} has shape {list(xs.shape)}, which is empty; give at least one step of one sequence.")
    if xs.dtype.kind not in KINDS.get(dtype.kind, "biuf"):
        raise ValueError(f"{path} holds {xs.dtype}, which the model's {dtype} cannot hold; convert the array first.")
    if jnp.issubdtype(dtype, jnp.integer):
        low, high = int(xs.min()), int(xs.max())
        last = np.iinfo(dtype).max if ids is None else ids - 1
        if low < 0 or high > last:
            raise ValueError(f"{path} holds ids from {low} to {high}; the model takes those from 0 to {last}.")
    with np.errstate(over="ignore"):
        xs = xs.astype(dtype)
    if not np.isfinite(xs).all():
        raise ValueError(f"{path} holds numbers that are not finite as {dtype}; leave such steps or sequences out.")
    return xs


def _ids(model: Layer) -> int | None:
    """How many ids a model that begins with an `Embed` knows; None of others."""
    while isinstance(model, (BatchMajor, Serial)):
        model = model.layer if isinstance(model, BatchMajor) else model.layers[0]
    return model.num if isinstance(model, Embed) else None
