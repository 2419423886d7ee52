# SPDX-License-Identifier: Apache-2.0
"""From a seqjax layer and its params to a Keras one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from seqjax.base import Cell, Layer, Params
from seqjax.cells import GRU, LSTM, Simple
from seqjax.dtypes import DTypes
from seqjax.initializers import ForgetGate
from seqjax.interop.keras.activations import to_name
from seqjax.interop.keras.reading import MERGES
from seqjax.interop.keras.record import POLICIES
from seqjax.interop.layout import check_params, param_array, pieces_of, unsupported
from seqjax.layers import RNN, Activation, BatchNorm, Bidirectional, Conv1D, Dense, Dropout, Embed, LayerNorm, Serial
from seqjax.layers.last import Last

Custom = Mapping[type, Callable[[Any, Params], tuple[Any, list]]]
"""For a seqjax class, a function from the Cell or Layer and its params to a Keras cell or layer of your own and
the arrays for its `set_weights`."""

_MERGES = {ours: theirs for theirs, ours in MERGES.items()}


def to_keras(model: Layer, params: Params, *, custom: Custom | None = None) -> Any:
    """A seqjax layer and its params as a built Keras 3 layer or `Sequential`.

    Args:
      model: a time-major model; the Keras model is batch-major.
      params: those of `model`.
      custom: for cells and layers that Keras does not have, a mapping from class to function, where
        `function(cell, params)` returns a Keras cell or layer of your own and the arrays for its `set_weights`.

    Returns:
      A `Sequential` for a `Serial`, otherwise a single layer; built, on the Keras backend in use. `from_keras`
      turns it back into `model` and `params`, except for what Keras has no place for: engines and initializers,
      nested `Serial`s (which become one row of layers) or one around the only layer of a direction,
      `Dropout(0.0)` in a direction, and redundant options, such as a backward layer like the forward one.

    Raises:
      ValueError: a cell, layer, option or dtype without a counterpart, or params that are not `model`'s.
      ImportError: Keras is not installed.

    >>> import jax, jax.numpy as jnp, pytest, seqjax
    >>> keras = pytest.importorskip("keras")
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.LSTM(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((5, 2, 3)))
    >>> [layer.name.split("_")[0] for layer in to_keras(model, params).layers]
    ['lstm', 'dense']
    """
    import keras

    pieces = _flatten(model, params)
    written = _Writer(keras.layers, custom or {}).write(pieces)
    in_dim = next((dim for layer, p in pieces if (dim := _in_dim(layer, p)) is not None), None)
    ids = isinstance(pieces[0][0], Embed)
    shape = (None, None) if ids else (None, None, in_dim)
    if not isinstance(model, Serial) and len(written) == 1:
        layer, arrays = written[0]
        layer.build(shape)
        layer.set_weights(arrays)
        return layer
    result = keras.Sequential([layer for layer, _ in written])
    if ids or in_dim is not None:
        result.build(shape)
    for layer, arrays in written:
        if arrays:
            layer.set_weights(arrays)
    return result


@dataclasses.dataclass(frozen=True)
class _Writer:
    """One method per seqjax class. Each returns the Keras layer, not yet built, and the arrays of its weights."""

    layers: Any
    """The module `keras.layers`."""
    custom: Custom

    def write(self, pieces: list[tuple[Layer, Params]]) -> list[tuple[Any, list]]:
        owners = [_owner_of_dtypes(layer) for layer, _ in pieces]
        policy = next((policy_name(owner) for owner in owners if owner is not None), "float32")
        written = []
        at = 0
        while at < len(pieces):
            layer, params = pieces[at]
            owner, at = owners[at], at + 1
            policy = policy if owner is None else policy_name(owner)
            if type(layer) in self.custom:
                written.append(self.custom[type(layer)](layer, params))
            elif isinstance(layer, RNN):
                last = at < len(pieces) and isinstance(pieces[at][0], Last)
                at += last
                written.append(self.recurrent(layer, params, return_sequences=not last))
            elif type(layer) in _METHODS:
                written.append(_METHODS[type(layer)](self, layer, params))
            elif isinstance(layer, Activation | Dropout):
                written.append((self.parameterless(layer, policy), []))
            else:
                known = ", ".join(sorted(cls.__name__ for cls in (RNN, Serial, Activation, Dropout, *_METHODS)))
                advice = f"known are {known}, and Last after an RNN; custom= says what others are"
                raise unsupported(f"to_keras: {layer!r}", f"{type(layer).__name__} here", advice)
        return written

    # -- recurrent layers ---------------------------------------------------------------------

    def recurrent(self, layer: RNN, params: Params, *, return_sequences: bool, **options: Any) -> tuple[Any, list]:
        """An `RNN` as the Keras layer for its cell; `options` are Keras'."""
        # a last output is that of the last unmasked step, which this option would set to zeros where there are more
        options |= {"return_sequences": return_sequences, "zero_output_for_mask": return_sequences}
        cell: Any = layer.cell
        if type(cell) in self.custom:
            if options.pop("dropout", 0):
                raise unsupported(f"to_keras: {cell!r}", "Dropout before it in a Bidirectional", "leave it out")
            found, arrays = self.custom[type(cell)](cell, params)
            return self.layers.RNN(found, **options), arrays
        if type(cell) not in _CELLS or cell.normalize is not None:
            raise unsupported(f"to_keras: {cell!r}", "this cell in Keras", "say what it is with custom=")
        if jnp.finfo(cell.dtypes.params).bits < 32:  # QR, used for Keras' orthogonal kernels, lacks such dtypes
            options["recurrent_initializer"] = "glorot_uniform"
        return _CELLS[type(cell)](self, cell, params, options)

    def simple(self, cell: Simple, params: Params, options: dict) -> tuple[Any, list]:
        layer = self.layers.SimpleRNN(
            cell.hidden_dim,
            activation=to_name(repr(cell), cell.activation),
            use_bias=cell.use_bias,
            dtype=policy_name(cell),
            **options,
        )
        return layer, self._products(cell, params)

    def lstm(self, cell: LSTM, params: Params, options: dict) -> tuple[Any, list]:
        if cell.proj_dim is not None:
            raise unsupported(f"to_keras: {cell!r}", "proj_dim in Keras", "say what it is with custom=")
        layer = self.layers.LSTM(
            cell.hidden_dim,
            activation=to_name(repr(cell), cell.activation),
            recurrent_activation=to_name(repr(cell), cell.recurrent_activation),
            use_bias=cell.use_bias,
            unit_forget_bias=cell.bias_init == ForgetGate(),
            dtype=policy_name(cell),
            **options,
        )
        return layer, self._products(cell, params)

    def gru(self, cell: GRU, params: Params, options: dict) -> tuple[Any, list]:
        layer = self.layers.GRU(
            cell.hidden_dim,
            activation=to_name(repr(cell), cell.activation),
            recurrent_activation=to_name(repr(cell), cell.recurrent_activation),
            use_bias=cell.use_bias,
            reset_after=cell.reset == "after",
            dtype=policy_name(cell),
            **options,
        )
        arrays = self._products(cell, params)
        if cell.use_bias and cell.reset == "after":
            arrays[2] = np.stack([arrays[2], param_array(cell, "bias_rec", params)])
        return layer, arrays

    def _products(self, cell: Simple | LSTM | GRU, params: Params) -> list:
        check_params(cell, params)
        names = ("w_in", "w_rec", "bias") if cell.use_bias else ("w_in", "w_rec")
        return _arrays(cell, params, *names)

    def bidirectional(self, layer: Bidirectional, params: Params) -> tuple[Any, list]:
        ahead, behind = layer.layers
        forward, arrays = self._direction(ahead, params[0], backwards=False)
        backward, more = self._direction(behind, params[1], backwards=True)
        merge = _MERGES[layer.merge]
        both = self.layers.Bidirectional(forward, merge, backward_layer=backward, dtype=forward.dtype_policy.name)
        return both, arrays + more

    def _direction(self, side: Layer, params: Params, backwards: bool) -> tuple[Any, list]:
        """`[Dropout], RNN, [Last]` as one recurrent Keras layer."""
        pieces = _flatten(side, params)
        first, dropout = pieces[0][0], 0.0
        if isinstance(first, Dropout) and first.variational:
            dropout, pieces = first.rate, pieces[1:]
        layers = [layer for layer, _ in pieces]
        if not layers or not isinstance(layers[0], RNN) or layers[1:] not in ([], [Last()]):
            raise unsupported(f"to_keras: {side!r}", "this in Keras' Bidirectional", "an RNN is, and Last after it")
        sequences, params = len(layers) == 1, pieces[0][1]
        return self.recurrent(layers[0], params, return_sequences=sequences, go_backwards=backwards, dropout=dropout)

    # -- layers with params -------------------------------------------------------------------

    def dense(self, layer: Dense, params: Params) -> tuple[Any, list]:
        found = self.layers.Dense(
            layer.features,
            activation=to_name(repr(layer), layer.activation),
            use_bias=layer.use_bias,
            dtype=policy_name(layer),
        )
        return found, _arrays(layer, params, *(("kernel", "bias") if layer.use_bias else ("kernel",)))

    def conv(self, layer: Conv1D, params: Params) -> tuple[Any, list]:
        found = self.layers.Conv1D(
            layer.features,
            layer.width,
            strides=layer.stride,
            padding=layer.padding,
            dilation_rate=layer.dilation,
            activation=to_name(repr(layer), layer.activation),
            use_bias=layer.use_bias,
            dtype=policy_name(layer),
        )
        return found, _arrays(layer, params, *(("kernel", "bias") if layer.use_bias else ("kernel",)))

    def embed(self, layer: Embed, params: Params) -> tuple[Any, list]:
        found = self.layers.Embedding(layer.num, layer.features, dtype=policy_name(layer))
        return found, _arrays(layer, params, "table")

    def layer_norm(self, layer: LayerNorm, params: Params) -> tuple[Any, list]:
        found = self.layers.LayerNormalization(
            epsilon=layer.epsilon, center=layer.use_offset, scale=layer.use_scale, dtype=policy_name(layer)
        )
        names = [name for name, on in (("scale", layer.use_scale), ("offset", layer.use_offset)) if on]
        return found, _arrays(layer, params, *names)

    def batch_norm(self, layer: BatchNorm, params: Params) -> tuple[Any, list]:
        found = self.layers.BatchNormalization(epsilon=layer.epsilon, dtype=policy_name(layer))
        return found, _arrays(layer, params, "scale", "offset", "mean", "var")

    # -- layers without -----------------------------------------------------------------------

    def parameterless(self, layer: Activation | Dropout, policy: str) -> Any:
        if isinstance(layer, Activation):
            return self.layers.Activation(to_name(repr(layer), layer.function), dtype=policy)
        cls = self.layers.SpatialDropout1D if layer.variational else self.layers.Dropout
        return cls(layer.rate, dtype=policy)


