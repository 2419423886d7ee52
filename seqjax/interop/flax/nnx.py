# SPDX-License-Identifier: Apache-2.0
"""`RNN` for Flax nnx: replaces `flax.nnx.RNN`, run by a seqjax engine."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from seqjax.base import Array, Cell, Engine, Key
from seqjax.engines.auto import Auto
from seqjax.interop.flax.cells import NNXCell, from_flax_cell, stream_at
from seqjax.interop.flax.known import carry_from_flax, carry_to_flax, known
from seqjax.interop.flax.sequences import batch_shape, engine_for, refuse_scan_options, run_sequence

__all__ = ["RNN"]


class RNN(nnx.Module):
    """A recurrent layer with the signature and defaults of `flax.nnx.RNN`.

    The cell is either a Flax cell, whose params stay where they are, so that only the import has to change;
    or a seqjax cell, whose params are drawn here. Flax's `SimpleCell`, `LSTMCell`, `OptimizedLSTMCell` and
    `GRUCell` are run by the seqjax cells with the same equations, with their hand-written gradient; any other
    cell is run by its own step. Carries are those of the given cell: `(c, h)` for Flax's LSTM,
    `LSTMCarry(h, c)` for seqjax's.

    It differs from Flax's where that is wrong or wasteful: padded outputs are zeros, and whatever the padding
    contains reaches no gradient; a length of 0 gives the initial carry; lengths may have any number of batch
    axes; the last carries are kept along the way, not picked out of all of them; with `dtype=bfloat16`,
    outputs are bfloat16 and the carry has the params' dtype.

    Args:
      cell: a `flax.nnx` cell or a seqjax `Cell`.
      time_major: whether inputs are `[T, ..., D]` rather than `[..., T, D]`.
      return_carry: whether calls return `(carry, outputs)`.
      reverse: whether sequences are run, and returned, from their last valid step to their first.
      keep_order: whether reversed outputs are put back into the order of the inputs.
      unroll: the same as `engine=Scan(unroll=...)`.
      state_axes, broadcast_rngs: options of Flax's scan; only their defaults are accepted.
      rngs: for a Flax cell, as in Flax, the stream from which its initial carry is drawn; for a seqjax
        cell, the `Rngs` from which its params are drawn.
      engine: how the cell is run; `Auto` keeps memory at √T on long sequences.
      in_features: D, for a seqjax cell.

    Raises:
      ValueError: an option that means nothing here.

    >>> import jax.numpy as jnp
    >>> model = RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    >>> model(jnp.ones((32, 50, 3)), seq_lengths=jnp.full(32, 7)).shape
    (32, 50, 4)
    >>> import seqjax
    >>> model = RNN(seqjax.GRU(4), in_features=3, rngs=nnx.Rngs(0), return_carry=True)
    >>> carry, ys = model(jnp.ones((32, 50, 3)))
    >>> carry.h.shape, model.params.w_in.shape
    ((32, 4), (3, 12))
    """

    def __init__(
        self,
        cell: Any,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Mapping[str, Any] | None = None,
        broadcast_rngs: Any = None,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
        engine: Engine = Auto(),
        in_features: int | None = None,
    ):
        refuse_scan_options("nnx.RNN", state_axes=(state_axes, None), broadcast_rngs=(broadcast_rngs, None))
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.engine = engine_for("nnx.RNN", engine, unroll)
        if isinstance(cell, Cell):
            if in_features is None or not isinstance(rngs, nnx.Rngs):
                raise ValueError(
                    f"nnx.RNN({cell!r}) draws the cell's params: give in_features and rngs=nnx.Rngs(seed), "
                    f"got in_features={in_features!r}, rngs={rngs!r}."
                )
            params = cell.init(rngs.params(), in_features)
            self.params = nnx.data(jax.tree.map(nnx.Param, params))
            self.rngs = nnx.data(None)
        elif isinstance(cell, nnx.RNNCellBase):
            if in_features is not None:
                raise ValueError("nnx.RNN: in_features is for a seqjax cell; a Flax cell has its own.")
            self.rngs = nnx.data(_carry_stream(rngs))
        else:
            raise ValueError(f"nnx.RNN takes a flax.nnx cell or a seqjax Cell, got {type(cell).__name__}.")

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Outputs `[..., T, H]`, or `(carry, outputs)`; arguments that are not `None` override the options.

        Args:
          inputs: `[..., T, D]`, or time-major `[T, ..., D]`.
          initial_carry: the carry to start from; by default the cell's own.
          seq_lengths: `[...]` int, the number of valid steps in each sequence.
          return_carry, time_major, reverse, keep_order: as for the constructor.
          rngs: for a Flax cell, what its initial carry is drawn from; noise in its recurrence comes from its own
            streams. A seqjax cell with such noise takes a key from the stream `dropout` or, in an `Rngs` without
            one, from `default`, which means training; without either, it runs in evaluation mode. Flax's
            `Bidirectional` hands its layers only one stream: give it `rngs.dropout` itself.
        """
        time_major = self.time_major if time_major is None else time_major
        shape = batch_shape("nnx.RNN", inputs, time_major)
        cell, params, initial, standing_in = self._seqjax(inputs, shape, initial_carry, rngs)
        carry, outputs = run_sequence(
            "nnx.RNN", self.engine, cell, params, initial, inputs,
            seq_lengths=seq_lengths,
            time_major=time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            key=self._key(cell, rngs),
        )  # fmt: skip
        if not (self.return_carry if return_carry is None else return_carry):
            return outputs
        return (carry_to_flax(carry) if standing_in else carry), outputs

    def _seqjax(self, inputs: Array, shape: tuple, given: Any, rngs: Any) -> tuple[Cell, Any, Any, bool]:
        """The cell and params to run, the carry to start from, and whether they stand in for Flax's."""
        if isinstance(self.cell, Cell):
            params = jax.tree.map(lambda param: param[...], self.params, is_leaf=lambda p: isinstance(p, nnx.Param))
            return self.cell, params, self.cell.initial_carry(params, shape) if given is None else given, False
        own = known(self.cell)
        if own is not None and own.stands_in:
            params = own.params(nnx.to_pure_dict(nnx.state(self.cell, nnx.Param)))
            cell = own.cell(own.dtypes(params, inputs))
            start = cell.initial_carry(params, shape) if given is None else carry_from_flax(cell, given)
            return cell, params, start, True
        cell, params = from_flax_cell(self.cell)
        if given is None:
            stream = self.rngs if rngs is None else _carry_stream(rngs)
            given = self.cell.initialize_carry((*shape, inputs.shape[-1]), stream)
        return cell, params, given, False

    def _key(self, cell: Cell, rngs: Any) -> Key:
        """The key for noise in the recurrence, from a Flax cell's own stream or the call's stream `dropout`."""
        if not cell.stochastic:
            return None
        if isinstance(cell, NNXCell):
            return stream_at(self.cell, cell.streams[0])()
        if isinstance(rngs, nnx.Rngs):
            return rngs.dropout() if "dropout" in rngs or "default" in rngs else None
        # a bare stream may be the one for carries, handed on by Flax's `Bidirectional`, and that may be `default`
        return rngs() if rngs is not None and rngs.tag == "dropout" else None


def _carry_stream(rngs: nnx.Rngs | nnx.RngStream | bool) -> nnx.RngStream | None:
    """The stream from which initial carries are drawn, as in Flax: a fixed one if True, none if False."""
    if isinstance(rngs, bool):
        return nnx.RngStream(0, tag="carry") if rngs else None
    return rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
