# SPDX-License-Identifier: Apache-2.0
"""From the state dict of a recurrent PyTorch module to a seqjax layer and its params."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Cell, Layer, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.cells.gru import GRUParams
from seqjax.cells.lstm_equations import LSTMParams
from seqjax.cells.simple import SimpleParams
from seqjax.interop.layout import check_one_dtype, param_dtypes, reorder, to_jax, unsupported
from seqjax.layers import RNN, Bidirectional, Dropout, Serial

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""The number of gates of each kind."""
_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(0|[1-9]\d{0,5})(_reverse)?")


class Weights(NamedTuple):
    """One direction of one layer, in PyTorch's layout: gates on axis 0."""

    weight_ih: Any  # [G*H, D]
    weight_hh: Any  # [G*H, P]
    bias_ih: Any = None  # [G*H]
    bias_hh: Any = None  # [G*H]
    weight_hr: Any = None  # [P, H]


def from_state_dict(
    state: Mapping[str, Any], kind: str, *, prefix: str = "", activation: str = "tanh", dropout: float = 0.0
) -> tuple[Layer, Params]:
    """The weights of an `nn.RNN`, `nn.LSTM` or `nn.GRU` as a seqjax layer and its params.

    Layers, directions, sizes, biases and projections are inferred from the names and shapes; what a state
    dict does not say is passed as arguments.

    Args:
      state: a mapping from names such as `weight_ih_l0` or `bias_hh_l1_reverse` to tensors or arrays.
      kind: `"rnn"`, `"lstm"` or `"gru"`.
      prefix: where the module is in a larger model, such as `"encoder.lstm."`; other names are ignored.
      activation: that of an `nn.RNN`, `"tanh"` or `"relu"`.
      dropout: the rate between layers.

    Returns:
      An `RNN` or `Bidirectional`, or a `Serial` of several layers, time-major; the params have the state's dtype.

    Raises:
      ValueError: a name or shape that does not belong, a missing layer or direction, mixed dtypes, or an
        activation that `kind` does not have.

    >>> state = {"weight_ih_l0": np.zeros((12, 3), "float32"), "weight_hh_l0": np.zeros((12, 4), "float32")}
    >>> from_state_dict(state, "gru")[0]
    RNN(GRU(4, reset='after', use_bias=False))
    """
    if kind not in GATES:
        raise ValueError(f"kind must be one of {sorted(GATES)}, got {kind!r}.")
    if activation not in ("tanh", "relu"):
        raise unsupported("from_state_dict", f"activation={activation!r}", "PyTorch has 'tanh' and 'relu'")
    if activation != "tanh" and kind != "rnn":
        raise unsupported("from_state_dict", f"activation={activation!r} of kind {kind!r}", "only 'rnn' has a choice")
    layers = _arranged({name[len(prefix) :]: state[name] for name in state if name.startswith(prefix)}, kind, prefix)
    pieces: list[tuple[Layer, Params]] = []
    width = None
    for number, directions in enumerate(layers):
        converted = []
        for reverse, weights in enumerate(directions):
            owner = f"{kind} {prefix}*_l{number}{'_reverse' if reverse else ''}"
            converted.append(_direction(owner, kind, weights, width, activation))
        if pieces and dropout:
            pieces.append((Dropout(dropout), ()))
        pieces.append(_both(converted, f"{kind} {prefix}*_l{number}"))
        width = len(directions) * _output_size(directions[0])
    if len(pieces) == 1:
        return pieces[0]
    return Serial(*(layer for layer, _ in pieces)), tuple(params for _, params in pieces)


def as_array(owner: str, name: str, value: Any) -> np.ndarray | jax.Array:
    """A tensor, NumPy array or JAX array as an array, without a cast."""
    if isinstance(value, np.ndarray | jax.Array):
        return value
    if not type(value).__module__.startswith("torch"):
        raise ValueError(f"{owner}: {name} must be a tensor or an array, got {type(value).__name__}.")
    import torch

    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:  # which NumPy itself does not have
        return value.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return value.numpy()