_CELLS: dict[type, Callable] = {Simple: _Writer.simple, LSTM: _Writer.lstm, GRU: _Writer.gru}
_METHODS: dict[type, Callable] = {
    Bidirectional: _Writer.bidirectional,
    Dense: _Writer.dense,
    Conv1D: _Writer.conv,
    Embed: _Writer.embed,
    LayerNorm: _Writer.layer_norm,
    BatchNorm: _Writer.batch_norm,
}


def _arrays(owner: Any, params: Params, *names: str) -> list[np.ndarray]:
    return [param_array(owner, name, params) for name in names]


def policy_name(owner: Any) -> str:
    """The Keras policy of a cell's or layer's dtypes.

    Raises:
      ValueError: dtypes that correspond to no policy.

    >>> import seqjax
    >>> policy_name(seqjax.Dense(1, dtypes=DTypes(compute="bfloat16")))
    'mixed_bfloat16'
    """
    given = owner.dtypes
    if given.carry not in (None, given.compute or given.params):
        raise unsupported(f"to_keras: {owner!r}", "a carry of its own dtype in Keras", "leave carry out of the DTypes")
    wanted = DTypes(given.params, None if given.compute == given.params else given.compute)
    for name, policy in POLICIES.items():
        if policy == wanted:
            return name
    raise unsupported(f"to_keras: {owner!r}", f"{wanted!r} in Keras", f"known are {sorted(POLICIES)}")


