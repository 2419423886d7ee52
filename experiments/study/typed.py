# SPDX-License-Identifier: Apache-2.0
"""Values read from text, held against the annotations of what takes them."""

import inspect
import types
import typing
from typing import Any, Literal, TypeVar, Union

D = TypeVar("D")


def fits(value: object, hint: Any) -> bool:
    """Whether an annotation allows a value; a whole number is a float too, and a bool is no number.

    >>> fits(1, float | None), fits(True, int), fits("c", Literal["a", "b"]), fits(("a", 1), tuple[str, ...])
    (True, False, False, False)
    """
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind is tuple:
        return isinstance(value, tuple) and all(fits(each, parts[0]) for each in value)
    if isinstance(value, bool):
        return hint in (bool, object)
    return isinstance(value, (int, float) if hint is float else kind or hint)


def build(kind: type[D], fields: Any) -> D:
    """A dataclass of what JSON has kept of one, where tuples are lists.

    Raises:
      TypeError: something else than its fields, or a value that a field does not allow.
    """
    if not isinstance(fields, dict):
        raise TypeError(f"expected fields by name, got {fields!r}")
    hints = typing.get_type_hints(kind)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for name, value in given.items():
        if not fits(value, hints.get(name, object)):
            raise TypeError(f"{name} must be {inspect.formatannotation(hints[name])}, got {value!r}")
    return kind(**given)