def _arranged(state: Mapping[str, Any], kind: str, prefix: str) -> list[list[Weights]]:
    """The weights by layer and direction, with every name accounted for."""
    owner = f"{kind} {prefix!r}"
    found: dict[tuple[int, int], dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    for name, value in state.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{owner}: {name!r} is not a weight of a recurrent module, such as weight_ih_l0; "
                "give prefix= if the module is part of a larger one."
            )
        part, number, reverse = match.groups()
        arrays[name] = as_array(owner, name, value)
        found.setdefault((int(number), int(reverse is not None)), {})[part] = arrays[name]
    if not found:
        raise ValueError(f"{owner}: the state dict has no weights under this prefix.")
    directions = 1 + max(reverse for _, reverse in found)
    numbers = 1 + max(number for number, _ in found)
    if len(found) != directions * numbers:
        raise ValueError(
            f"{owner}: {numbers} layers of {directions} directions expected from the names, got {sorted(found)} "
            "as (layer, reverse)."
        )
    parts = {key: tuple(sorted(weights)) for key, weights in found.items()}
    if len(set(parts.values())) > 1:
        raise ValueError(f"{owner}: layers differ in what they have: {parts}.")
    missing = {"weight_ih", "weight_hh"} - set(parts[0, 0])
    if missing or ("bias_ih" in parts[0, 0]) != ("bias_hh" in parts[0, 0]):
        raise ValueError(f"{owner}: weight_ih, weight_hh and both biases or none are needed, got {list(parts[0, 0])}.")
    if "weight_hr" in parts[0, 0] and kind != "lstm":
        raise ValueError(f"{owner}: weight_hr is the projection of an LSTM; {kind} has none.")
    check_one_dtype(owner, arrays)
    return [[Weights(**found[number, reverse]) for reverse in range(directions)] for number in range(numbers)]


def _output_size(weights: Weights) -> int:
    return weights.weight_hh.shape[-1]


def _direction(owner: str, kind: str, weights: Weights, in_dim: int | None, activation: str) -> tuple[Cell, Params]:
    """A cell and its params from the weights of one direction, whose shapes must fit together."""
    gates = GATES[kind]
    if weights.weight_ih.ndim != 2:
        raise ValueError(f"{owner}: weight_ih must be [{gates}*H, D], got shape {weights.weight_ih.shape}.")
    if weights.weight_hh.ndim != 2 or not weights.weight_hh.size:
        raise ValueError(f"{owner}: weight_hh must be [{gates}*H, H or P], got shape {weights.weight_hh.shape}.")
    (rows, out), projects = weights.weight_hh.shape, weights.weight_hr is not None
    H = rows // gates
    if rows % gates or (out != H and not projects):
        guess = [name for name, g in GATES.items() if rows == g * out]
        advice = f"; these are the weights of kind {guess[0]!r}" if guess else ""
        columns = "P" if projects else "H"
        raise ValueError(
            f"{owner}: weight_hh must be [{gates}*H, {columns}], got shape {weights.weight_hh.shape}{advice}."
        )
    shapes = {
        "weight_ih": (gates * H, weights.weight_ih.shape[1] if in_dim is None else in_dim),
        "weight_hh": (gates * H, out),
        "bias_ih": (gates * H,),
        "bias_hh": (gates * H,),
        "weight_hr": (out, H),
    }
    order = ("rzg", "zrg") if kind == "gru" else None

    def take(name: str) -> jax.Array:
        array = to_jax(owner, name, getattr(weights, name), shapes[name]).T
        return array if order is None else reorder(array, *order)

    use_bias = weights.bias_ih is not None
    w_in, w_rec = take("weight_ih"), take("weight_hh")
    bias, bias_rec = (take("bias_ih"), take("bias_hh")) if use_bias else (None, None)
    dtypes = param_dtypes(w_in.dtype)
    if kind == "gru":
        return GRU(H, "after", use_bias=use_bias, dtypes=dtypes), GRUParams(w_in, w_rec, bias, bias_rec)
    merged = None if bias is None or bias_rec is None else bias + bias_rec
    if kind == "lstm":
        cell = LSTM(H, use_bias=use_bias, proj_dim=out if projects else None, dtypes=dtypes)
        return cell, LSTMParams(w_in, w_rec, merged, w_proj=take("weight_hr") if projects else None)
    return Simple(H, activation, use_bias, dtypes=dtypes), SimpleParams(w_in, w_rec, merged)


def _both(directions: list[tuple[Cell, Params]], owner: str) -> tuple[Layer, Params]:
    if len(directions) == 1:
        cell, params = directions[0]
        return RNN(cell), params
    (cell, params), (other, other_params) = directions
    if cell != other:
        raise ValueError(f"{owner}: its directions must have the same sizes, got {cell!r} and {other!r}.")
    return Bidirectional(RNN(cell)), (params, other_params)
