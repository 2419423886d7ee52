# SPDX-License-Identifier: Apache-2.0
"""What cells, engines and layers require of their options; an error names the owner, the field and the value."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from seqjax.activations import Activation, activation_function
from seqjax.base import Cell, Key
from seqjax.dtypes import DTypes
from seqjax.initializers import Initializer, resolve


def rate(owner: str, **rates: float) -> None:
    """Rejects anything that is not a probability below 1.

    Raises:
      ValueError: naming the field.
    """
    for name, given in rates.items():
        if not is_number(given) or not 0 <= given < 1:
            raise ValueError(f"{owner}: {name} must be a probability, 0 <= {name} < 1, got {given!r}.")


def rate_if_given(owner: str, **rates: float | None) -> None:
    """`rate`, for the values that are not `None`."""
    rate(owner, **{name: given for name, given in rates.items() if given is not None})


def positive(owner: str, **sizes: int) -> None:
    """Rejects sizes that are not positive integers.

    Raises:
      ValueError: naming the field and what was given.
    """
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1 or isinstance(size, bool):
            raise ValueError(f"{owner}: {name} must be a positive integer, got {size!r}.")


def whole(owner: str, **given: int) -> None:
    """Rejects what is not an integer, of Python or NumPy; a bool is one.

    Raises:
      ValueError: naming the field and what was given.
    """
    for name, number in given.items():
        if not isinstance(number, int | np.integer):
            raise ValueError(f"{owner}: {name} must be an integer, got {shown(number)}.")


def positive_if_given(owner: str, **sizes: int | None) -> None:
    """`positive`, for the values that are not `None`."""
    positive(owner, **{name: size for name, size in sizes.items() if size is not None})


def positive_number(owner: str, **given: float) -> None:
    """Rejects anything that is not a positive, finite number.

    Raises:
      ValueError: naming the field and what was given.
    """
    for name, number in given.items():
        if not is_number(number) or not 0 < number < math.inf:
            raise ValueError(f"{owner}: {name} must be positive and finite, got {number!r}.")


def is_number(given: Any) -> bool:
    """Whether `given` is a real number; True and False do not count."""
    return isinstance(given, numbers.Real) and not isinstance(given, bool)


def boolean(owner: str, **given: bool) -> None:
    """Rejects anything that is neither True nor False.

    Raises:
      ValueError: naming the field and what was given.
    """
    for name, flag in given.items():
        if not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{owner}: {name} must be True or False, got {flag!r}.")


def one_of(owner: str, **choices: tuple[Any, tuple]) -> None:
    """Rejects an option that is not among the known ones.

    Raises:
      ValueError: naming the field, what was given and the choices.
    """
    for name, (given, known) in choices.items():
        if given not in known:
            raise ValueError(f"{owner}: {name} must be one of {list(known)}, got {given!r}.")


def activations(owner: str, **given: Activation) -> None:
    """Rejects unknown activations.

    Raises:
      ValueError: naming the field, what was given and the choices.
    """
    _known(owner, activation_function, given)


def initializers(owner: str, **given: Initializer) -> None:
    """Rejects unknown initializers.

    Raises:
      ValueError: naming the field, what was given and the choices.
    """
    _known(owner, resolve, given)


def _known(owner: str, find: Callable[[Any], Any], given: Mapping[str, Any]) -> None:
    """Rejects what `find` rejects, with the owner and the field in front of its message."""
    for name, value in given.items():
        try:
            find(value)
        except ValueError as error:
            raise ValueError(f"{owner}: {name}: {error}") from None


def dtypes(owner: str, given: DTypes) -> None:
    """Rejects anything that is not a `DTypes`, such as a bare dtype.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(given, DTypes):
        raise ValueError(f"{owner}: dtypes must be a seqjax.DTypes, e.g. DTypes(compute='bfloat16'), got {given!r}.")


def cell(owner: str, given: Cell) -> None:
    """Rejects anything that is not a cell.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(given, Cell):
        raise ValueError(f"{owner} wraps a Cell, got {given!r}.")


def functions(owner: str, **given: tuple[Any, str]) -> None:
    """Rejects what cannot be called; each comes with the call it is for.

    Raises:
      ValueError: naming what was given and the call.
    """
    for name, (function, call) in given.items():
        if not callable(function):
            raise ValueError(f"{owner}: {name} must be a function, called as {call}, got {shown(function)}.")


def params(owner: Any, given: Any, kind: type[tuple], **shapes: tuple | None) -> None:
    """Rejects params that were drawn with other options or sizes, of which arrays would be ignored, or read beyond.

    Args:
      owner: the layer.
      given: its params.
      kind: the NamedTuple that they should be.
      shapes: of its arrays by name, `None` for those that the options leave out; "D" is any number of features.

    Raises:
      ValueError: naming what was given and what was expected.
    """
    if not isinstance(given, kind):
        raise ValueError(
            f"{owner!r} has params {kind.__name__}, got {shown(given)}; take those of its init, or of an importer."
        )
    for name, wanted in shapes.items():
        leaf = getattr(given, name)
        if (leaf is None) != (wanted is None):
            raise ValueError(
                f"{owner!r} has {'no ' if wanted is None else ''}{name} with these options, and the params have "
                f"{'none' if leaf is None else 'one'}; give it the options that the params were drawn with."
            )
        if leaf is None or wanted is None:
            continue
        sizes = np.shape(leaf)
        if len(sizes) != len(wanted) or any(w not in (n, "D") for n, w in zip(sizes, wanted, strict=True)):
            raise ValueError(
                f"{owner!r} has {name} of shape ({', '.join(map(str, wanted))}), got {sizes}; give it the sizes that "
                "the params were drawn with."
            )


def batch_shape(given: Any) -> None:
    """Rejects anything that is not a shape.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(given, tuple | list):
        raise ValueError(f"batch_shape must be a tuple, e.g. (32,), or () for one sequence, got {given!r}.")


def hashable(owner: str, **given: Any) -> None:
    """Rejects what cannot be hashed, as compiled functions are kept by it.

    Raises:
      ValueError: naming what was given.
    """
    for name, value in given.items():
        try:
            hash(value)
        except TypeError as error:
            raise ValueError(
                f"{owner}: {name} must be hashable ({error}): keep numbers in tuples, or arrays in a closure."
            ) from None


def key(owner: str, given: Key) -> None:
    """Rejects anything that is neither `None` nor one random key.

    Raises:
      ValueError: naming what was given.
    """
    if given is None:
        return
    try:
        jax.eval_shape(jax.random.fold_in, given, 0)
    except (TypeError, ValueError):
        raise ValueError(
            f"{owner}: key must be one random key, such as jax.random.key(0), or None, got {shown(given)}."
        ) from None


def shown(given: Any) -> str:
    """What was given, for a message: an array as its dtype and shape, and what would take lines as its type.

    >>> shown(0.1), shown(np.zeros((2, 3))), shown([np.zeros(9)] * 9)
    ('0.1', 'float64[2, 3]', 'a list')
    """
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return f"{given.dtype}{list(given.shape)}"
    if isinstance(given, tuple | list | Mapping) and any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(given)):
        return f"a {type(given).__name__}"
    return repr(given)
