# SPDX-License-Identifier: Apache-2.0
"""Live PyTorch modules to seqjax, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from seqjax.base import Layer, Params
from seqjax.interop.layout import param_dtypes, pieces_of, to_jax, unsupported
from seqjax.interop.torch.state import as_array, from_state_dict
from seqjax.interop.torch.writing import ACTIVATIONS, Stack, recurrent_stack, to_state_dict
from seqjax.layers import Activation, Conv1D, Dense, Dropout, Embed, LayerNorm, Serial
from seqjax.layers.conv import ConvParams
from seqjax.layers.pointwise import DenseParams, EmbedParams, LayerNormParams

_RECURRENT = ("RNN", "LSTM", "GRU")


def from_torch(module: Any, **options: Any) -> tuple[Layer, Params]:
    """A PyTorch module, or a state dict, as a seqjax layer and its params.

    Args:
      module: an `nn.RNN`, `nn.LSTM` or `nn.GRU`; an `nn.Linear`, `nn.Conv1d`, `nn.LayerNorm`, `nn.Embedding`,
        `nn.Dropout`, an activation, or an `nn.Sequential` of those; or a mapping (see `from_state_dict`).
      **options: for a mapping, those of `from_state_dict`.

    Returns:
      The layer, time-major whatever `batch_first` says, and its params in the module's dtype.

    Raises:
      ValueError: a module or option without a counterpart.

    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> from_torch(torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True))[0]
    Serial(Bidirectional(RNN(LSTM(4))), Bidirectional(RNN(LSTM(4))))
    """
    if isinstance(module, Mapping):
        return from_state_dict(module, **options)
    name = _name(module)
    if options:
        raise ValueError(f"{name}: {sorted(options)} are options of from_state_dict; a module has its own.")
    if name in _RECURRENT:
        return _recurrent(module)
    if name == "Sequential":
        return _sequential(module)
    return _METHODS[name](module) if name in _METHODS else _activation(module)


def to_torch(model: Layer, params: Params) -> Any:
    """A seqjax layer and its params as a PyTorch module.

    Args:
      model: an `RNN`, a `Bidirectional` of `RNN`s, or a `Serial` of either with `Dropout` of one rate in between, which
        becomes one recurrent module; or `Dense`, `Conv1D`, `LayerNorm`, `Embed`, `Dropout`, `Activation`, or a
        `Serial` of those.
      params: those of `model`.

    Returns:
      A module, with `batch_first=False`. `from_torch` turns it back into `model` and `params`, except for what
      PyTorch has no place for: engines and initializers, a `Serial` around one recurrent layer, `Dropout(0.0)`
      between recurrent layers, and redundant options, such as a backward layer like the forward one.

    Raises:
      ValueError: a cell, layer or option without a counterpart, or params that are not `model`'s.
      ImportError: PyTorch is not installed.

    >>> import jax, jax.numpy as jnp, pytest, seqjax
    >>> torch = pytest.importorskip("torch")
    >>> model = seqjax.RNN(seqjax.GRU(4, reset="after"))
    >>> to_torch(model, model.init(jax.random.key(0), jnp.ones((5, 2, 3))))
    GRU(3, 4)
    """
    import torch

    state = {name: _tensor(torch, array) for name, array in to_state_dict(model, params).items()}
    dtype = next((tensor.dtype for tensor in state.values()), None)
    stack = recurrent_stack(model, params)
    module = _module(torch.nn, model, params, dtype) if stack is None else _stack(torch.nn, stack, dtype)
    module.load_state_dict(state)
    return module


def _name(module: Any) -> str:
    """The class of a module, which must be PyTorch's own."""
    cls = type(module)
    if not cls.__module__.startswith("torch.nn.modules."):
        raise unsupported(
            f"torch {cls.__name__}",
            f"a class of {cls.__module__!r}",
            "convert the modules inside one by one and compose them with Serial, Residual and Bidirectional",
        )
    return cls.__name__


def _weights(module: Any, *names: str) -> list[Any]:
    """The named parameters of a module as arrays, `None` for those it lacks; it must have no others."""
    owner = f"torch {module!r}"
    state = module.state_dict()
    others = set(state) - set(names)
    if others:
        raise unsupported(owner, f"the parameter {sorted(others)}", "remove parametrizations first")
    return [to_jax(owner, name, as_array(owner, name, state[name])) if name in state else None for name in names]


def _require(module: Any, **options: tuple) -> None:
    """Rejects a module whose attributes are not among those that can be converted."""
    for name, values in options.items():
        given = getattr(module, name)
        if given not in values:
            wanted = " or ".join(map(repr, values))
            raise unsupported(f"torch {module!r}", f"{name}={given!r}", f"only {wanted} is")


# -- PyTorch to seqjax ------------------------------------------------------------------------


def _recurrent(module: Any) -> tuple[Layer, Params]:
    name = _name(module)
    return from_state_dict(
        module.state_dict(),
        name.lower(),
        activation=module.nonlinearity if name == "RNN" else "tanh",
        dropout=module.dropout,
    )


