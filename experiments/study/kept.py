# SPDX-License-Identifier: Apache-2.0
"""What a finished run keeps for those who look into its model, as `diagnose` does: a batch, and its own loss.

A loss is kept as a model is, by its description, and by the names of the functions and classes that this is made of.
On reading, names are only looked up in seqjax and the experiments.
"""

import dataclasses
import importlib
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.study.files import read_json, write_json
from seqjax import training
from seqjax.training import Batch
from seqjax.training.losses import Loss

BATCH, LOSS = "batch.npz", "loss.json"
PACKAGES = ("experiments", "seqjax")


class Kept(NamedTuple):
    """A batch of NumPy arrays, and its loss; None is one that has no name, a lambda say."""

    batch: Batch
    loss: Loss | None


def keep(folder: pathlib.Path, batch: Batch, loss: Loss) -> None:
    """Writes both in a run's folder.

    Raises:
      OSError: they cannot be written.
    """
    arrays: dict[str, Any] = {name: np.asarray(a) for name, a in batch._asdict().items() if a is not None}
    np.savez(folder / BATCH, **arrays)
    described = describe(loss)
    if described is not None:
        write_json(folder / LOSS, described)


def read(folder: pathlib.Path) -> Kept | None:
    """What a run's folder holds of both; None if it holds no batch.

    Raises:
      ValueError: a damaged file, or a loss that is not here any more.
      OSError: they cannot be read.
    """
    path = folder / BATCH
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            batch = Batch(**file)
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and give data instead.") from None
    return Kept(batch, read_json(folder / LOSS, build) if (folder / LOSS).exists() else None)


def describe(loss: Loss) -> dict[str, Any] | None:
    """A loss as JSON holds it; None if one of its parts cannot be found by name.

    >>> describe(training.AtLastStep(training.cross_entropy))["parts"]
    ['seqjax.training.losses:AtLastStep', 'seqjax.training.losses:cross_entropy']
    """
    parts = _parts(loss)
    names = [f"{part.__module__}:{getattr(part, '__qualname__', '')}" for part in parts]
    try:
        if [_find(name) for name in names] == parts:
            return {"parts": names, "loss": training.describe(loss, parts)}
    except ValueError:
        pass
    return None


def build(described: Mapping[str, Any]) -> Loss:
    """The loss that `describe` told.

    Raises:
      ValueError: it is made of something that is not here.

    >>> build(describe(training.cross_entropy)) is training.cross_entropy
    True
    """
    return training.build(described["loss"], [_find(name) for name in described["parts"]])


def _parts(value: Any) -> list[Any]:
    """The functions and classes that a loss is made of."""
    if dataclasses.is_dataclass(value):
        inside = [_parts(getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [type(value), *(part for parts in inside for part in parts)]
    return [value] if callable(value) else []


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        if module.split(".")[0] in PACKAGES:
            return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        pass
    raise ValueError(f"there is no {name}")
