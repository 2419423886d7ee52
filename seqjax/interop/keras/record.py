# SPDX-License-Identifier: Apache-2.0
"""A Keras layer as plain data, whether it came from a live object or from a file.

Nothing in a record is trusted: the type of every option is checked, and the shape and dtype of
every weight before it is read.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.dtypes import DTypes
from seqjax.interop.layout import to_jax, unsupported

_VARIABLES = {
    "SimpleRNN": ("kernel", "recurrent_kernel", "bias"),
    "LSTM": ("kernel", "recurrent_kernel", "bias"),
    "GRU": ("kernel", "recurrent_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "Conv1D": ("kernel", "bias"),
    "Embedding": ("embeddings",),
    "LayerNormalization": ("gamma", "beta"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
_SWITCHES = {"bias": "use_bias", "gamma": "scale", "beta": "center"}  # the option on which a variable depends

POLICIES = {
    "float32": DTypes(),
    "float64": DTypes("float64"),
    "bfloat16": DTypes("bfloat16"),
    "float16": DTypes("float16"),
    "mixed_bfloat16": DTypes(compute="bfloat16"),
    "mixed_float16": DTypes(compute="float16"),
}
"""Keras' dtype policies, by name."""

_IGNORABLE = ("Masking", "mask_zero", "recurrent_dropout", "stateful", "trainable")
_IGNORABLE_ENDINGS = ("_regularizer", "_constraint")
_FREE = ("name", "dtype", "seed", "layer", "backward_layer", "cell", "cells", "layers", "build_input_shape")


class Weight(NamedTuple):
    """A variable, to be read only once its shape and dtype are known to be right."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Record:
    """A Keras layer, cell or `Sequential`."""

    class_name: str
    config: dict[str, Any]
    input_shape: tuple[int | None, ...] | None = None
    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    parts: dict[str, tuple["Record", ...]] = dataclasses.field(default_factory=dict)
    """The layers and cells inside, by Keras' names for them."""
    live: Any = None
    """The Keras object, if there is one."""

    @property
    def owner(self) -> str:
        """The name of the layer in messages."""
        return f"keras {self.class_name} {str(self.config.get('name', ''))[:80]!r}"

    def option(self, name: str, *kinds: type, default: Any = dataclasses.MISSING) -> Any:
        """An option of one of the given types (a bool does not count as an int).

        Raises:
          ValueError: a missing option, or one of another type.
        """
        value = self.config.get(name, default)
        if value is dataclasses.MISSING:
            raise ValueError(f"{self.owner}: the option {name} is missing from its config.")
        if type(value) not in kinds and value is not default:
            raise ValueError(f"{self.owner}: {name} must be of type {names(kinds)}, got {value!r}.")
        return value

    def single(self, name: str, default: int = 1) -> int:
        """An int that Keras also writes as a list of one."""
        value = self.config.get(name, default)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if type(value) is not int:
            raise ValueError(f"{self.owner}: {name} must be an int or a list of one, got {self.config.get(name)!r}.")
        return value

    def rows(self, name: str) -> int:
        """D, the number of input features, from the input shape or else from the variable `name [..., D, F]`."""
        if self.input_shape is not None and type(self.input_shape[-1]) is int:
            return self.input_shape[-1]
        shape = self._weight(name).shape
        if len(shape) < 2:
            raise ValueError(f"{self.owner}: {name} must have at least two axes, got shape {shape}.")
        return shape[-2]

    def take(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        """A variable as a JAX array, read once its shape and dtype have been checked.

        Raises:
          ValueError: a variable that is missing, or not what the config implies.
        """
        weight = self._weight(name)
        if weight.shape != shape:
            raise ValueError(f"{self.owner}: its config implies {name} {shape}, got {weight.shape}.")
        if weight.dtype != self.policy.params:
            raise ValueError(f"{self.owner}: its config implies {self.policy.params}, got {name} in {weight.dtype}.")
        return to_jax(self.owner, name, weight.read())

    @property
    def policy(self) -> DTypes:
        """Its dtype policy.

        Raises:
          ValueError: a policy that is not one of Keras' floating-point ones, such as a quantized one.
        """
        given = self.config.get("dtype", "float32")
        name = given
        if isinstance(given, dict) and given.get("class_name") == "DTypePolicy" and isinstance(given["config"], dict):
            name = given["config"].get("name")
        if not isinstance(name, str) or name not in POLICIES:
            raise unsupported(self.owner, f"dtype={given!r}", f"known policies are {sorted(POLICIES)}")
        return POLICIES[name]

    def check(self, ignore: Collection[str], mapped: Collection[str] = (), **fixed: tuple) -> None:
        """Rejects every option that is not understood.

        Args:
          ignore: options that the caller wants left out.
          mapped: options that the converter reads.
          **fixed: options that are understood only with these values.

        Raises:
          ValueError: naming the layer, the option and what was given.
        """
        fixed.setdefault("trainable", (True,))
        for name, value in self.config.items():
            if name in _FREE or name in mapped or name.endswith("_initializer") or name in ignore:
                continue
            if name in fixed:
                if not any(type(value) is type(known) and value == known for known in fixed[name]):
                    wanted = " or ".join(map(repr, fixed[name]))
                    raise unsupported(self.owner, f"{name}={value!r}", f"only {wanted} is{hint(name)}")
            elif value is not None and value is not False:
                raise unsupported(self.owner, f"{name}={value!r}", f"only None or False is{hint(name)}")

    def _weight(self, name: str) -> Weight:
        if name not in self.weights:
            raise ValueError(f"{self.owner} has no variable {name}; build the model, or call it once, first.")
        return self.weights[name]


def check_ignore(ignore: Collection[str]) -> None:
    """Rejects names that would change what the model computes.

    Raises:
      ValueError: naming them.

    >>> check_ignore({"kernel_regularizer", "stateful"})
    """
    unknown = [name for name in ignore if name not in _IGNORABLE and not name.endswith(_IGNORABLE_ENDINGS)]
    if isinstance(ignore, str) or unknown:
        raise ValueError(
            "ignore is a tuple of names of options, such as ('kernel_regularizer',), and of "
            f"{list(_IGNORABLE)}, got {ignore!r}."
        )


def variables_of(class_name: str, config: dict[str, Any]) -> tuple[str, ...]:
    """The variables of a layer or of its cell, in the order in which Keras stores them.

    >>> variables_of("GRUCell", {"use_bias": False})
    ('kernel', 'recurrent_kernel')
    """
    names = _VARIABLES.get(class_name.removesuffix("Cell"), ())
    return tuple(name for name in names if config.get(_SWITCHES.get(name, ""), True) is True)


def names(kinds: Collection[type]) -> str:
    """The names of types, for a message."""
    return " or ".join(kind.__name__ for kind in kinds)


def hint(option: str) -> str:
    """What to do about a rejected option, for the end of a message."""
    if option in ("go_backwards", "merge_mode"):
        return "; a backward direction is the second one of Bidirectional"
    if option in ("stateful", "return_state"):
        return "; a seqjax model takes a carry and returns one" + _leave_out(option)
    if option == "mask_zero":
        return "; give mask=(ids != 0) to apply" + _leave_out(option)
    return _leave_out(option)


def _leave_out(option: str) -> str:
    ignorable = option in _IGNORABLE or option.endswith(_IGNORABLE_ENDINGS)
    return f" (ignore=({option!r},) leaves it out)" if ignorable else ""
