# SPDX-License-Identifier: Apache-2.0
"""`RNN` for Flax linen: replaces `flax.linen.RNN`, run by a seqjax engine."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.frozen_dict import FrozenDict

from seqjax.base import Array, Cell, Engine, Params
from seqjax.engines.auto import Auto
from seqjax.interop.flax.cells import LinenCell, only_params
from seqjax.interop.flax.known import carry_from_flax, carry_to_flax, known
from seqjax.interop.flax.sequences import batch_shape, engine_for, refuse_scan_options, run_sequence
from seqjax.trees import leaf_names

__all__ = ["RNN"]


class RNN(nn.Module):
    """A recurrent layer with the signature and defaults of `flax.linen.RNN`.

    The cell is either a Flax cell, whose params keep their names, so that checkpoints still load and only the
    import has to change; or a seqjax cell, whose params belong to this layer: `w_in`, `w_rec` and so on.
    Flax's `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell` and `GRUCell` are run by the seqjax cells with the
    same equations, with their hand-written gradient; any other cell is run by its own step. Carries are
    those of the given cell: `(c, h)` for Flax's LSTM, `LSTMCarry(h, c)` for seqjax's.

    It differs from Flax's where that is wrong or wasteful: padded outputs are zeros, and whatever the padding
    contains reaches no gradient; a length of 0 gives the initial carry; lengths may have any number of batch
    axes; the last carries are kept along the way, not picked out of all of them; with `dtype=bfloat16`,
    outputs are bfloat16 and the carry has the params' dtype.

    A seqjax cell with noise in its recurrence takes a key from the stream `dropout` if there is one,
    which means training; a Flax cell that is run by its own step gets all the streams there are.

    Attributes:
      cell: a `flax.linen` cell or a seqjax `Cell`.
      time_major: whether inputs are `[T, ..., D]` rather than `[..., T, D]`.
      return_carry: whether calls return `(carry, outputs)`.
      reverse: whether sequences are run, and returned, from their last valid step to their first.
      keep_order: whether reversed outputs are put back into the order of the inputs.
      unroll: the same as `engine=Scan(unroll=...)`.
      variable_axes, variable_broadcast, variable_carry, split_rngs: options of Flax's scan; only
        their defaults are accepted.
      engine: how the cell is run; `Auto` keeps memory at √T on long sequences.

    >>> import seqjax
    >>> xs = jnp.ones((32, 50, 3))
    >>> model = RNN(nn.LSTMCell(4), return_carry=True)
    >>> variables = model.init(jax.random.key(0), xs)
    >>> (c, h), ys = model.apply(variables, xs, seq_lengths=jnp.full(32, 7))
    >>> c.shape, ys.shape
    ((32, 4), (32, 50, 4))
    >>> model = RNN(seqjax.GRU(4), engine=seqjax.engines.Checkpointed())
    >>> sorted(model.init(jax.random.key(0), xs)["params"])
    ['bias', 'w_in', 'w_rec']
    """

    cell: Any
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    variable_axes: Mapping[Any, Any] = FrozenDict()
    variable_broadcast: Any = "params"
    variable_carry: Any = False
    split_rngs: Mapping[Any, bool] = FrozenDict({"params": False})
    engine: Engine = Auto()

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Outputs `[..., T, H]`, or `(carry, outputs)`; arguments that are not `None` override the attributes.

        Args:
          inputs: `[..., T, D]`, or time-major `[T, ..., D]`.
          initial_carry: the carry to start from; by default the cell's own.
          init_key: the key for a Flax cell's initial carry, by default `jax.random.key(0)`.
          seq_lengths: `[...]` int, the number of valid steps in each sequence.
          return_carry, time_major, reverse, keep_order: as for the attributes.

        Raises:
          ValueError: an option that means nothing here, or lengths whose shape is not the batch's.
        """
        refuse_scan_options(
            "linen.RNN",
            variable_axes=(self.variable_axes, {}),
            variable_broadcast=(self.variable_broadcast, "params"),
            variable_carry=(self.variable_carry, False),
            split_rngs=(self.split_rngs, {"params": False}),
        )
        time_major = self.time_major if time_major is None else time_major
        shape = batch_shape("linen.RNN", inputs, time_major)
        cell, params, initial, standing_in = self._seqjax(inputs, shape, initial_carry, init_key)
        stream = cell.streams[0] if isinstance(cell, LinenCell) and cell.stochastic else "dropout"
        carry, outputs = run_sequence(
            "linen.RNN", engine_for("linen.RNN", self.engine, self.unroll), cell, params, initial, inputs,
            seq_lengths=seq_lengths,
            time_major=time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            key=self.make_rng(stream) if cell.stochastic and self.has_rng(stream) else None,
        )  # fmt: skip
        if not (self.return_carry if return_carry is None else return_carry):
            return outputs
        return (carry_to_flax(carry) if standing_in else carry), outputs

    def _seqjax(self, inputs: Array, shape: tuple, given: Any, init_key: Any) -> tuple[Cell, Any, Any, bool]:
        """The cell and params to run, the carry to start from, and whether they stand in for Flax's."""
        if isinstance(self.cell, Cell):
            params = self._own_params(self.cell, inputs.shape[-1])
            return self.cell, params, self.cell.initial_carry(params, shape) if given is None else given, False
        if not isinstance(self.cell, nn.RNNCellBase):
            raise ValueError(f"linen.RNN takes a flax.linen cell or a seqjax Cell, got {type(self.cell).__name__}.")
        key = jax.random.key(0) if init_key is None else init_key
        if self.is_mutable_collection("params"):  # params may be drawn in apply as well as in init
            features = inputs.shape[-1:]
            self.cell(self.cell.initialize_carry(key, features), jnp.zeros(features, inputs.dtype))
        variables = only_params(f"linen.{type(self.cell).__name__}", {"params": {}, **self.cell.variables})
        own = known(self.cell)
        if own is not None and own.stands_in:
            params = own.params(variables)
            cell = own.cell(own.dtypes(params, inputs))
            start = cell.initial_carry(params, shape) if given is None else carry_from_flax(cell, given)
            return cell, params, start, True
        streams = set(self.scope.rngs) if self.scope is not None else set()
        cell = LinenCell(self.cell.clone(parent=None), tuple(sorted(streams - {"params"})))
        start = self.cell.initialize_carry(key, (*shape, inputs.shape[-1])) if given is None else given
        return cell, variables, start, False

    def _own_params(self, cell: Cell, in_dim: int) -> Params:
        """A seqjax cell's params, drawn together, each registered as a param of this layer."""
        like = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_dim))
        names = leaf_names(like, "params")
        missing = self.is_mutable_collection("params") and not all(self.has_variable("params", name) for name in names)
        leaves, treedef = jax.tree.flatten(cell.init(self.make_rng("params"), in_dim) if missing else like)

        def draw(key: Array, leaf: Any) -> Array:
            return leaf if missing else jnp.zeros(leaf.shape, leaf.dtype)  # only its shape is used, for checking

        own = [self.param(name, draw, leaf) for name, leaf in zip(names, leaves, strict=True)]
        return jax.tree.unflatten(treedef, own)