def _sequential(module: Any) -> tuple[Layer, Params]:
    names = [_name(inside) for inside in module]
    if not names or set(names) & set(_RECURRENT):
        raise unsupported(
            f"torch {module!r}",
            "a recurrent module in a Sequential" if names else "an empty Sequential",
            "convert the modules one by one and compose them with Serial",
        )
    if "Conv1d" in names and set(names) & {"Linear", "LayerNorm", "Embedding"}:
        raise unsupported(
            f"torch {module!r}",
            "Conv1d next to modules that take features last",
            "a convolution's features are on axis 1: convert the modules one by one and compose them with Serial",
        )
    pieces = [from_torch(inside) for inside in module]
    return Serial(*(layer for layer, _ in pieces)), tuple(params for _, params in pieces)


def _linear(module: Any) -> tuple[Layer, Params]:
    weight, bias = _weights(module, "weight", "bias")
    layer = Dense(module.out_features, use_bias=bias is not None, dtypes=param_dtypes(weight.dtype))
    return layer, DenseParams(weight.T, bias)


def _conv(module: Any) -> tuple[Layer, Params]:
    _require(module, groups=(1,), padding_mode=("zeros",))
    weight, bias = _weights(module, "weight", "bias")
    (width,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation
    reach, padding = (width - 1) * dilation, module.padding
    if padding in ("same", "valid"):
        kind = padding
    elif padding == (0,):
        kind = "valid"
    elif stride == 1 and 2 * padding[0] == reach:
        kind = "same"
    else:
        same = "with stride 1 half of dilation * (kernel_size - 1)"
        raise unsupported(f"torch {module!r}", f"padding={padding!r}", f"only 0, 'valid', 'same' and, {same}, are")
    layer = Conv1D(
        module.out_channels,
        width,
        stride,
        kind,
        dilation,
        use_bias=bias is not None,
        dtypes=param_dtypes(weight.dtype),
    )
    return layer, ConvParams(weight.transpose(2, 1, 0), bias)


def _layer_norm(module: Any) -> tuple[Layer, Params]:
    if len(module.normalized_shape) != 1:
        raise unsupported(f"torch {module!r}", f"normalized_shape={module.normalized_shape}", "the last axis alone is")
    scale, offset = _weights(module, "weight", "bias")
    dtypes = param_dtypes("float32" if scale is None else scale.dtype)
    return LayerNorm(module.eps, scale is not None, offset is not None, dtypes=dtypes), LayerNormParams(scale, offset)


def _embedding(module: Any) -> tuple[Layer, Params]:
    _require(module, max_norm=(None,), scale_grad_by_freq=(False,))
    if module.padding_idx is not None:
        raise unsupported(
            f"torch {module!r}",
            f"padding_idx={module.padding_idx}",
            "it keeps a row from being trained: set module.padding_idx = None, "
            f"and give mask=(ids != {module.padding_idx}) to apply",
        )
    (table,) = _weights(module, "weight")
    layer = Embed(module.num_embeddings, module.embedding_dim, dtypes=param_dtypes(table.dtype))
    return layer, EmbedParams(table)


def _dropout(module: Any) -> tuple[Layer, Params]:
    return Dropout(float(module.p)), ()


def _activation(module: Any) -> tuple[Layer, Params]:
    name = _name(module)
    for activation, (cls, options) in ACTIVATIONS.items():
        if cls == name:
            _require(module, **{option: (value,) for option, value in options.items()})
            return Activation(activation), ()
    known = sorted({*_RECURRENT, "Sequential", *_METHODS, *(cls for cls, _ in ACTIVATIONS.values())})
    raise unsupported(f"torch {module!r}", f"the module {name}", f"known are {', '.join(known)}")


_METHODS: dict[str, Callable[[Any], tuple[Layer, Params]]] = {
    "Linear": _linear,
    "Conv1d": _conv,
    "LayerNorm": _layer_norm,
    "Embedding": _embedding,
    "Dropout": _dropout,
}


# -- seqjax to PyTorch ------------------------------------------------------------------------


def _tensor(torch: Any, array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _stack(nn: Any, stack: Stack, dtype: Any) -> Any:
    options: dict[str, Any] = {"nonlinearity": stack.activation} if stack.kind == "rnn" else {}
    if stack.proj_dim:
        options["proj_size"] = stack.proj_dim
    return getattr(nn, stack.kind.upper())(
        stack.in_dim,
        stack.hidden_dim,
        num_layers=stack.num_layers,
        bias=stack.use_bias,
        dropout=stack.dropout,
        bidirectional=stack.bidirectional,
        dtype=dtype,
        **options,
    )


def _module(nn: Any, model: Layer, params: Params, dtype: Any) -> Any:
    match model:
        case Serial():
            return nn.Sequential(*(_module(nn, layer, p, dtype) for layer, p in pieces_of(model, params)))
        case Dense():
            return nn.Linear(params.kernel.shape[0], model.features, model.use_bias, dtype=dtype)
        case Conv1D():
            return nn.Conv1d(
                params.kernel.shape[1],
                model.features,
                model.width,
                model.stride,
                model.padding,
                model.dilation,
                bias=model.use_bias,
                dtype=dtype,
            )
        case LayerNorm():
            return nn.LayerNorm(params.scale.shape[0], model.epsilon, bias=model.use_offset, dtype=dtype)
        case Embed():
            return nn.Embedding(model.num, model.features, dtype=dtype)
        case Dropout():
            return nn.Dropout(model.rate)
        case Activation():
            name, options = ACTIVATIONS[model.function]
            return getattr(nn, name)(**options)
    raise unsupported(f"to_torch: {model!r}", "this layer in PyTorch", "convert the layers inside one by one")
