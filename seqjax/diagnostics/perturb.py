# SPDX-License-Identifier: Apache-2.0
"""A step whose new state is perturbed where it is made, so that its output sees the perturbation.

The step is traced, and the perturbation of each leaf of the new carry is taken back through the operations that
only rearrange numbers (reshapes, slices, concatenations, ...) to the array in which those numbers were made. Added
there, it reaches all that is made of them. Where that cannot be decided, the step is refused.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from seqjax.base import Array, Carry, Cell, Key, Params
from seqjax.diagnostics.flat import bound, flat, value, variables

_MOVES = (
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "name", "reshape", "rev"),
    *("sharding_constraint", "slice", "split", "squeeze", "stack", "transpose", "unstack"),
)
"""Linear operations A with A Aᵀ = 1, which only rearrange numbers: A (x + Aᵀ δ) = A x + δ. See also `_moves`."""
_COPIES = (
    *("broadcast_in_dim", "broadcast_to", "complex", "dynamic_slice", "dynamic_update_slice"),
    *("gather", "imag", "pad", "real", "scatter", "tile"),
)
"""Operations that also put given numbers elsewhere, but more than once, or where other values say, or among others."""


def perturbed_step(cell: Cell, params: Params, carry: Carry, z: Any, key: Key, delta: Carry) -> tuple[Carry, Array]:
    """`cell.step` with `delta` added to the new carry as soon as it is made, so that whatever depends on it sees it.

    So for an LSTM's c_t the gradient with respect to `delta` is that of c_t, also through h_t = o ⊗ tanh(c_t).
    A state that is the old one counts as new only where it is returned, not where the step computes with it.

    Raises:
      ValueError: a step that leaves open whether its output is made of the new carry.
    """
    closed, shapes = jax.make_jaxpr(cell.step, return_shape=True)(params, carry, z, key)
    deltas = [d if jnp.issubdtype(d.dtype, jnp.inexact) else None for d in jax.tree.leaves(delta)]
    deltas += [None] * len(jax.tree.leaves(shapes[1]))
    try:
        outputs = _perturbed(closed, deltas, jax.tree.leaves((params, carry, z, key)))
    except _UndecidedError as error:
        raise ValueError(
            f"gradient_flow: the step of {cell!r} {error}, and nothing tells whether that is made of the state; "
            "let the step make its output from the new carry, outside of it."
        ) from None
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


class _UndecidedError(Exception):
    """Says what a step does."""


def _perturbed(closed: core.ClosedJaxpr, deltas: list[Array | None], args: Sequence, *, branch: bool = False) -> list:
    """The outputs of a program, with a delta (or none) for each of them added where it is made."""
    program = flat(closed, args)
    jaxpr = program.jaxpr
    at = _taken_back(jaxpr, deltas, branch)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *args], strict=True))
    returned = {var: _plus(given, at[var]) for var, given in values.items() if var in at}  # not what is computed with
    for equation in jaxpr.eqns:
        inputs = [value(atom, values) for atom in equation.invars]
        own = [at.get(var) for var in equation.outvars]
        if equation.primitive.name == "cond" and any(delta is not None for delta in own):
            branches = [partial(_perturbed, inside, branch=True) for inside in equation.params["branches"]]
            outputs = jax.lax.switch(inputs[0], branches, own, inputs[1:])
        else:
            outputs = [_plus(output, delta) for output, delta in zip(bound(equation, inputs), own, strict=True)]
        values.update(zip(equation.outvars, outputs, strict=True))
    values |= returned
    return [
        _plus(atom.val, delta) if isinstance(atom, core.Literal) else values[atom]
        for atom, delta in zip(jaxpr.outvars, deltas, strict=True)
    ]


def _taken_back(jaxpr: core.Jaxpr, deltas: list[Array | None], branch: bool) -> dict[Any, Array]:
    """For each variable what is to be added to it: the deltas of the outputs, at the variables they are moved from.

    Raises:
      _UndecidedError: something may be made of the state before anything can be added to it.
    """
    made = {var for equation in jaxpr.eqns for var in equation.outvars}
    at: dict[Any, Array] = {}
    parts: set[Any] = set()  # variables of which some numbers are this state, and others are not
    outside: dict[Any, list] = {}  # variables that are not made here, with the operations that move them

    def add(var: Any, delta: Array) -> None:
        delta = delta.astype(var.aval.dtype)
        at[var] = at[var] + delta if var in at else delta

    for atom, delta in zip(jaxpr.outvars, deltas, strict=True):
        if delta is not None and not isinstance(atom, core.Literal):
            add(atom, delta)
            if atom not in made:
                outside[atom] = []
    equations: list[Any] = jaxpr.eqns
    for equation in reversed(equations):
        if not any(var in at for var in equation.outvars):
            continue
        if not _moves(equation):
            _share_between_twins(equation, at)
            _check_maker(jaxpr, equation, at, parts)
            continue
        sources = [var for var in variables(equation.invars) if var in made]
        for var in variables(equation.invars):
            if var not in made:
                outside.setdefault(var, []).append(equation)
        if not sources:
            continue
        whole = [var for var in equation.outvars if var in at and var not in parts]
        if sum(var.aval.size for var in whole) < sum(atom.aval.size for atom in equation.invars):
            parts.update(sources)
        _, back = jax.vjp(partial(bound, equation), [_zeros(atom) for atom in equation.invars])  # Aᵀ
        (shares,) = back([at.pop(var) if var in at else _zeros(var) for var in equation.outvars])
        rest = []
        for atom, share in zip(equation.invars, shares, strict=True):
            if atom in sources:
                add(atom, share)
            rest.append(_zeros(atom) if atom in sources else share)
        if len(sources) < len(equation.invars):  # numbers from outside become state here
            at.update(zip(equation.outvars, bound(equation, rest), strict=True))
    for var, movers in outside.items() if branch else ():
        _check_passed(jaxpr, var, movers, seen=var in at)
    return at


def _moves(equation: Any) -> bool:
    """Whether an operation only rearranges numbers that can have a gradient."""
    if equation.primitive.name not in _MOVES:
        return False
    before, after = equation.invars[0].aval, equation.outvars[0].aval
    kinds = [kind for kind in (jnp.floating, jnp.complexfloating) if jnp.issubdtype(before.dtype, kind)]
    whole = equation.primitive.name != "broadcast_in_dim" or before.size == after.size
    return whole and any(jnp.issubdtype(after.dtype, kind) for kind in kinds)


def _twins(equation: Any) -> list:
    """A name for each output of an operation: one name for what a call with its own gradient returns twice."""
    inside = equation.params.get("call_jaxpr")
    return equation.outvars if inside is None else inside.jaxpr.outvars


def _share_between_twins(equation: Any, at: dict[Any, Array]) -> None:
    named = list(zip(_twins(equation), equation.outvars, strict=True))
    found = {var: [at[twin] for other, twin in named if other is name and twin in at] for name, var in named}
    at.update({var: sum(deltas[1:], deltas[0]) for var, deltas in found.items() if deltas})


def _check_maker(jaxpr: core.Jaxpr, equation: Any, at: dict[Any, Array], parts: set[Any]) -> None:
    """Rejects a state from an operation that may also have made something of it, or after which that is open."""
    name = equation.primitive.name
    if name == "cond":  # which is looked into
        return
    if name in _COPIES:
        copied = {var for e in jaxpr.eqns for var in e.outvars if _inexact(var)}.intersection(
            variables(equation.invars)
        )
        if _lead_out(jaxpr, copied, without=[equation]):
            raise _UndecidedError(f"copies numbers into its state by {name!r} and also makes something else of them")
        return
    names = dict(zip(equation.outvars, _twins(equation), strict=True))
    states = [var for var in equation.outvars if var in at]
    beside = {var for var in names for state in states if names[var] is not names[state] and _inexact(var)}
    program = any(isinstance(option, core.Jaxpr | core.ClosedJaxpr) for option in equation.params.values())
    packed = program and name != "custom_jvp_call" and not parts.isdisjoint(states)  # custom_jvp: activations
    if packed or _lead_out(jaxpr, beside):
        raise _UndecidedError(f"makes its state and something else in one {name!r}")


def _check_passed(jaxpr: core.Jaxpr, var: Any, movers: list, *, seen: bool) -> None:
    """Rejects a branch that returns, as state, what it has not made, and also makes something else of it."""
    users = [e for e in jaxpr.eqns if var in variables(e.invars) and not any(e is mover for mover in movers)]
    others = {out for e in users for out in e.outvars}
    if _lead_out(jaxpr, others) or (not seen and var in variables(jaxpr.outvars)):
        raise _UndecidedError("returns what it has as its state from a branch of 'cond' and makes something else of it")


def _lead_out(jaxpr: core.Jaxpr, starts: set[Any], without: Sequence = ()) -> bool:
    """Whether an output depends on one of the variables, not only through some operations."""
    reached = {*starts}
    for equation in jaxpr.eqns:
        if not reached.isdisjoint(variables(equation.invars)) and not any(equation is e for e in without):
            reached.update(equation.outvars)
    return not reached.isdisjoint(variables(jaxpr.outvars))


def _inexact(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _zeros(atom: Any) -> Array:
    return jnp.zeros(atom.aval.shape, atom.aval.dtype)


def _plus(given: Array, delta: Array | None) -> Array:
    return given if delta is None else given + delta.astype(given.dtype)
