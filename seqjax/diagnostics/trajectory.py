# SPDX-License-Identifier: Apache-2.0
"""The states of every recurrent layer inside a model, and a way to perturb them: the model with probes."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Self

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Cell, Engine, Key, Layer, Mask, Params, Resets, Shape
from seqjax.diagnostics.probe import Probe, StateLayout
from seqjax.dtypes import widest
from seqjax.engines.associative import Associative
from seqjax.engines.auto import Auto
from seqjax.engines.checkpointed import Checkpointed
from seqjax.engines.fused import Fused
from seqjax.engines.newton import Newton
from seqjax.engines.relaxed import Relaxed
from seqjax.engines.scan import Scan
from seqjax.engines.sharded import Sharded
from seqjax.engines.truncated import Truncated
from seqjax.layers.batch_major import time_major
from seqjax.layers.inner import check_inputs, check_layers, map_layers
from seqjax.layers.rnn import RNN
from seqjax.layers.wavefront import Wavefront
from seqjax.require import shown
from seqjax.sequences import check_sequence, hide
from seqjax.trees import leaf_names


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What a recurrent layer saw at each of its T steps. A pytree, so a jitted function can return it.

    Attributes:
      name: the layer's place in the model's params, and its cell: `"0 GRU(20)"`.
      cell: the layer's cell.
      params: the cell's params.
      carries: like the cell's carry, with leaves `[T, ...]`: what step t started from, after its reset;
        zeros where step t is masked.
      xs: `[T, ..., D]`, the layer's inputs; zeros where they are masked.
      mask: `[T, ...]` bool or None.
    """

    name: str = dataclasses.field(metadata={"static": True})
    cell: Cell = dataclasses.field(metadata={"static": True})
    params: Params
    carries: Carry
    xs: Array
    mask: Mask

    @property
    def layout(self) -> StateLayout:
        """The layout of its carries as vectors `[T, ..., N]`."""
        return StateLayout.of(self.carries, self.xs.ndim - 1)

    def every(self, stride: int) -> Self:
        """Every `stride`-th step of it, for functions that look at steps one by one."""
        carries, xs, mask = jax.tree.map(lambda a: a[::stride], (self.carries, self.xs, self.mask))
        return dataclasses.replace(self, carries=carries, xs=xs, mask=mask)


