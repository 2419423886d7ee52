# SPDX-License-Identifier: Apache-2.0
"""A traced function as one flat list of operations: without calls, and with equal operations only once."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
"""Calls that compute what is inside them, with its gradient; those with a gradient of their own stay as they are."""


def flat(closed: core.ClosedJaxpr, args: Sequence) -> core.ClosedJaxpr:
    """The operations of `closed` for arguments like these, also those inside calls.

    Numbers that are computed twice in the same way are one variable, such as the h of two conditions with one
    predicate, so that equal variables are found by name.
    """
    return jax.make_jaxpr(lambda *args: _evaluated(closed, args, {}))(*args)


def bound(equation: Any, inputs: Sequence) -> list:
    """The outputs of an operation."""
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def variables(atoms: Sequence) -> list:
    """Those of an equation's inputs, or of a program's outputs, that are no literals."""
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def value(atom: Any, values: dict[Any, Any]) -> Any:
    return atom.val if isinstance(atom, core.Literal) else values[atom]


def _evaluated(closed: core.ClosedJaxpr, args: Sequence, known: dict[Any, tuple[list, list]]) -> list:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [value(atom, values) for atom in equation.invars]
        if equation.primitive.name in _CALLS:
            inside = equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]
            inside = inside if isinstance(inside, core.ClosedJaxpr) else core.ClosedJaxpr(inside, ())
            outputs = _evaluated(inside, inputs, known)
        else:
            operation = _name(equation, inputs)
            if operation not in known or equation.effects:
                known[operation] = inputs, bound(equation, inputs)  # inputs too: the ids of what is gone recur
            outputs = known[operation][1]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom, values) for atom in jaxpr.outvars]


def _name(equation: Any, inputs: list) -> Any:
    """A key for what an operation computes: equal only where that is equal."""
    names = tuple(
        (repr(atom.val), str(atom.aval)) if isinstance(atom, core.Literal) else id(given)
        for atom, given in zip(equation.invars, inputs, strict=True)
    )
    name = equation.primitive, names, tuple(sorted(equation.params.items(), key=lambda option: option[0]))
    try:
        hash(name)
    except TypeError:  # with an array among its options, say
        return object()
    return name
