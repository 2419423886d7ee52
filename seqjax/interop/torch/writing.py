# SPDX-License-Identifier: Apache-2.0
"""From a seqjax layer and its params to a PyTorch state dict of NumPy arrays; PyTorch is not needed."""

from typing import Any, NamedTuple

import numpy as np

from seqjax.base import Cell, Layer, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.interop.layout import check_params, param_array, pieces_of, reorder, unsupported
from seqjax.interop.torch.state import GATES
from seqjax.layers import RNN, Activation, Bidirectional, Conv1D, Dense, Dropout, Embed, LayerNorm, Serial

ACTIVATIONS: dict[Any, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "relu": ("ReLU", {}),
    "hard_sigmoid": ("Hardsigmoid", {}),
    "hard_tanh": ("Hardtanh", {"min_val": -1.0, "max_val": 1.0}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01}),
    "elu": ("ELU", {"alpha": 1.0}),
    "selu": ("SELU", {}),
    "softsign": ("Softsign", {}),
    "gelu": ("GELU", {"approximate": "tanh"}),
    "silu": ("SiLU", {}),
}
"""The PyTorch module for each activation, and its options. Softplus is not among them: PyTorch cuts it off at 20."""


class Stack(NamedTuple):
    """A recurrent PyTorch module: layers of one kind and size."""

    kind: str
    in_dim: int
    hidden_dim: int
    num_layers: int
    use_bias: bool
    bidirectional: bool
    proj_dim: int | None
    activation: str
    dropout: float
    directions: tuple[tuple[Cell, Params], ...]
    """Layer by layer, forward before backward."""


def to_state_dict(model: Layer, params: Params, *, prefix: str = "") -> dict[str, np.ndarray]:
    """A seqjax layer's params under PyTorch's names and in its layout.

    Args:
      model, params: as for `to_torch`.
      prefix: put in front of every name.

    Returns:
      Name to array, for `torch.from_numpy` and `load_state_dict`, or for `safetensors.numpy.save_file`.
      The single bias of an LSTM or simple RNN is `bias_ih`; `bias_hh` is zeros.

    Raises:
      ValueError: a cell, layer or option that PyTorch does not have, or params that are not `model`'s.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = seqjax.RNN(seqjax.LSTM(4))
    >>> state = to_state_dict(model, model.init(jax.random.key(0), jnp.ones((5, 3))))
    >>> {name: array.shape for name, array in state.items()}
    {'weight_ih_l0': (16, 3), 'weight_hh_l0': (16, 4), 'bias_ih_l0': (16,), 'bias_hh_l0': (16,)}
    """
    stack = recurrent_stack(model, params)
    if stack is not None:
        return {prefix + name: array for name, array in _stack_state(stack).items()}
    state = {}
    for name, value in _pointwise_state(model, params).items():
        state[prefix + name] = np.ascontiguousarray(value)
    return state


def recurrent_stack(model: Layer, params: Params) -> Stack | None:
    """`model` as one recurrent PyTorch module; `None` if no layer of it is recurrent.

    Raises:
      ValueError: recurrent layers that cannot be one such module.
    """
    pieces = pieces_of(model, params) if isinstance(model, Serial) else [(model, params)]
    if not any(isinstance(layer, RNN | Bidirectional) for layer, _ in pieces):
        return None
    layers = [piece for piece in pieces if not isinstance(piece[0], Dropout)]
    rates = [layer.rate for layer, _ in pieces if isinstance(layer, Dropout) and not layer.variational]
    between = [isinstance(layer, Dropout) for layer, _ in pieces]
    alternates = between in ([False] * len(layers), ([False, True] * len(layers))[:-1])
    if not alternates or len(rates) != sum(between) or len(set(rates)) > 1:
        raise _no_stack(model, "its Dropout must have one rate and be between all layers")
    directions = [direction for layer, p in layers for direction in _directions(model, layer, p)]
    cell, first = directions[0]
    kind = _kind(cell)
    bidirectional = isinstance(layers[0][0], Bidirectional)
    if len({(_kind(c), _options(c)) for c, _ in directions}) > 1:
        raise _no_stack(model, "its cells must be alike")
    if any(isinstance(layer, Bidirectional) != bidirectional for layer, _ in layers):
        raise _no_stack(model, "all of its layers must go both ways, or none")
    hidden, proj, use_bias, activation, _ = _options(cell)
    in_dim = param_array(cell, "w_in", first).shape[0]
    rate = rates[0] if rates else 0.0
    return Stack(
        kind, in_dim, hidden, len(layers), use_bias, bidirectional, proj, activation, rate, tuple(directions)
    )  # fmt: skip


def _no_stack(model: Layer, why: str) -> ValueError:
    advice = f"{why}; convert the layers one by one"
    return unsupported(f"to_torch: {model!r}", "this as one recurrent PyTorch module", advice)


def _directions(model: Layer, layer: Layer, params: Params) -> list[tuple[Cell, Params]]:
    if isinstance(layer, RNN):
        return [(layer.cell, params)]
    if isinstance(layer, Bidirectional) and layer.merge == "concat":
        cells = [side.cell for side in layer.layers if isinstance(side, RNN)]
        if len(cells) == 2:
            return list(zip(cells, params, strict=True))
    raise _no_stack(model, f"{layer!r} cannot be one of its layers")


