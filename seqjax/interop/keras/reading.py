# SPDX-License-Identifier: Apache-2.0
"""From a Keras record to a seqjax layer and its params."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from seqjax.base import Cell, Layer, Params
from seqjax.dtypes import DTypes
from seqjax.interop.keras import activations, live
from seqjax.interop.keras.cells import CELL_OPTIONS, CELLS
from seqjax.interop.keras.record import Record, check_ignore, variables_of
from seqjax.interop.layout import unsupported
from seqjax.layers import RNN, Activation, BatchNorm, Bidirectional, Conv1D, Dense, Dropout, Embed, LayerNorm, Serial
from seqjax.layers.conv import ConvParams
from seqjax.layers.last import Last
from seqjax.layers.pointwise import DenseParams, EmbedParams, LayerNormParams
from seqjax.layers.regularize import BatchNormParams

Custom = Mapping[type, Callable[[Any], tuple[Cell | Layer, Params]]]
"""For a user's own Keras class, a function from its object to a Cell or Layer and its params."""
Pieces = list[tuple[Layer, Params]]
"""The consecutive seqjax layers that make up a Keras layer, and their params."""

MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean"}  # Keras' name: ours


def from_keras(layer: Any, *, custom: Custom | None = None, ignore: Collection[str] = ()) -> tuple[Layer, Params]:
    """A built Keras 3 layer or `Sequential` as a seqjax layer and its params.

    Args:
      layer: a live object, of any Keras backend.
      custom: for classes of your own (mainly cells in `keras.layers.RNN`), a mapping from class to function,
        where `function(object)` returns a seqjax `Cell` or `Layer` and its params. It also overrides Keras' classes.
      ignore: options that you handle yourself, by their Keras names: regularizers, constraints,
        `recurrent_dropout`, `stateful`, `trainable`, `mask_zero`, and the layer `Masking`.

    Returns:
      The layer, time-major, and its params in Keras' dtype. A `Sequential` becomes a `Serial`.

    Raises:
      ValueError: a layer, option or shape without a counterpart, or one that is not built.

    >>> import pytest
    >>> keras = pytest.importorskip("keras")
    >>> keras_model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(4), keras.layers.Dense(1)])
    >>> model, params = from_keras(keras_model)
    >>> model
    Serial(RNN(GRU(4, reset='after')), Last(), Dense(1))
    """
    custom = custom or {}
    check_ignore(ignore)
    return convert(live.record_of(layer, tuple(custom)), custom=custom, ignore=ignore)


def convert(record: Record, *, custom: Custom | None = None, ignore: Collection[str] = ()) -> tuple[Layer, Params]:
    """The layer and params that a record describes."""
    reader = _Reader(custom or {}, frozenset(ignore), explicit=len(set(_policies(record))) > 1)
    pieces = reader.read(record)
    if not pieces:
        raise ValueError(f"{record.owner} has no layers that do anything.")
    if len(pieces) == 1 and record.class_name != "Sequential":
        return pieces[0]
    return Serial(*(layer for layer, _ in pieces)), tuple(params for _, params in pieces)


