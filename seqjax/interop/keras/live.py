# SPDX-License-Identifier: Apache-2.0
"""Records of live Keras objects, from their attributes; Keras itself is not imported."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from seqjax.interop.keras.record import Record, Weight, variables_of
from seqjax.interop.layout import unsupported

_RECURRENT = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "zero_output_for_mask",
)
# wrappers: their options, read as attributes (get_config would serialize what is inside, which may be a user's own),
# and the attributes that hold layers
_OPTIONS = {
    "Sequential": (),
    "TimeDistributed": (),
    "Bidirectional": ("merge_mode",),
    "RNN": _RECURRENT,
    "StackedRNNCells": (),
}
_PARTS = {
    "Sequential": ("layers",),
    "TimeDistributed": ("layer",),
    "Bidirectional": ("forward_layer", "backward_layer"),
    "RNN": ("cell",),
    "StackedRNNCells": ("cells",),
}


def record_of(layer: Any, custom: tuple[type, ...] = ()) -> Record:
    """The record of a layer, a cell or a `Sequential`.

    Args:
      layer: the object.
      custom: classes whose objects are not looked into.

    Raises:
      ValueError: an object that is not from Keras 3, or whose class is not Keras' own.
    """
    cls = type(layer)
    if cls in custom:
        return Record(cls.__name__, {"name": getattr(layer, "name", "")}, live=layer)
    if not cls.__module__.startswith("keras."):
        raise unsupported(
            f"keras {cls.__name__} {getattr(layer, 'name', '')!r}",
            f"a class of {cls.__module__!r}",
            f"say what it is with custom={{{cls.__name__}: function}}, where function(layer) returns a seqjax Cell or "
            "Layer and its params",
        )
    version = str(getattr(sys.modules.get("keras"), "__version__", ""))
    if not version.startswith("3."):
        raise ValueError(f"from_keras reads Keras 3, got an object of version {version or 'unknown'}.")
    name = cls.__name__
    if name in _OPTIONS:
        config = {option: getattr(layer, option) for option in ("name", "trainable", *_OPTIONS[name])}
        config["dtype"] = layer.dtype_policy.name
    else:
        config = layer.get_config()
    parts = {}
    for part in _PARTS.get(name, ()):
        inside = getattr(layer, part)
        inside = tuple(inside) if isinstance(inside, list | tuple) else (inside,)
        parts[part] = tuple(record_of(item, custom) for item in inside)
    shape = (layer.get_build_config() or {}).get("input_shape")
    # the variables of LSTM, GRU and SimpleRNN are their cell's
    variables = weights_of(getattr(layer, "cell", layer), variables_of(name, config))
    return Record(name, config, tuple(shape) if isinstance(shape, list | tuple) else None, variables, parts, layer)


def weights_of(layer: Any, names: tuple[str, ...]) -> dict[str, Weight]:
    """The named variables that exist: none before a layer is built."""
    if not layer.built:
        return {}
    return {name: _weight(getattr(layer, name)) for name in names if getattr(layer, name, None) is not None}


def _weight(variable: Any) -> Weight:
    return Weight(tuple(variable.shape), jnp.dtype(str(variable.dtype)).name, lambda: np.asarray(variable.numpy()))
