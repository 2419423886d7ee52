# SPDX-License-Identifier: Apache-2.0
"""One recurrent layer as each library has it, all with the same weights, for `layers`.

Every library gets its inputs in the layout that it likes best: time-major, but for Keras, which has no such option.
Weights come from the converters in `seqjax.interop`. A library is imported when its layer is built.
"""

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from experiments.benchmarks.systems import OnJax, OnTorch, System, Task, in_float32
from seqjax.base import Array, Params
from seqjax.cells.gru import GRUParams
from seqjax.cells.lstm_equations import LSTMParams
from seqjax.cells.simple import SimpleParams
from seqjax.interop.layout import reorder


def of_linen(task: Task) -> OnJax:
    """`flax.linen.RNN`."""
    from seqjax.interop.flax import from_flax, to_flax

    module, variables = to_flax(seqjax.RNN(task.cell), task.params, api="linen", time_major=True)
    return OnJax(module.apply, variables, jnp.asarray(task.xs), lambda gradients: from_flax(module, gradients)[1])


def of_nnx(task: Task) -> OnJax:
    """`flax.nnx.RNN`; its GRU has one bias fewer than the others."""
    from flax import nnx

    from seqjax.interop.flax import from_flax, to_flax

    module = to_flax(seqjax.RNN(task.cell), task.params, api="nnx", time_major=True)
    graph, weights, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def read(gradients: Any) -> Params:
        params = from_flax(nnx.merge(graph, gradients, rest))[1]
        return params._replace(bias_rec=None) if isinstance(params, GRUParams) else params

    def run(weights: Any, xs: Array) -> Array:
        zeros = jnp.zeros((xs.shape[1], task.cell.hidden_dim), xs.dtype)
        carry = (zeros, zeros) if isinstance(task.cell, seqjax.LSTM) else zeros
        return nnx.merge(graph, weights, rest)(xs, initial_carry=carry)

    return OnJax(run, weights, jnp.asarray(task.xs), read)


def of_haiku(task: Task) -> OnJax:
    """`haiku.dynamic_unroll`; its simple core is rectified, its GRU resets before the product."""
    import haiku as hk

    from seqjax.interop.haiku import from_haiku, to_haiku

    name = {"Simple": "VanillaRNN"}.get(type(task.cell).__name__, type(task.cell).__name__)

    def run(xs: Array) -> Array:
        core = getattr(hk, name)(task.cell.hidden_dim)
        state = jax.tree.map(lambda leaf: leaf.astype(xs.dtype), core.initial_state(xs.shape[1]))
        return hk.dynamic_unroll(core, xs, state)[0]

    def read(gradients: Any) -> Params:
        # weights are read as an affine function (the forget bias + 1), of which gradients see the linear part
        zeros = jax.tree.map(jnp.zeros_like, gradients)
        second = {path: zeros[path] | {"w": gradients[path]["w"]} for path in gradients if path.endswith("/linear_1")}
        own, shift = from_haiku(name, {**gradients, **second})[1], from_haiku(name, zeros)[1]
        return jax.tree.map(jnp.subtract, own, shift)

    functions: Any = hk.without_apply_rng(hk.transform(run))
    return OnJax(functions.apply, to_haiku(task.cell, task.params), jnp.asarray(task.xs), read)


