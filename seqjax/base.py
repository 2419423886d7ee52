# SPDX-License-Identifier: Apache-2.0
"""The three words of seqjax: **Cell**, **Engine**, **Layer**.

A cell is one step of a recurrence and knows no time axis. An engine decides how a
cell is run over time, never what it computes. A layer maps a sequence to a sequence
with a carry, and layers compose. Each is a frozen dataclass whose fields are
hyperparameters only: it prints as the code that makes it, compares and hashes by
value, and is changed with `dataclasses.replace`. Everything that varies (params,
carry, inputs, keys) comes in as an argument.

Axis 0 is time, axis -1 is features, and everything between is batch: `[T, ..., D]`.
"""

import abc
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.plan import Plan
from seqjax.sequences import step_shape
from seqjax.trees import tree_bytes

Params = Any
"""A NamedTuple or tuple of arrays, with `None` where an option is off."""
Carry = Any
"""What passes from one step to the next; its structure, shapes and dtypes never change."""
Option = Any
"""An array, or `None` where the option it belongs to is off."""
Residuals = Any
"""What a forward step stores for its reverse step."""
Shape = tuple[int, ...]
Array = jax.Array
Mask = jax.Array | None
"""`[T, ...]` bool: False where a step is padding."""
Resets = jax.Array | None
"""`[T, ...]` bool: True where a new sequence begins."""
Key = jax.Array | None
"""A PRNG key means training, `None` means evaluation. There is no other flag."""

CAPABILITIES = {
    "adjoint": ("step_residuals", "step_transpose", "accumulate"),
    "affine": ("coefficients", "readout"),
    "jacobian": ("step_jacobian",),
    "seen": ("step_seen",),
}
"""The methods that a cell implements for each capability that it offers; see `Cell`."""


def code(value: Any) -> str:
    """The code that makes a frozen dataclass, without the fields that have their default value.

    >>> import seqjax
    >>> print(seqjax.RNN(seqjax.GRU(20, normalize="layer")))
    RNN(GRU(20, normalize='layer'))
    >>> print(seqjax.training.AtLastStep(seqjax.training.cross_entropy))
    AtLastStep(cross_entropy)
    """
    arguments = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        told = getattr(given, "__name__", repr(given))  # functions print as an address
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and not field.kw_only:
            arguments.append(told)
        elif given != field.default:
            arguments.append(f"{field.name}={told}")
    return f"{type(value).__name__}({', '.join(arguments)})"


class Described(abc.ABC):  # noqa: B024
    """What cells, engines, layers and initializers share: they print as their code."""

    def __repr__(self) -> str:
        return code(self)