def _flatten(model: Layer, params: Params) -> list[tuple[Layer, Params]]:
    """The layers of nested `Serial`s as one list."""
    if not isinstance(model, Serial):
        return [(model, params)]
    return [piece for layer, p in pieces_of(model, params) for piece in _flatten(layer, p)]


def _owner_of_dtypes(layer: Layer) -> Cell | Layer | None:
    """The inner layer or cell that determines in which dtypes a layer computes."""
    if isinstance(layer, Bidirectional):
        return _owner_of_dtypes(layer.forward)
    if isinstance(layer, Serial):
        return next((owner for inside in layer.layers if (owner := _owner_of_dtypes(inside)) is not None), None)
    owner = layer.cell if isinstance(layer, RNN) else layer
    return owner if isinstance(getattr(owner, "dtypes", None), DTypes) else None


def _in_dim(layer: Layer, params: Params) -> int | None:
    """The number of a layer's input features, or `None` if its params do not tell."""
    if isinstance(layer, Bidirectional | Serial):
        inside = layer.layers if isinstance(layer, Serial) else (layer.forward,)
        return next(
            (dim for side, p in zip(inside, params, strict=False) if (dim := _in_dim(side, p)) is not None), None
        )
    axes = (("w_in", 0), ("kernel", -2), ("scale", 0), ("offset", 0))
    arrays = [(getattr(params, name, None), axis) for name, axis in axes]
    return next((array.shape[axis] for array, axis in arrays if array is not None), None)
