# SPDX-License-Identifier: Apache-2.0
"""A model as plain data that JSON can hold, and back.

`{"class": "GRU", "fields": {"hidden_dim": 20, ...}}`: every field is written, even those at their
default, so that a later version with other defaults builds the same model. Names found in the data
are never imported or evaluated: only seqjax's own classes, and those passed in, are built.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from seqjax.activations import FUNCTIONS
from seqjax.base import Described
from seqjax.initializers import BARE

Description = Any
"""None, bool, int, float, str, or a dict or list of these."""
Types = Sequence[type | Callable]
"""A user's own frozen dataclasses and functions that are part of a model."""

_NAMESPACES = ("", ".cells", ".engines", ".layers", ".initializers", ".dtypes")


def describe(model: Any, types: Types = ()) -> Description:
    """`model` as plain data.

    Args:
      model: a cell, an engine, a layer, or any frozen dataclass of hyperparameters.
      types: classes and functions that are not seqjax's own; `build` needs the same.

    Returns:
      What `json.dumps` takes.

    Raises:
      ValueError: something in the model cannot be written down; the message says what to use instead.

    >>> import seqjax
    >>> describe(seqjax.Dense(1))["class"]
    'Dense'
    """
    return _describe(model, _by_name(types), type(model).__name__)


def build(description: Description, types: Types = ()) -> Any:
    """The model that `describe` wrote down.

    Args:
      description: what `describe` returned, also by way of JSON.
      types: those that `describe` was given.

    Returns:
      A model equal to the one described.

    Raises:
      ValueError: an unknown class, field or form.

    >>> import seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.GRU(20)), seqjax.Dense(1))
    >>> build(describe(model)) == model
    True
    """
    return _build(description, _by_name(types))


def _describe(value: Any, known: dict[str, Any], where: str) -> Description:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple):
        return [_describe(item, known, f"{where}[{i}]") for i, item in enumerate(value)]
    name = getattr(value, "__name__", "")
    if known.get(name) is value and not isinstance(value, type):
        return {"function": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        if known.get(cls.__name__) is not cls:
            raise ValueError(
                f"{where} is a {cls.__module__}.{cls.__qualname__}, which is not one of seqjax's own; "
                f"to save a model with it, pass types=({cls.__name__},)."
            )
        fields = dataclasses.fields(value)
        return {
            "class": cls.__name__,
            "fields": {f.name: _describe(getattr(value, f.name), known, f"{where}.{f.name}") for f in fields},
        }
    if callable(value):
        functions = {**FUNCTIONS, **{bare: getattr(jax.nn.initializers, bare) for bare in BARE}}
        string = next((known for known, function in functions.items() if function is value), None)
        raise ValueError(
            f"{where} is the function {value!r}, which cannot be saved; "
            + (
                f"give its name as a string, {string!r}."
                if string
                else "write a frozen dataclass with __call__, or a named function of your own, and pass it in types=."
            )
        )
    raise ValueError(
        f"{where} is a {type(value).__name__}, {value!r}, which cannot be saved; hyperparameters are numbers, "
        "strings, None, tuples and frozen dataclasses of them."
    )


def _build(description: Description, known: dict[str, Any]) -> Any:
    if isinstance(description, list):
        return tuple(_build(item, known) for item in description)
    if not isinstance(description, dict):
        return description
    if set(description) == {"float"}:
        return float(description["float"])
    if set(description) == {"function"}:
        return _known(description["function"], known, function=True)
    if set(description) != {"class", "fields"} or not isinstance(description["fields"], dict):
        raise ValueError(f"not a model's description: {str(description)[:80]}; it has a class and its fields.")
    cls = _known(description["class"], known, function=False)
    return _make(cls, {name: _build(item, known) for name, item in description["fields"].items()})


def _make(cls: type, fields: dict[str, Any]) -> Any:
    unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {sorted(unknown)}; the description is from another version of it."
        )
    return cls(**fields)


def _known(name: Any, known: dict[str, Any], *, function: bool) -> Any:
    value = known.get(name) if isinstance(name, str) else None
    if value is None or isinstance(value, type) is function:
        kind = "function" if function else "class"
        raise ValueError(f"unknown {kind} {name!r} in a model's description; if it is yours, pass it in types=.")
    return value


def _by_name(types: Types) -> dict[str, Any]:
    """What may be built: seqjax's public dataclasses and `types`, by name."""
    known: dict[str, Any] = {}
    for namespace in _NAMESPACES:
        for value in vars(importlib.import_module(f"seqjax{namespace}")).values():
            if isinstance(value, type) and issubclass(value, Described) and dataclasses.is_dataclass(value):
                known[value.__name__] = value
    for value in types:
        name = getattr(value, "__name__", None)
        if not callable(value) or name in (None, "<lambda>"):
            raise ValueError(f"types holds classes and named functions, got {value!r}.")
        if known.get(name, value) is not value:
            raise ValueError(f"types holds a second {name!r}, besides {known[name]!r}; rename it.")
        known[name] = value
    return known
