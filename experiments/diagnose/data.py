# SPDX-License-Identifier: Apache-2.0
"""What a model is run on: the last batch of its training with its own loss, data of the user's, or random numbers."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.diagnose.config import Config
from experiments.forecast import data as forecast
from experiments.forecast.models import MODELS
from experiments.study import kept
from seqjax import training
from seqjax.base import Array, Layer, Mask
from seqjax.layers import BatchMajor, Embed, Serial
from seqjax.training import Batch
from seqjax.training.losses import Loss

KINDS = {"i": "biu", "u": "biu", "c": "biufc"}
"""By the kind of a model's inputs, the kinds of NumPy's dtypes that become one without a loss; "biuf" for others."""


class Seen(NamedTuple):
    """A batch, as the model takes it, and the loss whose gradient is looked at."""

    inputs: str
    """What they are, in words."""
    batch: Batch
    """Its `ys` are None where there are no targets."""
    loss: Loss
    """Of the model's outputs, `batch.ys` and the outputs' mask."""
    objective: str
    """What the loss is, in words."""


def mean_square(predictions: Array, targets: Array | None, mask: Mask = None) -> Array:
    """The mean of ŷ² over valid steps and features: in place of a loss that is not known, or that lacks its targets."""
    return training.mean_squared_error(predictions, jnp.zeros_like(predictions), mask)


def see(
    config: Config, folder: pathlib.Path, trained: Mapping[str, Any], inputs: Mapping[str, Any], model: Layer
) -> Seen:
    """What the command is to run the model on.

    Args:
      config: the command's.
      folder: of the model.
      trained: the configuration of its training.
      inputs: shape and dtype that it was made for.
      model: itself.

    Raises:
      ValueError: no such data, or data that do not fit the model.
      OSError: data that cannot be read.
    """
    if config.data is None:
        if config.column is not None or config.station is not None:
            raise ValueError("--column and --station go with --data, which is not given.")
        found = kept.read(folder)
        return _random(inputs, config.seed) if found is None else _kept(found)
    if trained.get("variant") in MODELS and "windows" in trained:
        return _windows(config, config.data, trained)
    if config.column is not None or config.station is not None:
        raise ValueError("--column and --station are of series, which only models of forecast take.")
    path = pathlib.Path(config.data)
    xs = _read(path, tuple(inputs["shape"]), jnp.dtype(inputs["dtype"]), _ids(model))
    return _without_targets(path.name, xs)


def _own(inputs: str, batch: Batch, loss: Loss) -> Seen:
    return Seen(inputs, batch, loss, f"the run's own, {getattr(loss, '__name__', repr(loss))}")


def _without_targets(inputs: str, xs: np.ndarray) -> Seen:
    batch = Batch(jnp.asarray(xs), None)  # type: ignore[arg-type]  # `mean_square` takes no targets
    return Seen(inputs, batch, mean_square, "the mean square of the outputs, as there are no targets")


def _kept(found: kept.Kept) -> Seen:
    """The last batch of a study's run."""
    inputs = "the last batch of its training"
    if found.loss is None:
        return Seen(inputs, found.batch, mean_square, "the mean square of the outputs, as the run's own is not known")
    return _own(inputs, found.batch, found.loss)


def _random(inputs: Mapping[str, Any], seed: int) -> Seen:
    """Numbers of the shape that the model was made for."""
    dtype = jnp.dtype(inputs["dtype"])
    if jnp.issubdtype(dtype, jnp.integer):
        raise ValueError("the model takes ids, which are not made up here; give some as --data FILE.npy.")
    xs = np.random.default_rng(seed).normal(size=tuple(inputs["shape"])).astype(dtype)
    return _without_targets("random normal numbers, as there is no --data", xs)


def _windows(config: Config, source: str, trained: Mapping[str, Any]) -> Seen:
    """Windows for a model of `forecast`, scaled as its training data was, spread evenly."""
    station = config.station or "greensboro"
    window, positions = trained["windows"]["window"], forecast.POSITIONS[MODELS[trained["variant"]].at]
    if source == "synthetic":
        task = forecast.load_task(source, config.column, station, window)
        rows, what = task.valid, f"validation windows of {task.name}"
    else:
        series = forecast.load_series(source, config.column, station)
        if len(series.values) < window + forecast.HORIZON:
            raise ValueError(
                f"{series.name} has {len(series.values)} rows; the model needs {window} and {forecast.HORIZON} "
                "after them."
            )
        values = forecast.Scaler(**trained["windows"]["scaler"]).scale(series.values)
        rows = np.lib.stride_tricks.sliding_window_view(values, window + forecast.HORIZON)
        what = f"windows of {series.name}"
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, config.sequences, dtype=int))]
    xs, ys = map(jnp.asarray, forecast.time_major(chosen, window, positions))
    return _own(what, Batch(xs, ys), training.mean_squared_error)


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