def _policies(record: Record) -> list[DTypes]:
    """The policies of all inner records that have variables, in order."""
    own = [record.policy] if variables_of(record.class_name, record.config) else []
    return own + [policy for parts in record.parts.values() for part in parts for policy in _policies(part)]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """One method per Keras class; the fields say what to leave out, and hold the user's own classes."""

    custom: Custom
    ignore: frozenset[str]
    explicit: bool
    """Whether layers have different policies, so that each must cast to its own."""

    def read(self, record: Record) -> Pieces:
        if type(record.live) in self.custom:
            found, params = self._of_user(record)
            return [(RNN(found) if isinstance(found, Cell) else found, params)]
        if record.class_name in self.ignore:
            return []
        method = _METHODS.get(record.class_name)
        if method is None:
            advice = _ADVICE.get(record.class_name, "known layers are " + ", ".join(sorted(_METHODS)))
            raise unsupported(record.owner, f"the layer {record.class_name}", advice)
        return method(self, record)

    def _of_user(self, record: Record) -> tuple[Cell | Layer, Params]:
        found, params = self.custom[type(record.live)](record.live)
        if not isinstance(found, Cell | Layer):
            raise ValueError(f"{record.owner}: custom must give a seqjax Cell or Layer and its params, got {found!r}.")
        return found, params

    def _dtypes(self, record: Record) -> DTypes:
        policy = record.policy
        return dataclasses.replace(policy, compute=policy.compute or policy.params) if self.explicit else policy

    # -- containers ---------------------------------------------------------------------------

    def sequential(self, record: Record) -> Pieces:
        record.check(self.ignore)
        pieces: Pieces = []
        compute = None
        for part in record.parts["layers"]:
            if part.class_name in _PARAMETERLESS and compute not in (None, _compute(part.policy)):
                raise unsupported(part.owner, f"computing in {_compute(part.policy)} after {compute}", "use one dtype")
            compute = next(map(_compute, reversed(_policies(part))), compute)
            pieces += self.read(part)
        return pieces

    def input(self, record: Record) -> Pieces:
        record.check(self.ignore, ("batch_shape", "ragged", "sparse"), ragged=(False,), sparse=(False,))
        return []

    def time_distributed(self, record: Record) -> Pieces:
        record.check(self.ignore)
        (inside,) = record.parts["layer"]
        if inside.class_name not in ("Dense", "LayerNormalization", *_PARAMETERLESS):
            raise unsupported(
                record.owner, f"{inside.class_name} inside", "only layers that act on each step, such as Dense, are"
            )
        return self.read(inside)

    def bidirectional(self, record: Record) -> Pieces:
        record.check(self.ignore, ("merge_mode",))
        merge = record.config.get("merge_mode")
        if not isinstance(merge, str) or merge not in MERGES:
            raise unsupported(record.owner, f"merge_mode={merge!r}", f"only {sorted(MERGES)} are")
        sides: Pieces = []
        for part, backwards in (("forward_layer", False), ("backward_layer", True)):
            (inside,) = record.parts[part]
            if inside.class_name not in (*CELLS, "RNN"):
                raise unsupported(inside.owner, f"{inside.class_name} in Bidirectional", "a recurrent layer is")
            pieces = self.recurrent(inside, backwards=backwards)
            if len(pieces) > 1:
                layers, params = zip(*pieces, strict=True)
                sides.append((Serial(*layers), tuple(params)))
            else:
                sides.append(pieces[0])
        (forward, p), (backward, q) = sides
        both = Bidirectional(forward, None if backward == forward else backward, merge=MERGES[merge])
        return [(both, (p, q))]

    # -- recurrent layers ---------------------------------------------------------------------

    def recurrent(self, record: Record, *, backwards: bool = False) -> Pieces:
        """Dropout of the inputs, the recurrence, and `Last` if only the last output is returned."""
        mapped = ("dropout", "return_sequences", "unroll", *CELL_OPTIONS.get(record.class_name, ()))
        sequences = record.option("return_sequences", bool, default=False)
        record.check(
            self.ignore,
            mapped,
            go_backwards=(backwards,),
            recurrent_dropout=(0.0, 0),
            return_state=(False,),
            stateful=(False,),
            zero_output_for_mask=(False, True) if sequences else (False,),
        )
        cells = record.parts.get("cell", ())
        if cells and cells[0].class_name == "StackedRNNCells":
            cells[0].check(self.ignore)
            cells = cells[0].parts["cells"]
        pieces = [piece for cell in cells for piece in self.cell(cell)] if cells else self._rnn(record)
        return pieces if sequences else [*pieces, (Last(), ())]

    def cell(self, record: Record) -> Pieces:
        if type(record.live) in self.custom:
            found, params = self._of_user(record)
            if not isinstance(found, Cell):
                raise ValueError(f"{record.owner} is a cell: custom must give a seqjax Cell, got {found!r}.")
            return [(RNN(found), params)]
        kind = record.class_name.removesuffix("Cell")
        if kind not in CELLS or kind == record.class_name:
            raise unsupported(record.owner, f"the cell {record.class_name}", "say what it is with custom=")
        record.check(self.ignore, ("dropout", *CELL_OPTIONS[kind]), recurrent_dropout=(0.0, 0))
        return self._rnn(record)

    def _rnn(self, record: Record) -> Pieces:
        cell, params = CELLS[record.class_name.removesuffix("Cell")](record, self._dtypes(record))
        rate = record.option("dropout", float, int, default=0.0)
        dropout: Pieces = [(Dropout(float(rate), variational=True), ())] if rate else []
        return [*dropout, (RNN(cell), params)]

    # -- layers with params -------------------------------------------------------------------

    def dense(self, record: Record) -> Pieces:
        record.check(self.ignore, ("units", "activation", "use_bias"))
        units, use_bias = record.option("units", int), record.option("use_bias", bool, default=True)
        layer = Dense(units, _activation(record), use_bias, dtypes=self._dtypes(record))
        kernel = record.take("kernel", (record.rows("kernel"), units))
        return [(layer, DenseParams(kernel, record.take("bias", (units,)) if use_bias else None))]

    def conv(self, record: Record) -> Pieces:
        mapped = ("filters", "kernel_size", "strides", "padding", "dilation_rate", "activation", "use_bias")
        record.check(self.ignore, mapped, groups=(1,), data_format=("channels_last",), rank=(1,))
        filters, width = record.option("filters", int), record.single("kernel_size")
        use_bias = record.option("use_bias", bool, default=True)
        layer = Conv1D(
            filters,
            width,
            record.single("strides"),
            record.option("padding", str, default="valid"),
            record.single("dilation_rate"),
            _activation(record),
            use_bias,
            dtypes=self._dtypes(record),
        )
        kernel = record.take("kernel", (width, record.rows("kernel"), filters))
        return [(layer, ConvParams(kernel, record.take("bias", (filters,)) if use_bias else None))]

    def embedding(self, record: Record) -> Pieces:
        mapped = ("input_dim", "output_dim", "input_length")
        record.check(self.ignore, mapped, mask_zero=(False,))
        num, features = record.option("input_dim", int), record.option("output_dim", int)
        layer = Embed(num, features, dtypes=self._dtypes(record))
        return [(layer, EmbedParams(record.take("embeddings", (num, features))))]

    def layer_norm(self, record: Record) -> Pieces:
        record.check(self.ignore, ("axis", "epsilon", "center", "scale"))
        features = _normalized_features(record, "gamma", "beta")
        scale, center = (record.option(name, bool, default=True) for name in ("scale", "center"))
        layer = LayerNorm(float(record.option("epsilon", float, int)), scale, center, dtypes=self._dtypes(record))
        gamma, beta = (
            record.take(name, (features,)) if on else None for name, on in (("gamma", scale), ("beta", center))
        )
        return [(layer, LayerNormParams(gamma, beta))]

    def batch_norm(self, record: Record) -> Pieces:
        record.check(self.ignore, ("axis", "epsilon", "momentum", "renorm_momentum"), center=(True,), scale=(True,))
        shape = (_normalized_features(record, "moving_mean"),)
        layer = BatchNorm(float(record.option("epsilon", float, int)), dtypes=self._dtypes(record))
        variables = (record.take(name, shape) for name in ("gamma", "beta", "moving_mean", "moving_variance"))
        return [(layer, BatchNormParams(*variables))]

    # -- layers without -----------------------------------------------------------------------

    def activation(self, record: Record) -> Pieces:
        record.check(self.ignore, ("activation",))
        return [(Activation(activations.from_name(record.owner, record.config.get("activation"))), ())]

    def dropout(self, record: Record) -> Pieces:
        record.check(self.ignore, ("rate", "noise_shape"))
        noise, spatial = record.config.get("noise_shape"), record.class_name == "SpatialDropout1D"
        if noise is not None and not spatial:
            if not isinstance(noise, list | tuple) or tuple(noise) != (None, 1, None):
                raise unsupported(record.owner, f"noise_shape={noise!r}", "None and (None, 1, None) are")
            spatial = True
        return [(Dropout(float(record.option("rate", float, int)), variational=spatial), ())]


