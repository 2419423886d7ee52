# SPDX-License-Identifier: Apache-2.0
"""From the record of a Keras cell, or of the layer that contains it, to a seqjax cell and its params."""

from collections.abc import Callable
from typing import Any

from seqjax.base import Cell, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.cells.gru import GRUParams
from seqjax.cells.lstm_equations import LSTMParams
from seqjax.cells.simple import SimpleParams
from seqjax.dtypes import DTypes
from seqjax.initializers import ForgetGate
from seqjax.interop.keras import activations
from seqjax.interop.keras.record import Record

CELL_OPTIONS = {
    "SimpleRNN": ("units", "activation", "use_bias"),
    "LSTM": ("units", "activation", "recurrent_activation", "use_bias", "unit_forget_bias"),
    "GRU": ("units", "activation", "recurrent_activation", "use_bias", "reset_after"),
}
"""The options in its config from which each cell is made."""


def simple(record: Record, dtypes: DTypes) -> tuple[Cell, Params]:
    """`SimpleRNNCell`."""
    cell = Simple(
        record.option("units", int), _squash(record), record.option("use_bias", bool, default=True), dtypes=dtypes
    )
    return cell, SimpleParams(*_products(record, cell, 1))


def lstm(record: Record, dtypes: DTypes) -> tuple[Cell, Params]:
    """`LSTMCell`, whose gates i, f, c, o are already in our order i, f, g, o."""
    cell = LSTM(
        record.option("units", int),
        _squash(record),
        _squash(record, "recurrent_activation"),
        record.option("use_bias", bool, default=True),
        bias_init=ForgetGate() if record.option("unit_forget_bias", bool, default=True) else "zeros",
        dtypes=dtypes,
    )
    return cell, LSTMParams(*_products(record, cell, 4))


def gru(record: Record, dtypes: DTypes) -> tuple[Cell, Params]:
    """`GRUCell`, whose gates z, r, h are already in our order z, r, g; its `bias` has two rows if reset is after."""
    after = record.option("reset_after", bool, default=True)
    cell = GRU(
        record.option("units", int),
        "after" if after else "before",
        _squash(record),
        _squash(record, "recurrent_activation"),
        record.option("use_bias", bool, default=True),
        dtypes=dtypes,
    )
    w_in, w_rec, bias = _products(record, cell, 3, bias_rows=2 if after else None)
    if after and bias is not None:
        return cell, GRUParams(w_in, w_rec, bias[0], bias[1])
    return cell, GRUParams(w_in, w_rec, bias)


CELLS: dict[str, Callable[[Record, DTypes], tuple[Cell, Params]]] = {"SimpleRNN": simple, "LSTM": lstm, "GRU": gru}


def _products(record: Record, cell: Simple | LSTM | GRU, gates: int, bias_rows: int | None = None) -> tuple:
    """`kernel [D, G*H]`, `recurrent_kernel [H, G*H]` and `bias`."""
    H, width = cell.hidden_dim, gates * cell.hidden_dim
    bias_shape = (width,) if bias_rows is None else (bias_rows, width)
    return (
        record.take("kernel", (record.rows("kernel"), width)),
        record.take("recurrent_kernel", (H, width)),
        record.take("bias", bias_shape) if cell.use_bias else None,
    )


def _squash(record: Record, option: str = "activation") -> Any:
    """An activation of a cell; by default Keras' own default."""
    default = "sigmoid" if option == "recurrent_activation" else "tanh"
    return activations.from_name(record.owner, record.config.get(option, default))
