# SPDX-License-Identifier: Apache-2.0
"""Haiku's recurrent cores: their params as seqjax params, and back.

haiku itself is not needed: its params are a dict of dicts of arrays, which is what goes in and comes out here.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from seqjax.base import Array, Cell, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.cells.gru import GRUParams
from seqjax.cells.lstm_equations import LSTMParams
from seqjax.cells.simple import SimpleParams
from seqjax.interop.layout import (
    check_one_dtype,
    check_options,
    check_params,
    param_dtypes,
    reorder,
    to_jax,
    unsupported,
)
from seqjax.layers import RNN

__all__ = ["HaikuParams", "from_haiku", "to_haiku"]

HaikuParams = Mapping[str, Mapping[str, Any]]
"""`{"lstm/linear": {"w": ..., "b": ...}}`: module path, then name."""

_NAMES = {"VanillaRNN": "vanilla_rnn", "LSTM": "lstm", "GRU": "gru"}
_LEAVES = {
    "VanillaRNN": ("linear/w", "linear_1/w", "linear/b"),
    "LSTM": ("linear/w", "linear/b"),
    "GRU": ("w_i", "w_h", "b"),
}
_MAPS = {"VanillaRNN": ("/linear", "/linear_1"), "LSTM": ("/linear",), "GRU": ("",)}


def from_haiku(core: Any, params: HaikuParams, name: str | None = None) -> tuple[RNN, Params]:
    """An `RNN` and its params, from the params of a haiku core.

    | haiku        | here                         | exact?                                                   |
    |--------------|------------------------------|----------------------------------------------------------|
    | `VanillaRNN` | `Simple(activation="relu")`  | weights are; the two biases are summed, rounded once     |
    | `LSTM`       | `LSTM`                       | weights are; the forget bias is b + 1, rounded once      |
    | `GRU`        | `GRU(reset="before")`        | all are; haiku's z is 1 - z here, so signs change        |

    haiku adds 1 to the forget gate's bias inside the step; here it is in the params.

    Args:
      core: `"VanillaRNN"`, `"LSTM"` or `"GRU"`, or haiku's class or module of that name.
      params: what the transformed function's `init` returned.
      name: the core's module path in `params`, such as `"lstm_1"`; needed if there are several.

    Returns:
      The layer, time-major, and its params.

    Raises:
      ValueError: another core, or params that are missing, unknown, of the wrong shape or of mixed dtypes, by name.

    >>> import numpy as np
    >>> zeros = {"w_i": np.zeros((3, 12), "float32"), "w_h": np.zeros((4, 12), "float32"), "b": np.zeros(12, "float32")}
    >>> model, params = from_haiku("GRU", {"gru": zeros})
    >>> model, params.w_in.shape
    (RNN(GRU(4)), (3, 12))
    """
    kind = _kind(core)
    given = _take(kind, params, _path(kind, params, name))
    if kind == "GRU":
        w_in, w_rec, bias = (_flip_z(given[leaf]) for leaf in ("w_i", "w_h", "b"))
        return RNN(GRU(w_rec.shape[0], dtypes=param_dtypes(w_rec.dtype))), GRUParams(w_in, w_rec, bias)
    if kind == "LSTM":
        weights, bias = (reorder(given[leaf], "igfo", "ifgo") for leaf in ("linear/w", "linear/b"))
        hidden = bias.shape[0] // 4
        w_in, w_rec = weights[:-hidden], weights[-hidden:]
        bias = bias.at[hidden : 2 * hidden].add(1)
        return RNN(LSTM(hidden, dtypes=param_dtypes(w_rec.dtype))), LSTMParams(w_in, w_rec, bias)
    w_in, w_rec, bias = (given[leaf] for leaf in ("linear/w", "linear_1/w", "linear/b"))
    bias = bias + given["linear_1/b"] if "linear_1/b" in given else bias
    cell = Simple(w_rec.shape[0], activation="relu", dtypes=param_dtypes(w_rec.dtype))
    return RNN(cell), SimpleParams(w_in, w_rec, bias)


def to_haiku(
    model: Cell | RNN, params: Params, name: str | None = None, *, double_bias: bool = True
) -> dict[str, dict[str, Array]]:
    """The params of a haiku core with the weights of a seqjax model: the inverse of `from_haiku`.

    1 is subtracted again from the forget bias, which is exact for a bias between 1/2 and 2, else rounded once.

    Args:
      model: `Simple(activation="relu")`, `LSTM`, `GRU(reset="before")`, or an `RNN` of one.
      params: its params.
      name: the core's module path; by default `"vanilla_rnn"`, `"lstm"` or `"gru"`.
      double_bias: the `VanillaRNN`'s option of that name; the second bias is zeros.

    Returns:
      Params for a transformed function with such a core.

    Raises:
      ValueError: options that haiku's core does not have, by name; params that are not `model`'s.

    >>> import jax
    >>> cell = LSTM(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> to_haiku(cell, params)["lstm/linear"]["w"].shape
    (7, 16)
    """
    cell: Any = model.cell if isinstance(model, RNN) else model
    kinds: dict[Any, str] = {Simple: "VanillaRNN", LSTM: "LSTM", GRU: "GRU"}
    kind = kinds.get(type(cell))
    if kind is None:
        raise unsupported("to_haiku", repr(model), "it takes Simple, LSTM or GRU, or an RNN of one")
    allowed = {
        "activation": ("relu",) if kind == "VanillaRNN" else ("tanh",),
        "recurrent_activation": ("sigmoid",),
        "normalize": (None,),
        "proj_dim": (None,),
        "reset": ("before",),
    }
    given = {option: getattr(cell, option) for option in allowed if hasattr(cell, option)}
    check_options(f"to_haiku({cell!r})", given, allowed, f"haiku's {kind} has no such option")
    check_params(cell, params)
    path = name or _NAMES[kind]
    w_in, w_rec = params.w_in, params.w_rec
    bias = jnp.zeros(w_in.shape[-1:], w_in.dtype) if params.bias is None else params.bias
    if kind == "GRU":
        return {path: {"w_i": _flip_z(w_in), "w_h": _flip_z(w_rec), "b": _flip_z(bias)}}
    if kind == "LSTM":
        hidden = cell.hidden_dim
        weights, bias = jnp.concatenate([w_in, w_rec]), bias.at[hidden : 2 * hidden].add(-1)
        return {f"{path}/linear": {"w": reorder(weights, "ifgo", "igfo"), "b": reorder(bias, "ifgo", "igfo")}}
    recurrent = {"w": w_rec, "b": jnp.zeros_like(bias)} if double_bias else {"w": w_rec}
    return {f"{path}/linear": {"w": w_in, "b": bias}, f"{path}/linear_1": recurrent}


def _kind(core: Any) -> str:
    cls = core if isinstance(core, type) else type(core)
    kind = core if isinstance(core, str) else cls.__name__
    ours = isinstance(core, str) or cls.__module__.split(".")[0] == "haiku"
    if kind not in _NAMES or not ours:
        raise unsupported("from_haiku", f"core {core!r}", f"cores are {sorted(_NAMES)}")
    return kind


def _path(kind: str, params: HaikuParams, name: str | None) -> str:
    """The core's module path: `name`, or the only possible one."""
    first = _MAPS[kind][0]
    found = [path[: len(path) - len(first)] for path in params if path.endswith(first)]
    found = [path for path in found if path.split("/")[-1].startswith(_NAMES[kind])]
    if name is None and len(found) == 1:
        return found[0]
    if name is None or name + first not in params:
        raise ValueError(
            f"haiku {kind}: give name=, the module path of one of its cores, got {name!r}; "
            f"params are of {sorted(params)}."
        )
    return name


def _take(kind: str, params: HaikuParams, path: str) -> dict[str, Array]:
    """The core's params by their names below `path`; all must be present and fit together."""
    owner = f"haiku {kind} {path!r}"
    given = {
        f"{suffix}/{leaf}".lstrip("/"): array
        for suffix in _MAPS[kind]
        for leaf, array in params.get(path + suffix, {}).items()
    }
    if set(given) - {"linear_1/b"} != set(_LEAVES[kind]):
        raise ValueError(f"{owner} has the params {sorted(_LEAVES[kind])}, got {sorted(given)}.")

    def rows(leaf: str) -> int:
        if given[leaf].ndim != 2:
            raise ValueError(f"{owner}: {leaf} must be a matrix, got shape {given[leaf].shape}.")
        return given[leaf].shape[0]

    if kind == "LSTM":
        H = given["linear/b"].size // 4
        shapes = {"linear/w": (max(rows("linear/w"), H + 1), 4 * H), "linear/b": (4 * H,)}  # at least one feature
    else:
        w_in, w_rec, *biases = (leaf for leaf in (*_LEAVES[kind], "linear_1/b") if leaf in given)
        H, gates = rows(w_rec), 3 if kind == "GRU" else 1
        shapes = {w_in: (rows(w_in), gates * H), w_rec: (H, gates * H), **dict.fromkeys(biases, (gates * H,))}
    arrays = {leaf: to_jax(owner, leaf, given[leaf], shape) for leaf, shape in shapes.items()}
    check_one_dtype(owner, arrays)
    return arrays


def _flip_z(weights: Array) -> Array:
    """-W_z, W_r, W_g: σ(-a) = 1 - σ(a), so that z keeps the state instead of replacing it."""
    hidden = weights.shape[-1] // 3
    return weights.at[..., :hidden].multiply(-1)
