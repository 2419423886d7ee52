# SPDX-License-Identifier: Apache-2.0
"""A trained model as a StableHLO artifact that runs without seqjax, whole or as a stream.

An artifact is what `jax.export` serializes: the params are inside, time and batch can stay symbolic, and
any process that has jax (and flatbuffers) can call it on sequences of any length and any batch size:

    from jax import export
    forecast = export.deserialize(pathlib.Path("forecast.jax").read_bytes())
    ys = forecast.call(xs)                        # jax.jit(forecast.call) compiles once per shape

A stream is two artifacts and a carry, a dict of arrays, which the caller keeps:

    start, step = (export.deserialize(pathlib.Path(name).read_bytes()) for name in ("start.jax", "step.jax"))
    carry = start.call(xs)                        # the initial carry for a batch like xs, whose values are not read
    carry, ys = step.call(carry, xs)              # again and again, as inputs arrive

`deserialize(...).mlir_module()` is the StableHLO text, for compilers other than XLA. A float64 model
needs `jax_enable_x64` in the process that calls it, too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import DTypeLike

from seqjax.base import Array, Carry, Engine, Layer, Mask, Params, Resets
from seqjax.engines.scan import Scan
from seqjax.layers.batch_major import BatchMajor
from seqjax.layers.bidirectional import Bidirectional
from seqjax.layers.compose import Residual, Serial
from seqjax.layers.conv import Conv1D
from seqjax.layers.inner import map_layers
from seqjax.layers.wavefront import Wavefront
from seqjax.require import shown
from seqjax.trees import leaf_names

__all__ = ["Stream", "export_model", "export_stream", "least_steps", "length_agnostic"]

LOOP = Scan(adjoint=False)
"""The engine of artifacts: nothing in it depends on the length, and an artifact needs no hand-written reverse pass."""


class Stream(NamedTuple):
    """Two artifacts, to be read with `jax.export.deserialize`.

    Attributes:
      start: `start(xs) -> carry`, the initial carry for a batch like `xs`.
      step: `step(carry, xs[, mask][, resets]) -> (carry, ys)`.
    """

    start: bytes
    step: bytes


def export_model(
    model: Layer,
    params: Params,
    shape: str,
    *,
    dtype: DTypeLike = "float32",
    masked: bool = False,
    resets: bool = False,
    constraints: Sequence[str] = (),
    platforms: Sequence[str] | None = None,
) -> bytes:
    """Exports `ys = f(xs[, mask][, resets])`, which starts from the initial carry, in evaluation mode.

    Every engine is replaced by the plain loop, which works for lengths that are not known yet and gives the
    same numbers. The lower bound on the length that convolutions need is added automatically.

    Args:
      model, params: the trained model.
      shape: that of `xs`, in the notation of `jax.export.symbolic_shape`: `"t, b, 3"`, `"50, b, 3"`, or
        `"t, 3"` for single sequences; time comes first, or second for a `BatchMajor` model.
      dtype: that of `xs`.
      masked, resets: whether the artifact takes a mask, and resets, as bool arrays `[T, ...]`.
      constraints: what is known about the symbols, such as `"t <= 1000"`.
      platforms: platforms to compile for, such as `("cpu", "cuda")`; by default the current one.

    Returns:
      The artifact: write it to a file, and read it with `jax.export.deserialize`.

    Raises:
      ValueError: a shape that does not fit the model, or inputs that its `apply` rejects.
      ImportError: flatbuffers is not installed.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> conv = seqjax.Conv1D(20, width=4, stride=2, padding="valid")
    >>> model = seqjax.Serial(conv, seqjax.RNN(seqjax.GRU(20)), seqjax.Dense(10))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 32, 1)))
    >>> artifact = export_model(model, params, "t, b, 1")
    >>> forecast = jax.export.deserialize(artifact)  # here, or where there is no seqjax
    >>> forecast.call(jnp.ones((50, 32, 1))).shape, forecast.call(jnp.ones((7, 2, 1))).shape
    ((24, 32, 10), (2, 2, 10))
    """
    xs, *flags = _inputs(model, shape, dtype, masked, resets, constraints)
    model = length_agnostic(model)

    def apply(xs: Array, *flags: Array) -> Array:
        carry = model.initial_carry(params, model.batch_shape(xs))
        return model.apply(params, carry, xs, **_named_flags(flags, masked, resets))[1]

    return _serialize(apply, platforms, xs, *flags)


def export_stream(
    model: Layer,
    params: Params,
    shape: str,
    *,
    dtype: DTypeLike = "float32",
    masked: bool = False,
    resets: bool = False,
    constraints: Sequence[str] = (),
    platforms: Sequence[str] | None = None,
) -> Stream:
    """Exports a model that is fed piece by piece: `carry, ys = step(carry, xs[, mask][, resets])`.

    The carry is a dict of arrays, named by their paths in the model's carry (`"1.h"` is the h of
    layer 1), so that the process that streams needs none of seqjax's classes.

    Args:
      model: a model that streams, and hence is causal, as the future of a stream is not known.
      params: its params.
      shape: that of a piece: `"1, b, 3"` for single steps, `"k, b, 3"` for pieces of any length; a model
        with stride 2 takes pieces `"2*k, b, 3"`.
      dtype, masked, resets, constraints, platforms: as for `export_model`.

    Returns:
      `start` and `step`.

    Raises:
      ValueError: a model that does not stream, or pieces that are not multiples of its stride.
      ImportError: flatbuffers is not installed.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.LSTM(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 32, 3)))
    >>> start, step = map(jax.export.deserialize, export_stream(model, params, "1, b, 3"))
    >>> carry = start.call(jnp.ones((1, 2, 3)))
    >>> sorted(carry)
    ['0.c', '0.h']
    >>> for x in jnp.ones((50, 2, 3)):
    ...     carry, ys = step.call(carry, x[None])
    >>> ys.shape
    (1, 2, 1)
    """
    if not model.streams:
        raise ValueError(f"{model!r} does not stream: export it whole with export_model, or use causal layers.")
    xs, *flags = _inputs(model, shape, dtype, masked, resets, constraints)
    if xs.shape[0] % model.stride != 0:
        raise ValueError(
            f"pieces of a stream must be multiples of the model's stride {model.stride}, got {shape!r}; "
            f"write {f'{model.stride}*k'!r} for the steps of a piece."
        )
    model = length_agnostic(model)

    def start(xs: Array) -> dict[str, Array]:
        return _named(model.initial_carry(params, model.batch_shape(xs)))

    def step(carry: dict[str, Array], xs: Array, *flags: Array) -> tuple[dict[str, Array], Array]:
        like = jax.eval_shape(lambda: model.initial_carry(params, model.batch_shape(xs)))
        whole = jax.tree.unflatten(jax.tree.structure(like), [carry[name] for name in leaf_names(like, "carry")])
        after, ys = model.apply(params, whole, xs, **_named_flags(flags, masked, resets))
        return _named(after), ys

    return Stream(_serialize(start, platforms, xs), _serialize(step, platforms, jax.eval_shape(start, xs), xs, *flags))


def length_agnostic(model: Layer) -> Layer:
    """`model` with the plain loop in place of every engine, and on one device instead of many.

    >>> import seqjax
    >>> length_agnostic(seqjax.Serial(seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1)))
    Serial(RNN(GRU(4), engine=Scan(adjoint=False)), Dense(1))
    """
    if isinstance(model, Wavefront):
        return length_agnostic(model.serial)
    layer: Any = model
    engines = {f.name: LOOP for f in dataclasses.fields(layer) if isinstance(getattr(layer, f.name), Engine)}
    return map_layers(length_agnostic, dataclasses.replace(layer, **engines))


def least_steps(model: Layer, outputs: int = 1) -> int:
    """The fewest input steps from which `model` produces `outputs` output steps.

    >>> import seqjax
    >>> least_steps(seqjax.Conv1D(20, width=4, stride=2, padding="valid"), 3)
    8
    """
    if isinstance(model, Serial):
        for layer in reversed(model.layers):
            outputs = least_steps(layer, outputs)
        return outputs
    if isinstance(model, BatchMajor | Residual):
        return least_steps(model.layer, outputs)
    if isinstance(model, Bidirectional):
        return max(least_steps(layer, outputs) for layer in model.layers)
    if isinstance(model, Conv1D):
        return (outputs - 1) * model.stride + 1 + (model.reach if model.padding == "valid" else 0)
    return outputs


def _inputs(
    model: Layer, shape: str, dtype: DTypeLike, masked: bool, resets: bool, constraints: Sequence[str]
) -> list[jax.ShapeDtypeStruct]:
    """`xs`, then the mask and the resets, if there are any."""
    if not isinstance(shape, str):
        raise ValueError(f"the shape of xs is a string such as 't, b, 3', got {shown(shape)}.")
    wanted, at = ("[B, T, ..., D]", 1) if isinstance(model, BatchMajor) else ("[T, ..., D]", 0)
    axes = [dim.strip() for dim in shape.split(",") if dim.strip()]
    if len(axes) <= at:
        raise ValueError(f"{model!r} takes xs {wanted}, a name or number for each axis; got the shape {shape!r}.")
    time = axes[at]
    if not time.isdigit():
        constraints = (*constraints, f"{time} >= {least_steps(model)}")
    xs = jax.ShapeDtypeStruct(export.symbolic_shape(shape, constraints=constraints), jnp.dtype(dtype))
    flags = jax.ShapeDtypeStruct(xs.shape[: 1 + len(model.batch_shape(xs))], jnp.dtype(bool))
    return [xs] + [flags] * (masked + resets)


def _named_flags(flags: tuple[Array, ...], masked: bool, resets: bool) -> dict[str, Mask | Resets]:
    names = [name for name, given in (("mask", masked), ("resets", resets)) if given]
    return dict(zip(names, flags, strict=True))


def _named(carry: Carry) -> dict[str, Array]:
    return dict(zip(leaf_names(carry, "carry"), jax.tree.leaves(carry), strict=True))


def _serialize(function: Any, platforms: Sequence[str] | None, *inputs: Any) -> bytes:
    return bytes(export.export(jax.jit(function), platforms=platforms)(*inputs).serialize())