_PARAMETERLESS = ("Activation", "Dropout", "SpatialDropout1D", "Masking")
_METHODS: dict[str, Callable[[_Reader, Record], Pieces]] = {
    "Sequential": _Reader.sequential,
    "InputLayer": _Reader.input,
    "TimeDistributed": _Reader.time_distributed,
    "Bidirectional": _Reader.bidirectional,
    "SimpleRNN": _Reader.recurrent,
    "LSTM": _Reader.recurrent,
    "GRU": _Reader.recurrent,
    "RNN": _Reader.recurrent,
    "Dense": _Reader.dense,
    "Conv1D": _Reader.conv,
    "Embedding": _Reader.embedding,
    "LayerNormalization": _Reader.layer_norm,
    "BatchNormalization": _Reader.batch_norm,
    "Activation": _Reader.activation,
    "Dropout": _Reader.dropout,
    "SpatialDropout1D": _Reader.dropout,
}
_ADVICE = {
    "Masking": "give mask= to apply; ignore=('Masking',) leaves the layer out",
    "Lambda": "it holds code, which is never run; rebuild the model without it",
    "Functional": "convert its layers one by one and compose them with Serial, Residual and Bidirectional",
}


def _activation(record: Record) -> Any:
    """The activation of a layer, or `None` if it has none."""
    found = activations.from_name(record.owner, record.config.get("activation", "linear"))
    return None if found == "identity" else found


def _compute(policy: DTypes) -> str:
    return str(policy.compute or policy.params)


def _normalized_features(record: Record, *variables: str) -> int:
    """The number of features of a normalization, which must be over the last axis."""
    axis = record.single("axis", -1)
    rank = None if record.input_shape is None else len(record.input_shape)
    if axis != -1 and axis + 1 != rank:
        raise unsupported(
            record.owner, f"axis={record.config['axis']!r} of {rank or 'unknown'} axes", "the last one is"
        )
    if record.input_shape is not None and type(record.input_shape[-1]) is int:
        return record.input_shape[-1]
    sizes = [record.weights[name].shape for name in variables if name in record.weights]
    return sizes[0][0] if sizes and len(sizes[0]) == 1 else 0