class Cell(Described):
    """One recurrence: `carry_t, y_t = step(params, carry_{t-1}, project(params, x_t))`.

    Beyond these four methods, a cell can offer an engine more by naming a capability
    in `capabilities` and implementing its methods:

    - `"adjoint"`: `step_residuals`, `step_transpose` and `accumulate`, a hand-written reverse
      pass that the scan engines use instead of autodiff (and optionally `project_transpose`);
    - `"affine"`: `coefficients` and `readout`, for `carry_t = decay_t * carry_{t-1} + drive_t`;
    - `"jacobian"`: `step_jacobian`, ∂carry_t/∂carry_{t-1} in closed form, along with `jacobian_structure`;
    - `"seen"`: `step_seen`, whose recurrent products see a given h instead of the carry's, for recurrent dropout.

    Every method accepts arrays with any number of leading batch axes. `help(seqjax.cells)` shows a cell with the affine
    capability and one with the adjoint, and `seqjax.testing.check_cell` holds a cell of your own to all of this.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """The optional method groups that this cell offers with its options."""
        return frozenset()

    @property
    def stochastic(self) -> bool:
        """Whether `step` needs a key in training; engines then split off one per step."""
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
        """The part of a step that does not depend on the carry; an engine may hoist it out of the loop."""
        return x

    @abc.abstractmethod
    def step(self, params: Params, carry: Carry, z: Any, key: Key = None) -> tuple[Carry, Array]:
        """One step from `z = project(params, x)`.

        Args:
          params, carry: as drawn by `init`, and that of the step before, like `initial_carry`.
          z: made from x `[..., D]`.
          key: a key trains, by noise or the batch's statistics; `None` evaluates.

        Returns:
          The new carry, of the same structure, shapes and dtypes, and y `[..., H]` in the dtype of the computation.
        """

    # -- adjoint ---------------------------------------------------------------------------

    def step_residuals(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Array, Residuals]:
        """Like `step`, but also returns what its transpose needs.

        Where a residual is the output itself, or the leaf of `carry` that was the previous step's output, return
        that very object: engines recognize it by identity and store outputs only once.

        Args:
          params, carry, z: as for `step`.

        Returns:
          The new carry, y, and the residuals, a pytree of arrays `[..., n]`.
        """
        raise self.not_offered("adjoint")

    def step_transpose(
        self, params: Params, residuals: Residuals, d_carry: Carry, d_y: Array
    ) -> tuple[Carry, Any, Any]:
        """Cotangents of one step's inputs, without any weight gradient.

        Args:
          params: as for `step`.
          residuals: those of the step.
          d_carry, d_y: the cotangents of the new carry and of y, like these.

        Returns:
          `(d_carry, d_z, extra)`: the cotangent of the carry before the step, that of z, and a pytree of whatever
          `accumulate` needs besides, `()` if nothing. Where z is a tuple, `d_z` holds the cotangents of its arrays
          side by side on the last axis, ready for one matmul, or whatever the cell's own `project_transpose` and
          `accumulate` take.
        """
        raise self.not_offered("adjoint")

    def accumulate(self, params: Params, residuals: Residuals, d_zs: Any, extras: Any) -> Params:
        """The params' cotangent from many steps at once.

        Args:
          params: as for `step`.
          residuals, d_zs, extras: what `step_residuals` and `step_transpose` returned, stacked: `[T, ..., n]`.

        Returns:
          Cotangents like `params`; zeros for those that enter through `project`, which `project_transpose` handles.
        """
        raise self.not_offered("adjoint")

    def project_transpose(self, params: Params, x: Array, d_z: Any) -> tuple[Params, Array]:
        """Cotangents of the inputs of `project`, by autodiff unless a cell has something better.

        Args:
          params: as for `project`.
          x: `[..., D]`, of one step or of many.
          d_z: the cotangent of z, as `step_transpose` returns it.

        Returns:
          Cotangents like `params`, summed over all steps, and like x.
        """
        z, transpose = jax.vjp(self.project, params, x)
        arrays, structure = jax.tree.flatten(z)
        ends = list(itertools.accumulate(array.shape[-1] for array in arrays[:-1]))
        return transpose(jax.tree.unflatten(structure, jnp.split(d_z, ends, axis=-1)))

    # -- affine ----------------------------------------------------------------------------

    def coefficients(self, params: Params, z: Any) -> tuple[Carry, Carry]:
        """`decay_t` and `drive_t` of `carry_t = decay_t * carry_{t-1} + drive_t`, leaf by leaf.

        Args:
          params: as for `step`.
          z: of one step, or of many on a leading axis.

        Returns:
          Two pytrees like the carry, in its dtypes; a leaf of the decay may be constant, `[n]`, that of the drive is
          `[..., n]`.
        """
        raise self.not_offered("affine")

    def readout(self, params: Params, carry: Carry, z: Any) -> Array:
        """The output of the step that produced `carry`.

        Args:
          params: as for `step`.
          carry, z: that after the step and that of the step, or those of many steps on a leading axis.

        Returns:
          y `[..., H]`.
        """
        raise self.not_offered("affine")

    # -- jacobian --------------------------------------------------------------------------

    @property
    def jacobian_structure(self) -> str:
        """Which entries of ∂carry_t/∂carry_{t-1} may be nonzero, for the Newton engine.

        `"dense"`: any of them; `"diagonal"`: each entry of the carry depends only on its own past;
        `"block"`: unit j of every leaf `[..., H]` depends only on unit j of all leaves.
        """
        return "dense"

    def step_jacobian(self, params: Params, carry: Carry, z: Any) -> Any:
        """∂carry_t/∂carry_{t-1}, in the dtype of the carry.

        Args:
          params, carry, z: as for `step`.

        Returns:
          By `jacobian_structure`. Diagonal: a pytree like the carry; block: `[..., H, k, k]` for k leaves; dense:
          `[..., N, N]`, with the features of all leaves concatenated.
        """
        raise self.not_offered("jacobian")

    # -- seen -----------------------------------------------------------------------------

    def step_seen(self, params: Params, carry: Carry, h: Array, z: Any) -> tuple[Carry, Array]:
        """Like `step`, but the recurrent products see `h`, which is like `carry.h`, in its place."""
        raise self.not_offered("seen")

    # -- diagnostics -----------------------------------------------------------------------

    def gate_values(self, params: Params, carry: Carry, z: Any) -> dict[str, tuple[Array, Any]]:
        """A step's gates and activations by name.

        Args:
          params, carry, z: as for `step`.

        Returns:
          Values `[..., H]`, each with the function that made them, as its field has it; `{}` if the cell names none.
        """
        return {}

    # -- batch normalization ---------------------------------------------------------------

    def calibrate(self, params: Params, carry: Carry, xs: Array) -> Params:
        """Params with the population statistics of a sequence; unchanged if the cell has none.

        Args:
          params: as drawn by `init`.
          carry: what step 0 starts from.
          xs: `[T, ..., D]`.
        """
        return params

    def not_offered(self, capability: str) -> ValueError:
        """The error for a capability that this cell does not offer with its options, or names without its methods."""
        if capability in self.capabilities:
            methods = ", ".join(CAPABILITIES[capability])
            return ValueError(f"{self!r} names {capability!r} in its capabilities, but does not have all of {methods}.")
        return ValueError(f"{self!r} does not offer {capability!r}; it offers {sorted(self.capabilities)}.")


class Engine(Described):
    """How a cell is run over time. Every engine gives the same numbers as `testing.reference_loop`."""

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
        """Runs `cell` over all steps.

        Args:
          cell, params: the recurrence, and its params as drawn by `init`.
          carry: what step 0 starts from: the cell's `initial_carry`, or what an earlier run returned.
          xs: `[T, ..., D]` in the dtype that the cell takes, T >= 1.
          mask: `[T, ...]` bool. False: the step is skipped; the carry is kept and the output is zeros.
          resets: `[T, ...]` bool. True: the carry goes back to the initial one before x_t, even if x_t is masked.
          key: a key trains, by noise in the recurrence or the batch's statistics; `None` evaluates.

        Returns:
          The carry after the last step, and ys `[T, ..., H]` in the dtype of the cell's outputs.
        """

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        """What `run` would do with such inputs, estimated from shapes alone. By default, a gradient is taken to keep
        the carry of every step."""
        return Plan(repr(cell), repr(self), "as asked for", xs.shape[0] * tree_bytes(carry), xs.shape[0])


class Layer(Described):
    """A map from sequence to sequence with a carry."""

    @property
    def streams(self) -> bool:
        """Whether running `[0:k]` and then `[k:T]` from the returned carry gives the same as running `[0:T]`."""
        return True

    @property
    def stride(self) -> int:
        """Input steps per output step; pieces of a stream must be multiples of it."""
        return 1

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        """The batch axes of inputs `xs [T, ..., D]`, as `initial_carry` expects them."""
        return step_shape(xs)[1:]

    @abc.abstractmethod
    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        """Draws the params for inputs like `xs [T, ..., D]`."""

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        """The carry before the first step; `()` for a layer that carries nothing."""
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
        """Maps a sequence to a sequence.

        Args:
          params: as drawn by `init`.
          carry: what step 0 starts from: `initial_carry`, or what `apply` returned for the steps before.
          xs: `[T, ..., D]` floats, T >= 1; integer ids `[T, ...]` for `Embed`.
          mask: `[T, ...]` bool. False: the step is skipped; the carry is kept and the output is zeros.
          resets: `[T, ...]` bool. True: the carry goes back to the initial one before x_t, even if x_t is masked.
          key: a key trains, with dropout, zoneout and the batch's statistics; `None` evaluates.

        Returns:
          The carry after the last step, and ys `[T', ..., F]` floats; T' is T unless the layer changes the time axis.
        """

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        """What `apply` would do with such inputs, one entry for each inner layer."""
        return (Plan(repr(self), "", "acts on all steps at once", 0, 1),)

    def time_map(self, mask: Mask, resets: Resets, carry: Carry | None = None) -> tuple[Mask, Resets]:
        """The mask and resets of the outputs; those of the inputs unless the layer changes the time axis.

        `carry` is the one `apply` starts from; a strided layer uses it to remember a reset
        that fell after the last output of the previous piece.
        """
        return mask, resets

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        """Params with the population statistics of `xs`; unchanged if the layer has none."""
        return params