def check_trajectory(owner: str, given: Any) -> None:
    """Rejects anything that is not the trajectory of one layer, such as all that `trajectories` returns.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(given, Trajectory):
        raise ValueError(
            f"{owner} takes the Trajectory of one recurrent layer, got {shown(given)}; "
            "trajectories(model, params, xs) returns one for each: choose one, as [0] does."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProbedCarry:
    """Carry of `Probed`: that of its layer, what is added to the states and, after `apply`, what the layer saw."""

    carry: Carry
    deltas: Array | None = None  # [T, ..., N]
    seen: Trajectory | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Probed(Layer):
    """A recurrent layer whose carry contains a perturbation of its states, and whose last carry their trajectory."""

    layer: RNN

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return self.layer.batch_shape(xs)

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        return self.layer.init(key, xs)

    def initial_carry(self, params: Params, batch_shape: Shape) -> ProbedCarry:
        try:
            return ProbedCarry(self.layer.initial_carry(params, batch_shape))
        except AttributeError as error:  # the one of a tuple where a NamedTuple should be, mostly
            raise ValueError(
                f"{self.layer!r} has other params than {shown(params)}: {error}; take those of its init, or of an "
                "importer."
            ) from error

    def apply(
        self,
        params: Params,
        carry: ProbedCarry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[ProbedCarry, Array]:
        cell, in_dim = self.layer.cell, xs.shape[-1]
        layout = state_layout(cell, params, xs.shape[1:-1])
        y = jax.eval_shape(self.layer.apply, params, carry.carry, xs[:1])[1]
        dtype = widest(xs.dtype, y.dtype, layout.dtype)
        probe = dataclasses.replace(self.layer, cell=Probe(cell, in_dim, jnp.dtype(xs.dtype).name))
        parts = [xs] if carry.deltas is None else [xs, carry.deltas]
        inputs = jnp.concatenate([part.astype(dtype) for part in parts], -1)
        after, outputs = probe.apply(params, carry.carry, inputs, mask=mask, resets=resets, key=key)
        features = y.shape[-1]
        states = layout.unpack(outputs[..., features:])
        seen = Trajectory(repr(cell), cell, params, states, hide(xs, mask), mask)
        return ProbedCarry(after, seen=seen), outputs[..., :features].astype(y.dtype)


def state_layout(cell: Cell, params: Params, batch_shape: Shape) -> StateLayout:
    """The layout of a cell's carries.

    Raises:
      ValueError: none of their leaves is floating-point.
    """
    layout = StateLayout.of(jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params), len(batch_shape))
    if not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in layout.dtypes):
        raise ValueError(f"{cell!r} carries no floating-point numbers that could be looked at or perturbed.")
    return layout


def with_probes(model: Layer) -> Layer:
    """`model` with every recurrent layer in it probed, however deep.

    Engines that are parallel over time, or have kernels only for some cells, are replaced by `Auto` (inside
    `Checkpointed` and `Truncated` by `Scan`), which gives the same numbers. `Checkpointed`, `Truncated`, `Scan` and
    engines of your own are kept, so that what truncation cuts is seen to be cut.

    >>> import seqjax
    >>> with_probes(seqjax.Serial(seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1)))
    Serial(Probed(RNN(GRU(4))), Dense(1))
    """
    if isinstance(model, RNN):
        return Probed(dataclasses.replace(model, engine=_sequential(model.engine)))
    if isinstance(model, Wavefront):
        return with_probes(model.serial)
    return map_layers(with_probes, model)


def _sequential(engine: Engine) -> Engine:
    if isinstance(engine, Checkpointed | Truncated):
        inner: Any = Scan() if isinstance(engine.inner, Fused) else _sequential(engine.inner)
        return dataclasses.replace(engine, inner=inner)
    return Auto() if isinstance(engine, Associative | Fused | Newton | Relaxed | Sharded) else engine


def probed_carry(probed: Layer, params: Params, carry: Carry | None, batch_shape: Shape) -> Carry:
    """The carry of `with_probes(model)`, made from the model's, or the initial one if that is `None`.

    Raises:
      ValueError: a model without a recurrent layer.
    """
    initial = probed.initial_carry(params, batch_shape)
    if not any(map(_is_probed, jax.tree.leaves(initial, is_leaf=_is_probed))):
        raise ValueError(f"{probed!r} has no recurrent layer whose states could be looked at.")
    if carry is None:
        return initial
    return jax.tree.map(
        lambda node, given: ProbedCarry(given) if _is_probed(node) else given, initial, carry, is_leaf=_is_probed
    )


def with_deltas(carry: Carry, deltas: Iterable[Array]) -> Carry:
    """`carry` with a perturbation for each `ProbedCarry` in it."""
    following = iter(deltas)
    return jax.tree.map(
        lambda node: dataclasses.replace(node, deltas=next(following)) if _is_probed(node) else node,
        carry,
        is_leaf=_is_probed,
    )


def seen_in(carry: Carry) -> tuple[Trajectory, ...]:
    """What each recurrent layer saw, from the carry that `with_probes(model).apply` returns.

    Each is named by its place and cell: `"0 GRU(20)"`, or `"GRU(20)"` if the model is that layer alone.
    """
    nodes = zip(leaf_names(carry, is_leaf=_is_probed), jax.tree.leaves(carry, is_leaf=_is_probed), strict=True)
    found = [(path, node.seen) for path, node in nodes if _is_probed(node)]
    return tuple(dataclasses.replace(seen, name=f"{path} {seen.cell!r}".strip()) for path, seen in found)


def _is_probed(node: Any) -> bool:
    return isinstance(node, ProbedCarry)


def checked(owner: str, model: Layer, xs: Array, mask: Mask, resets: Resets) -> tuple[Layer, Array, Mask, Resets]:
    """A time-major model and its inputs, once they are known to be a model and its inputs."""
    check_layers(owner, model)
    check_sequence(xs)
    model, xs, mask, resets = time_major(model, xs, mask, resets)
    check_inputs(model, xs, mask, resets)
    return model, jnp.asarray(xs), mask, resets


def trajectories(
    model: Layer,
    params: Params,
    xs: Array,
    *,
    carry: Carry | None = None,
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> tuple[Trajectory, ...]:
    """What each recurrent layer of a model sees and carries, step by step.

    Args:
      model: any layer that contains recurrent layers, under any engines.
      params: its params.
      xs: `[T, ..., D]`; for a `BatchMajor` model `[B, T, ..., D]`, with mask and resets to match.
      carry: the carry to start from; by default the initial one.
      mask, resets, key: as for `Layer.apply`.

    Returns:
      A `Trajectory` for each recurrent layer, in the order of the params. Each has as many steps as its
      layer sees: fewer after a strided layer. Those of a backward direction run backward in time.

    Raises:
      ValueError: a `model` that is not a layer, or has no recurrent layer; inputs that are not a sequence, or params
        of another layer; a cell whose carry contains only integers.

    >>> import seqjax
    >>> model = seqjax.Serial(seqjax.Conv1D(3, 2, stride=2), seqjax.RNN(seqjax.LSTM(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((10, 2, 1)))
    >>> (seen,) = trajectories(model, params, jnp.ones((10, 2, 1)))
    >>> seen.name, seen.xs.shape, seen.carries.c.shape
    ('1 LSTM(4)', (5, 2, 3), (5, 2, 4))
    """
    model, xs, mask, resets = checked("trajectories", model, xs, mask, resets)
    probed = with_probes(model)
    start = probed_carry(probed, params, carry, model.batch_shape(xs))
    after, _ = probed.apply(params, start, xs, mask=mask, resets=resets, key=key)
    return seen_in(after)
