# SPDX-License-Identifier: Apache-2.0
"""The three words of seqjax: **Cell**, **Engine**, **Layer**.

A cell is one step of a recurrence and knows no time axis. An engine is how a cell
is run over time, never what it computes. A layer maps a sequence to a sequence
with a carry, and layers compose. Each is a frozen dataclass whose fields are
hyperparameters only: it prints as the code that makes it, compares and hashes by
value, and is changed by `dataclasses.replace`. Everything that varies (params,
carry, inputs, keys) comes in as an argument.

Axis 0 is time, axis -1 is features, everything between is batch: `[T, ..., D]`.
"""

import abc
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.plan import Plan, tree_bytes
from seqjax.sequences import step_shape

Params = Any
"""A NamedTuple or tuple of arrays, `None` where an option is off."""
Carry = Any
"""What goes from one step to the next; its structure, shapes and dtypes never change."""
Option = Any
"""An array, or `None` where the option it belongs to is off."""
Residuals = Any
"""What a forward step keeps for its reverse step."""
Shape = tuple[int, ...]
Array = jax.Array
Mask = jax.Array | None
"""`[T, ...]` bool: False where a step is padding."""
Resets = jax.Array | None
"""`[T, ...]` bool: True where a new sequence begins."""
Key = jax.Array | None
"""A PRNG key means training, `None` means evaluation. There is no other flag."""


def code(value: Any) -> str:
    """The code that makes a frozen dataclass: fields at their default are left out.

    >>> import seqjax
    >>> print(seqjax.RNN(seqjax.GRU(20, normalize="layer")))
    RNN(GRU(20, normalize='layer'))
    """
    arguments, positional = [], True
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.default is dataclasses.MISSING and positional:
            arguments.append(repr(given))
        elif field.default is dataclasses.MISSING or given != field.default:
            arguments.append(f"{field.name}={given!r}")
            positional = False
        else:
            positional = False
    return f"{type(value).__name__}({', '.join(arguments)})"


class Described(abc.ABC):  # noqa: B024
    """What cells, engines, layers and initializers share: they print as their code."""

    def __repr__(self) -> str:
        return code(self)