def of_equinox(task: Task) -> OnJax:
    """`equinox.nn`'s cells in a `lax.scan` under `vmap`; the simple one, which it has not, of two `Linear`s."""
    import equinox as eqx

    (D, width), H = task.params.w_in.shape, task.cell.hidden_dim
    key = jax.ShapeDtypeStruct((2,), "uint32")
    kind, params = type(task.cell).__name__, task.params

    def empty(make: Callable, **options: Any) -> Any:
        return eqx.filter_eval_shape(lambda key: make(key=key, **options), key)

    def rows(weights: Array) -> Array:
        return jnp.asarray(reorder(weights, "zrn", "rzn") if kind == "GRU" else weights).T

    def columns(weights: Array) -> Array:
        return reorder(weights.T, "rzn", "zrn") if kind == "GRU" else weights.T

    if kind == "Simple":
        one = empty(eqx.nn.Linear, in_features=D, out_features=H)
        two = empty(eqx.nn.Linear, in_features=H, out_features=H, use_bias=False)
        one = eqx.tree_at(lambda map: (map.weight, map.bias), one, (rows(params.w_in), params.bias))
        cell = (one, eqx.tree_at(lambda map: map.weight, two, rows(params.w_rec)))
    else:
        cell = empty(getattr(eqx.nn, f"{kind}Cell"), input_size=D, hidden_size=H)
        names = ("weight_ih", "weight_hh", "bias") + ("bias_n",) * (kind == "GRU")
        arrays = (rows(params.w_in), rows(params.w_rec), rows(params.bias))
        arrays += (params.bias_rec[2 * H :],) if kind == "GRU" else ()
        cell = eqx.tree_at(lambda cell: [getattr(cell, name) for name in names], cell, arrays)

    def update(cell: Any, state: Any, x: Array) -> tuple[Any, Array]:
        if kind == "Simple":
            state = jnp.tanh(cell[0](x) + cell[1](state))
            return state, state
        state = cell(x, state)
        return state, state[0] if kind == "LSTM" else state

    def run(cell: Any, xs: Array) -> Array:
        zeros = jnp.zeros(H, xs.dtype)
        state = (zeros, zeros) if kind == "LSTM" else zeros
        return jax.lax.scan(functools.partial(update, cell), state, xs)[1]

    def read(cell: Any) -> Params:
        if kind == "Simple":
            return SimpleParams(columns(cell[0].weight), columns(cell[1].weight), cell[0].bias)
        weights = (columns(cell.weight_ih), columns(cell.weight_hh), columns(cell.bias))
        if kind == "LSTM":
            return LSTMParams(*weights)
        return GRUParams(*weights, jnp.pad(cell.bias_n, (width - H, 0)))

    return OnJax(jax.vmap(run, (None, 1), 1), cell, jnp.asarray(task.xs), read)


def of_keras(task: Task) -> OnJax:
    """`keras.layers.SimpleRNN`, `LSTM` or `GRU`, as a pure function.

    Raises:
      ValueError: Keras was imported with another backend before.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    from seqjax.interop.keras import to_keras

    if keras.backend.backend() != "jax":
        raise ValueError(f"Keras runs on {keras.backend.backend()!r} here; set KERAS_BACKEND=jax.")
    plain = in_float32(task)
    layer = to_keras(seqjax.RNN(plain.cell), plain.params)
    if task.xs.dtype != "float32":  # Keras cannot draw orthogonal weights in other dtypes, so it draws none
        given = layer.get_weights()
        config = {**layer.get_config(), "dtype": task.xs.dtype.name, "recurrent_initializer": "zeros"}
        layer = type(layer).from_config(config)
        layer.build((None, None, task.xs.shape[-1]))
        layer.set_weights(given)
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def read(gradients: list) -> Params:
        w_in, w_rec, bias = gradients
        kinds: dict[Any, Any] = {seqjax.Simple: SimpleParams, seqjax.LSTM: LSTMParams}
        return kinds[type(task.cell)](*gradients) if bias.ndim == 1 else GRUParams(w_in, w_rec, *bias)

    return OnJax(
        lambda variables, xs: layer.stateless_call(variables, fixed, xs)[0],
        [variable.value for variable in layer.trainable_variables],
        jnp.asarray(task.xs.swapaxes(0, 1)),
        read,
        batch_major=True,
    )


def of_torch(task: Task) -> OnTorch:
    """PyTorch's layer, on the processor."""
    import torch

    from seqjax.interop.torch import to_torch

    kind = {"Simple": "rnn", "LSTM": "lstm", "GRU": "gru"}[type(task.cell).__name__]
    xs = torch.from_numpy(np.array(task.xs, "float32")).to(getattr(torch, task.xs.dtype.name))
    return OnTorch(to_torch(seqjax.RNN(task.cell), task.params), xs, kind)


class Peer(NamedTuple):
    """A library, and which forms of a cell it has."""

    package: str
    build: Callable[[Task], System]
    forms: dict[str, str]
    """Kind to form; see `layers.CELLS`."""
    on_jax: bool = True


_COMMON = {"simple": "tanh", "lstm": "plain", "gru": "after"}

PEERS = {
    "flax linen": Peer("flax", of_linen, _COMMON),
    "flax nnx": Peer("flax", of_nnx, _COMMON),
    "haiku": Peer("dm-haiku", of_haiku, {"simple": "relu", "lstm": "plain", "gru": "before"}),
    "equinox": Peer("equinox", of_equinox, _COMMON),
    "keras": Peer("keras", of_keras, _COMMON),
    "torch": Peer("torch", of_torch, _COMMON, on_jax=False),
}


def installed() -> dict[str, str | None]:
    """The version of each peer; `None`: absent."""
    versions: dict[str, str | None] = {}
    for name, peer in PEERS.items():
        module = "haiku" if peer.package == "dm-haiku" else peer.package
        found = importlib.util.find_spec(module) is not None
        versions[name] = importlib.metadata.version(peer.package) if found else None
    return versions
