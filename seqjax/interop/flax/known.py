# SPDX-License-Identifier: Apache-2.0
"""Flax's own cells that have an equivalent here: their options, weights and carries in seqjax's form."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from seqjax.activations import FUNCTIONS, Activation
from seqjax.base import Array, Carry, Cell, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.cells.gru import GRUCarry
from seqjax.cells.lstm_equations import LSTMCarry
from seqjax.cells.simple import SimpleCarry
from seqjax.dtypes import DTypes
from seqjax.interop.flax.weights import LAYOUTS, Layout, Tree
from seqjax.interop.layout import check_options

_SAME: dict[str, tuple] = {
    "residual": (False,),
    "carry_init": (None, nn.initializers.zeros_init()),
    "promote_dtype": (nnx.nn.dtypes.promote_dtype,),
}
"""Options, with the values that correspond to what a seqjax cell does."""


class Known(NamedTuple):
    """A Flax cell for which a seqjax cell can stand in."""

    api: str
    """`"linen"` or `"nnx"`."""
    module: Any
    layout: Layout

    @property
    def owner(self) -> str:
        """The name of the cell in messages."""
        return f"{self.api}.{type(self.module).__name__}"

    @property
    def hidden_dim(self) -> int:
        return self.module.features if self.api == "linen" else self.module.hidden_features

    def check(self) -> None:
        """Rejects options that the seqjax cell does not have.

        Raises:
          ValueError: naming the option.
        """
        options = {name: getattr(self.module, name) for name in _SAME if hasattr(self.module, name)}
        check_options(self.owner, options, _SAME, "use from_flax_cell, which runs Flax's own step")

    @property
    def stands_in(self) -> bool:
        """Whether the seqjax cell has all of its options."""
        return all(getattr(self.module, name, values[0]) in values for name, values in _SAME.items())

    def cell(self, dtypes: DTypes) -> Cell:
        """The seqjax cell."""
        activation = named(self.module.activation_fn)
        if self.layout.cell == "Simple":
            return Simple(self.hidden_dim, activation=activation, dtypes=dtypes)
        gate = named(self.module.gate_fn)
        if self.layout.cell == "LSTM":
            return LSTM(self.hidden_dim, activation=activation, recurrent_activation=gate, dtypes=dtypes)
        return GRU(self.hidden_dim, reset="after", activation=activation, recurrent_activation=gate, dtypes=dtypes)

    def params(self, tree: Tree) -> Params:
        """seqjax's params, from the cell's weights."""
        return self.layout.read(self.owner, tree, self.hidden_dim)

    def dtypes(self, params: Params, inputs: Array | None = None) -> DTypes:
        """Flax's dtypes: the carry has the params' dtype, whatever the compute dtype.

        A module without a dtype computes in that of its params, or of params and `inputs` together.
        """
        param_dtype = params.w_in.dtype
        inferred = param_dtype if inputs is None else jnp.result_type(param_dtype, inputs)
        compute = jnp.dtype(self.module.dtype or inferred)
        if compute == param_dtype and (inputs is None or inputs.dtype == compute):
            return DTypes(params=param_dtype)
        return DTypes(params=param_dtype, compute=compute, carry=param_dtype)


def known(module: Any) -> Known | None:
    """What `module` is, if it is exactly one of Flax's own cells; subclasses do not count, as they may do anything."""
    for api, namespace in (("linen", nn), ("nnx", nnx)):
        name = type(module).__name__
        layout = LAYOUTS.get((api, name))
        if layout is not None and type(module) is getattr(namespace, name):
            return Known(api, module, layout)
    return None


def named(function: Any) -> Activation:
    """The name of an activation that seqjax knows, so that its slope is known too; otherwise the function itself.

    >>> named(jnp.tanh), named(nn.sigmoid)
    ('tanh', 'sigmoid')
    """
    return next((name for name, known_function in FUNCTIONS.items() if known_function is function), function)


def carry_from_flax(cell: Cell, carry: Any) -> Carry:
    """seqjax's carry, from Flax's: `(c, h)` for an LSTM, h alone for the others."""
    if isinstance(cell, LSTM):
        c, h = carry
        return LSTMCarry(h, c)
    return (GRUCarry if isinstance(cell, GRU) else SimpleCarry)(carry)


def carry_to_flax(carry: Carry) -> tuple[Array, Array] | Array:
    """Flax's carry, from seqjax's.

    >>> carry_to_flax(LSTMCarry(h=1, c=2)), carry_to_flax(GRUCarry(3))
    ((2, 1), 3)
    """
    return (carry.c, carry.h) if isinstance(carry, LSTMCarry) else carry.h