class Cell(Described):
    """One recurrence: `carry_t, y_t = step(params, carry_{t-1}, project(params, x_t))`.

    Beyond the four methods, a cell offers an engine more by naming a capability
    in `capabilities` and implementing its methods:

    - `"adjoint"`: `step_residuals`, `step_transpose`, `accumulate`, a hand-written
      reverse pass that the scan engines use in place of autodiff (and `project_transpose`, if it has its own);
    - `"affine"`: `coefficients`, `readout`, for `carry_t = decay_t * carry_{t-1} + drive_t`;
    - `"jacobian"`: `step_jacobian`, ∂carry_t/∂carry_{t-1} in closed form, beside its `jacobian_structure`;
    - `"seen"`: `step_seen`, whose recurrent products see another h than the carry's, for recurrent dropout.

    Every method takes arrays with any leading batch axes.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """The optional method groups that this cell, with these options, offers."""
        return frozenset()

    @property
    def stochastic(self) -> bool:
        """Whether `step` must be given a key in training; engines then split one per step."""
        return False

    @property
    def couples_batch(self) -> bool:
        """Whether a training step mixes the sequences of a batch (batch normalization)."""
        return False

    @abc.abstractmethod
    def init(self, key: Array, in_dim: int) -> Params:
        """Draws the params for inputs of `in_dim` features."""

    @abc.abstractmethod
    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        """The carry before the first step; leaves are `[*batch_shape, ...]`."""

    def project(self, params: Params, x: Array) -> Any:
        """The part of a step that does not depend on the carry; an engine may take it out of the loop."""
        return x

    @abc.abstractmethod
    def step(self, params: Params, carry: Carry, z: Any, key: Key = None) -> tuple[Carry, Array]:
        """One step from `z = project(params, x)`: the new carry and the output `[..., H]`."""

    # -- adjoint ---------------------------------------------------------------------------

    def step_residuals(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Array, Residuals]:
        """`step` that also returns what its transpose needs.

        Where a residual is the output itself, or the leaf of `carry` that was the output of the step before, return
        that very object: engines know it by identity, and store outputs once.
        """
        raise self.not_offered("adjoint")

    def step_transpose(
        self, params: Params, residuals: Residuals, d_carry: Carry, d_y: Array
    ) -> tuple[Carry, Any, Any]:
        """Cotangents of one step's inputs: `(d_carry, d_z, extra)`; where z is a tuple, those of its
        arrays side by side on the last axis, ready for one matmul, or whatever the cell's own
        `project_transpose` and `accumulate` take.

        No weight gradient is computed here; `extra` is whatever `accumulate` needs
        beside `d_z` (a pytree, `()` if nothing).
        """
        raise self.not_offered("adjoint")

    def accumulate(self, params: Params, residuals: Residuals, d_zs: Any, extras: Any) -> Params:
        """The params' cotangent from all steps at once: residuals, `d_zs` and `extras` are
        stacked on axis 0. What enters through `project` is left zero: `project_transpose` has it."""
        raise self.not_offered("adjoint")

    def project_transpose(self, params: Params, x: Array, d_z: Any) -> tuple[Params, Array]:
        """Cotangents of the inputs of `project`, by autodiff where a cell has nothing better."""
        z, transpose = jax.vjp(self.project, params, x)
        arrays, structure = jax.tree.flatten(z)
        ends = list(itertools.accumulate(array.shape[-1] for array in arrays[:-1]))
        return transpose(jax.tree.unflatten(structure, jnp.split(d_z, ends, axis=-1)))

    # -- affine ----------------------------------------------------------------------------

    def coefficients(self, params: Params, z: Any) -> tuple[Carry, Carry]:
        """`(decay, drive)` of `carry_t = decay_t * carry_{t-1} + drive_t`, leaf by leaf."""
        raise self.not_offered("affine")

    def readout(self, params: Params, carry: Carry, z: Any) -> Array:
        """The output of the step that ended in `carry`."""
        raise self.not_offered("affine")

    # -- jacobian --------------------------------------------------------------------------

    @property
    def jacobian_structure(self) -> str:
        """Which entries of ∂carry_t/∂carry_{t-1} may not be zero, for the Newton engine.

        `"dense"`: anything; `"diagonal"`: each entry of the carry depends on its own past alone;
        `"block"`: unit j of every leaf `[..., H]` depends on unit j of all leaves.
        """
        return "dense"

    def step_jacobian(self, params: Params, carry: Carry, z: Any) -> Any:
        """∂carry_t/∂carry_{t-1} by structure: diagonal, a pytree like the carry; block, `[..., H, k, k]`
        for k leaves; dense, `[..., N, N]` over the leaves' features one after the other."""
        raise self.not_offered("jacobian")

    # -- seen -----------------------------------------------------------------------------

    def step_seen(self, params: Params, carry: Carry, h: Array, z: Any) -> tuple[Carry, Array]:
        """`step` whose recurrent products see `h` in place of `carry.h`."""
        raise self.not_offered("seen")

    # -- batch normalization ---------------------------------------------------------------

    def calibrate(self, params: Params, carry: Carry, xs: Array) -> Params:
        """Params with the population statistics of `xs [T, ..., D]`; as given where there are none."""
        return params

    def not_offered(self, capability: str) -> ValueError:
        """The refusal of a capability that this cell, with these options, does not offer."""
        return ValueError(f"{self!r} does not offer {capability!r}; it offers {sorted(self.capabilities)}.")


class Engine(Described):
    """How a cell is run over time. Every engine gives the numbers of `testing.reference_loop`."""

    @abc.abstractmethod
    def run(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        """Runs `cell` over `xs [T, ..., D]`: the carry after the last step and `ys [T, ..., H]`.

        Where `mask` is False the step is skipped: the carry is kept, the output is
        zeros. Where `resets` is True the carry goes back to the initial carry before
        x_t is consumed, also where x_t is masked.
        """

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        """What `run` would do with such inputs, estimated from shapes alone; by default a gradient keeps the carry of
        every step."""
        return Plan(repr(cell), repr(self), "as asked for", xs.shape[0] * tree_bytes(carry), xs.shape[0])


class Layer(Described):
    """A map from sequence to sequence with a carry."""

    @property
    def streams(self) -> bool:
        """Whether running `[0:k]`, then `[k:T]` from the carry, equals running `[0:T]`."""
        return True

    @property
    def stride(self) -> int:
        """Steps of input for a step of output; pieces of a stream are multiples of it."""
        return 1

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        """The batch axes of inputs `xs [T, ..., D]`: what `initial_carry` is to be given for them."""
        return step_shape(xs)[1:]

    @abc.abstractmethod
    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        """Draws the params for inputs like `xs [T, ..., D]`."""

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        """The carry before the first step: `()` for a layer that keeps nothing."""
        return ()

    @abc.abstractmethod
    def apply(
        self,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        """Maps `xs [T, ..., D]` to `(carry, ys [T', ..., F])`."""

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        """What `apply` would do with such inputs, one entry for each layer inside."""
        return (Plan(repr(self), "", "acts on all steps at once", 0, 1),)

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        """The mask and resets of the outputs: as given, but for layers that change the time axis.

        `carry` is the one `apply` starts from; a strided layer keeps in it a reset
        that fell after the last output of the piece before.
        """
        return mask, resets

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        """Params with the population statistics of `xs`; as given where there are none."""
        return params
