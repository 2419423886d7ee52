# SPDX-License-Identifier: Apache-2.0
"""Flax cells and layers, with their params, as seqjax's, and back."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from seqjax.activations import activation_function
from seqjax.base import Cell, Layer, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.engines.auto import Auto
from seqjax.engines.scan import Scan
from seqjax.interop.flax.cells import only_params
from seqjax.interop.flax.known import known
from seqjax.interop.flax.weights import LAYOUTS, Tree
from seqjax.interop.layout import check_options, check_params, unsupported
from seqjax.layers import RNN, Bidirectional


def from_flax(module: Any, variables: Tree | None = None) -> tuple[Cell | Layer, Params]:
    """A seqjax cell or layer and its params, from Flax's.

    | Flax                                | here                                        |
    |-------------------------------------|---------------------------------------------|
    | `SimpleCell`                        | `Simple`                                    |
    | `LSTMCell`, `OptimizedLSTMCell`     | `LSTM`                                      |
    | `GRUCell`                           | `GRU(reset="after")`                        |
    | `RNN(cell)`                         | `RNN(cell)`, its `unroll` as `Scan(unroll)` |
    | `Bidirectional(forward, backward)`  | `Bidirectional(RNN, RNN)`                   |

    Every weight is copied bit for bit. A `GRUCell` has fewer biases than `GRU`: the missing ones are zeros.
    Initializers are not converted: `init` of the result draws as seqjax does, with a forget bias of 1 where
    Flax has 0. The result is time-major, whatever Flax's `time_major` says about its inputs, and always
    returns the carry.

    Args:
      module: a linen module, or an nnx module, which contains its params.
      variables: for a linen module, what its `init` returned, or `variables["params"]`.

    Returns:
      The cell or layer, and its params.

    Raises:
      ValueError: a module, an option or weights without an equivalent here, by name.

    >>> rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    >>> model, params = from_flax(rnn)
    >>> model, params.w_in.shape
    (RNN(GRU(4, reset='after')), (3, 12))
    >>> xs = jnp.ones((50, 2, 3))
    >>> _, ys = model.apply(params, model.initial_carry(params, (2,)), xs)
    >>> bool(jnp.allclose(ys, rnn(xs, time_major=True), atol=1e-5))
    True
    """
    if isinstance(module, nnx.Module):
        if variables is not None:
            raise ValueError("from_flax: an nnx module carries its params; give variables only for a linen module.")
        return _read("nnx", module, {})
    if not isinstance(module, nn.Module):
        raise ValueError(f"from_flax takes a linen or nnx module, got {type(module).__name__}.")
    if variables is None:
        raise ValueError(f"from_flax(linen.{type(module).__name__}) needs its variables too, as init returned them.")
    return _read("linen", module, only_params(f"linen.{type(module).__name__}", variables))


def to_flax(
    model: Cell | Layer,
    params: Params,
    *,
    api: str = "nnx",
    time_major: bool = False,
    optimized: bool = True,
) -> Any:
    """A Flax module with the weights of a seqjax model: the inverse of `from_flax`.

    What came from Flax goes back bit for bit. A GRU's recurrent bias in z and r, which Flax does not have, is
    added to the input's, with one rounding. The engine that ran the model does not concern Flax and is left
    out, except for `Scan(unroll)`.

    Args:
      model: `Simple`, `LSTM` or `GRU(reset="after")`, an `RNN` of one, or a `Bidirectional` of two `RNN`s.
      params: its params.
      api: `"nnx"` or `"linen"`.
      time_major: whether the Flax layers are time-major; Flax's default is batch first.
      optimized: whether an LSTM becomes an `OptimizedLSTMCell` rather than an `LSTMCell`.

    Returns:
      An nnx module; or a linen module and its variables.

    Raises:
      ValueError: what Flax cannot represent, by name: normalization, projection, peepholes,
        `reset="before"`, a separate carry dtype, and in nnx a GRU's bias inside the reset gate; params
        that are not `model`'s.

    >>> import jax, seqjax
    >>> model = seqjax.RNN(seqjax.LSTM(4))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 3)))
    >>> to_flax(model, params)(jnp.ones((2, 50, 3))).shape
    (2, 50, 4)
    >>> module, variables = to_flax(model, params, api="linen")
    >>> sorted(variables["params"]["cell"])
    ['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io']
    """
    if api not in ("nnx", "linen"):
        raise ValueError(f"to_flax: api must be 'nnx' or 'linen', got {api!r}.")
    options = {"time_major": time_major, "optimized": optimized}
    if api == "nnx":
        return _write(api, model, params, **options)[0]
    module, tree = _write(api, model, params, **options)
    return module, {"params": tree}


def _read(api: str, module: Any, tree: Tree) -> tuple[Any, Params]:
    owner, flax = f"{api}.{type(module).__name__}", nnx if api == "nnx" else nn
    own = known(module)
    if own is not None:
        own.check()
        params = own.params(nnx.to_pure_dict(nnx.state(module, nnx.Param)) if api == "nnx" else tree)
        return own.cell(own.dtypes(params)), params
    if type(module) is flax.RNN:
        options = {"reverse": module.reverse}
        check_options(owner, options, {"reverse": (False,)}, "only Bidirectional runs backwards here")
        cell, params = _read(api, module.cell, tree.get("cell", {}))
        return RNN(cell, Auto() if module.unroll == 1 else Scan(unroll=module.unroll)), params
    if type(module) is flax.Bidirectional:
        default = nn.Bidirectional.merge_fn if api == "linen" else nnx.Bidirectional.merge_fn
        check_options(owner, {"merge_fn": module.merge_fn}, {"merge_fn": (default,)}, "outputs are concatenated")
        names = ("forward_rnn", "backward_rnn")
        pairs = [_read(api, getattr(module, name), tree.get(name, {})) for name in names]
        (forward, forward_params), (backward, backward_params) = pairs
        return Bidirectional(forward, None if forward == backward else backward), (forward_params, backward_params)
    raise unsupported(
        "from_flax", owner, "cells are SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell, layers RNN and "
        "Bidirectional; from_flax_cell takes any cell"
    )  # fmt: skip


def _write(api: str, model: Any, params: Params, *, time_major: bool, optimized: bool) -> tuple[Any, Tree]:
    flax, options = nnx if api == "nnx" else nn, {"time_major": time_major, "optimized": optimized}
    if isinstance(model, Cell):
        return _write_cell(api, model, params, optimized)
    if isinstance(model, RNN):
        cell, tree = _write(api, model.cell, params, **options)
        unroll = model.engine.unroll if isinstance(model.engine, Scan) else 1
        return flax.RNN(cell, time_major=time_major, unroll=unroll), {"cell": tree}
    if isinstance(model, Bidirectional):
        check_options(
            "to_flax(Bidirectional)", {"merge": model.merge}, {"merge": ("concat",)}, "merge outside of the layer"
        )
        pairs = [_write(api, m, p, **options) for m, p in zip(model.layers, params, strict=True)]
        (ahead, ahead_tree), (behind, behind_tree) = pairs
        return (
            flax.Bidirectional(ahead, behind, time_major=time_major),
            {"forward_rnn": ahead_tree, "backward_rnn": behind_tree},
        )
    raise unsupported("to_flax", repr(model), "it takes Simple, LSTM, GRU, an RNN of one, or a Bidirectional of RNNs")


def _write_cell(api: str, cell: Any, params: Params, optimized: bool) -> tuple[Any, Tree]:
    owner = f"to_flax({cell!r})"
    names: dict[Any, str] = {
        Simple: "SimpleCell",
        LSTM: "OptimizedLSTMCell" if optimized else "LSTMCell",
        GRU: "GRUCell",
    }
    name = names.get(type(cell))
    if name is None:
        raise unsupported("to_flax", repr(cell), "Flax has equivalents only of Simple, LSTM and GRU")
    given = {option: getattr(cell, option, None) for option in ("normalize", "proj_dim", "reset")}
    allowed = {"normalize": (None,), "proj_dim": (None,), "reset": ("after", None)}
    check_options(owner, given, allowed, "Flax's cell has no such option")
    check_params(cell, params)
    param_dtype, carry = params.w_in.dtype, cell.dtypes.of_carry(params.w_in)
    if carry != param_dtype:
        raise unsupported(owner, f"a carry in {carry.name}", f"Flax carries in the params' {param_dtype.name}")
    tree = LAYOUTS[api, name].write(owner, params)
    compute = None if cell.dtypes.compute is None else jnp.dtype(cell.dtypes.compute)
    if (api, name) == ("nnx", "SimpleCell"):
        compute = compute or param_dtype  # its own default is float32, whatever the params are in
    options = {
        "dtype": compute,
        "param_dtype": param_dtype,
        "activation_fn": activation_function(cell.activation),
    }
    if name != "SimpleCell":
        options["gate_fn"] = activation_function(cell.recurrent_activation)
    if api == "linen":
        return getattr(nn, name)(cell.hidden_dim, **options), tree
    sizes = params.w_in.shape[0], cell.hidden_dim
    graphdef, state = nnx.split(nnx.eval_shape(lambda: getattr(nnx, name)(*sizes, rngs=nnx.Rngs(0), **options)))
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graphdef, state), tree