def _kind(cell: Any) -> str:
    kinds: dict[type, str] = {Simple: "rnn", LSTM: "lstm", GRU: "gru"}
    owner = f"to_torch: {cell!r}"
    if type(cell) not in kinds:
        raise unsupported(owner, f"{type(cell).__name__} in PyTorch", "Simple, LSTM and GRU are")
    if cell.normalize is not None:
        raise unsupported(owner, f"normalize={cell.normalize!r} in PyTorch", "plain cells are")
    if getattr(cell, "reset", "after") != "after":
        raise unsupported(owner, f"reset={cell.reset!r} in PyTorch", "its GRU resets after the product")
    if getattr(cell, "recurrent_activation", "sigmoid") != "sigmoid":
        raise unsupported(owner, f"recurrent_activation={cell.recurrent_activation!r} in PyTorch", "'sigmoid' is")
    if cell.activation not in (("tanh", "relu") if type(cell) is Simple else ("tanh",)):
        raise unsupported(owner, f"activation={cell.activation!r} in PyTorch", "'tanh' is, for Simple also 'relu'")
    return kinds[type(cell)]


def _options(cell: Any) -> tuple:
    """What all cells of a stack must share."""
    _check_dtypes(cell)
    return cell.hidden_dim, getattr(cell, "proj_dim", None), cell.use_bias, cell.activation, cell.dtypes


def _check_dtypes(owner: Any) -> None:
    dtypes = owner.dtypes
    if dtypes.compute not in (None, dtypes.params) or dtypes.carry not in (None, dtypes.params):
        raise unsupported(f"to_torch: {owner!r}", f"{dtypes!r} in PyTorch", "one dtype for all is")


def _stack_state(stack: Stack) -> dict[str, np.ndarray]:
    state = {}
    gates = GATES[stack.kind]
    out = stack.proj_dim or stack.hidden_dim
    for at, (cell, params) in enumerate(stack.directions):
        check_params(cell, params)
        number, reverse = divmod(at, 1 + stack.bidirectional)
        suffix = f"_l{number}{'_reverse' if reverse else ''}"
        in_dim = stack.in_dim if number == 0 else out * (1 + stack.bidirectional)

        def take(name: str, shape: Any = None, cell: Cell = cell, params: Params = params) -> np.ndarray:
            array = param_array(cell, name, params, shape)
            array = reorder(array, "zrg", "rzg") if stack.kind == "gru" and name != "w_proj" else array
            return np.ascontiguousarray(array.T)

        state["weight_ih" + suffix] = take("w_in", (in_dim, gates * stack.hidden_dim))
        state["weight_hh" + suffix] = take("w_rec")
        if stack.use_bias:
            bias = take("bias")
            state["bias_ih" + suffix] = bias
            state["bias_hh" + suffix] = take("bias_rec") if stack.kind == "gru" else np.zeros_like(bias)
        if stack.proj_dim:
            state["weight_hr" + suffix] = take("w_proj")
    return state


def _pointwise_state(model: Layer, params: Params) -> dict[str, np.ndarray]:
    """The state of layers that are not recurrent; a `Serial` numbers its layers."""
    if isinstance(model, Serial):
        pieces = pieces_of(model, params)
        kinds = {type(layer) for layer, _ in pieces}
        if Conv1D in kinds and kinds & {Dense, LayerNorm, Embed}:
            raise unsupported(f"to_torch: {model!r}", "Conv1D next to layers over features", "convert them one by one")
        states = {str(i): _pointwise_state(layer, p) for i, (layer, p) in enumerate(pieces)}
        return {f"{i}.{name}": array for i, state in states.items() for name, array in state.items()}
    owner = f"to_torch: {model!r}"
    if isinstance(model, Dropout):
        if model.variational:
            raise unsupported(owner, "variational=True in PyTorch", "convert the layers around it one by one")
        return {}
    if isinstance(model, Activation):
        if model.function not in ACTIVATIONS:
            raise unsupported(owner, "this activation in PyTorch", f"known are {sorted(ACTIVATIONS)}")
        return {}
    if not isinstance(model, Dense | Conv1D | LayerNorm | Embed):
        raise unsupported(owner, f"{type(model).__name__} in PyTorch", "convert the layers inside one by one")
    _check_dtypes(model)
    if isinstance(model, Embed):
        return {"weight": param_array(model, "table", params, (model.num, model.features))}
    if isinstance(model, LayerNorm):
        if not model.use_scale:
            raise unsupported(owner, "use_scale=False in PyTorch", "its LayerNorm has a scale and maybe an offset")
        state = {"weight": param_array(model, "scale", params)}
        return state | ({"bias": param_array(model, "offset", params)} if model.use_offset else {})
    if model.activation is not None:
        raise unsupported(owner, f"activation={model.activation!r} inside", "put an Activation layer after it")
    if isinstance(model, Conv1D) and (model.padding == "causal" or (model.padding == "same" and model.stride > 1)):
        raise unsupported(owner, f"padding={model.padding!r} with stride {model.stride} in PyTorch", "'valid' is")
    state = {"weight": param_array(model, "kernel", params).T}
    return state | ({"bias": param_array(model, "bias", params, (model.features,))} if model.use_bias else {})
