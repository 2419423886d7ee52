# SPDX-License-Identifier: Apache-2.0
"""Any Flax cell as a seqjax `Cell`: its own step under every engine, with masks and resets."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from seqjax.base import Array, Carry, Cell, Key, Params, Shape
from seqjax.interop.flax.weights import Tree


@dataclasses.dataclass(frozen=True, repr=False)
class LinenCell(Cell):
    """A `flax.linen.RNNCellBase` run step by step by any engine.

    Params are the module's `variables["params"]`; the carry is the module's own. If its
    `carry_init` is random, it draws from `jax.random.key(0)`, as Flax does by default.

    Args:
      module: an unbound module that is hashable, as it is if its fields are.
      streams: the PRNG streams that a step draws from, such as `("dropout",)`. In training the
        engine hands every step a key for them; without a key the module gets none.

    Raises:
      ValueError: a module that is not a Flax cell, or one with more than one feature axis.

    >>> import jax, seqjax
    >>> model = seqjax.RNN(LinenCell(nn.MGUCell(4)), seqjax.engines.Checkpointed())
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 3)))
    >>> model.apply(params, model.initial_carry(params, (2,)), jnp.ones((50, 2, 3)))[1].shape
    (50, 2, 4)
    """

    module: Any
    streams: tuple[str, ...] = ()

    def __post_init__(self):
        check_module("LinenCell", self.module, nn.RNNCellBase)

    @property
    def stochastic(self) -> bool:
        return bool(self.streams)

    def init(self, key: Array, in_dim: int) -> Params:
        carry_key, params_key = jax.random.split(key)
        carry = self.module.initialize_carry(carry_key, (in_dim,))
        dtype = getattr(self.module, "param_dtype", jnp.float32)
        variables = self.module.init(params_key, carry, jnp.zeros(in_dim, dtype))
        return only_params(f"LinenCell({type(self.module).__name__})", variables)

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return initial_carry(
            repr(self), lambda shape: self.module.initialize_carry(jax.random.key(0), shape), batch_shape
        )

    def step(self, params: Params, carry: Carry, z: Array, key: Key = None) -> tuple[Carry, Array]:
        rngs = None if key is None else stream_keys(self.streams, key)
        return self.module.apply({"params": params}, carry, z, rngs=rngs)


@dataclasses.dataclass(frozen=True, repr=False)
class NNXCell(Cell):
    """A `flax.nnx.RNNCellBase` run step by step by any engine.

    The hyperparameter is the module's structure, its `graphdef`; the params are its `nnx.Param`s, as a
    nested dict. `from_flax_cell(module)` splits a module into the two. Without a key the module is in `eval()`
    mode; a key seeds its PRNG streams anew at every step, and the module stays in the mode in which it was split.

    Args:
      graphdef: the module's structure, for inputs of one size.
      streams: the paths of its PRNG streams.
      make: `make(in_dim, rngs=...)`, with which `init` draws new params; `None`: only the params that
        came with the module can be used.

    Raises:
      ValueError: in `init`, no `make`, or an `in_dim` that gives a different structure.

    >>> import functools, jax, seqjax
    >>> make = functools.partial(nnx.GRUCell, hidden_features=4)
    >>> cell, params = from_flax_cell(make(3, rngs=nnx.Rngs(0)), make=make)
    >>> model = seqjax.RNN(cell)
    >>> model.apply(params, model.initial_carry(params, (2,)), jnp.ones((50, 2, 3)))[1].shape
    (50, 2, 4)
    """

    graphdef: Any
    streams: tuple[tuple[str | int, ...], ...] = ()
    make: Callable[..., Any] | None = None

    def __repr__(self) -> str:
        return f"NNXCell({self.graphdef.nodes[0].type.__name__})"

    @property
    def stochastic(self) -> bool:
        return bool(self.streams)

    def init(self, key: Array, in_dim: int) -> Params:
        if self.make is None:
            raise ValueError(f"{self!r} was made from a live module: use its params, or give from_flax_cell a make=.")
        graphdef, params, streams = split(self.make(in_dim, rngs=nnx.Rngs(key)))
        if (graphdef, streams) != (self.graphdef, self.streams):
            raise ValueError(
                f"{self!r} has another structure for in_dim={in_dim}; make it with from_flax_cell for that."
            )
        return params

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        module = self._module(params, None)
        return initial_carry(repr(self), lambda shape: module.initialize_carry(shape, nnx.Rngs(0).carry), batch_shape)

    def step(self, params: Params, carry: Carry, z: Array, key: Key = None) -> tuple[Carry, Array]:
        return self._module(params, key)(carry, z)

    def _module(self, params: Params, key: Key) -> Any:
        keys = stream_keys(self.streams, jax.random.key(0) if key is None else key)
        flat: dict[tuple, Any] = {path: nnx.Param(leaf) for path, leaf in flatten_dict(params).items()}
        for path in self.streams:
            flat[(*path, "key")] = nnx.RngKey(keys[path], tag=str(path[-1]))
            flat[(*path, "count")] = nnx.RngCount(jnp.zeros((), jnp.uint32), tag=str(path[-1]))
        module = nnx.merge(self.graphdef, nnx.from_flat_state(flat))
        if key is None:
            module.eval()
        return module


def from_flax_cell(module: Any, variables: Tree | None = None, *, streams: tuple[str, ...] = (), make: Any = None):
    """Any Flax cell as a seqjax `Cell` that runs Flax's own step.

    For cells that seqjax has too, `from_flax` is the better choice: the same numbers, with a faster
    gradient.

    Args:
      module: a linen or nnx `RNNCellBase` with one feature axis.
      variables: those of a linen module, or their `"params"`; `None`: no params are returned.
      streams: the PRNG streams of a linen module that steps draw from, as for `LinenCell`.
      make: draws new params, as for `NNXCell`.

    Returns:
      The cell and its params.

    Raises:
      ValueError: a module with state other than params and PRNG streams; ConvLSTM and others with
        more than one feature axis.

    >>> cell, params = from_flax_cell(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    >>> cell, params["dense_i"]["kernel"].shape
    (NNXCell(GRUCell), (3, 12))
    """
    if isinstance(module, nnx.Module):
        check_module("from_flax_cell", module, nnx.RNNCellBase)
        graphdef, own, paths = split(module)
        return NNXCell(graphdef, paths, make), own
    cell = LinenCell(module, streams)
    return cell, None if variables is None else only_params(f"linen.{type(module).__name__}", variables)


def check_module(owner: str, module: Any, base: Any) -> None:
    """Rejects anything that is not a cell, and cells with more than one feature axis.

    Raises:
      ValueError: naming what was given.
    """
    if not isinstance(module, base):
        raise ValueError(f"{owner} takes a Flax RNNCellBase, got {type(module).__name__}.")
    if module.num_feature_axes != 1:
        raise ValueError(
            f"{owner}: {type(module).__name__} has {module.num_feature_axes} feature axes; seqjax has one, axis -1."
        )


def only_params(owner: str, variables: Tree) -> dict[str, Any]:
    """The params among a linen module's variables, which may contain nothing else.

    Raises:
      ValueError: naming other collections.
    """
    if "params" not in variables:
        return {name: variables[name] for name in variables}
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(f"{owner} has variables besides its params, {others}, which a seqjax cell has no place for.")
    return dict(variables["params"])


def split(module: Any) -> tuple[Any, dict[str, Any], tuple[tuple, ...]]:
    """An nnx module's structure, params as a nested dict, and the paths of its PRNG streams.

    Raises:
      ValueError: naming other state.
    """
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    graphdef, params, streams, rest = parts
    if jax.tree.leaves(rest):
        kinds = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(rest)})
        raise ValueError(
            f"{type(module).__name__} has state besides its params, {kinds}, which a seqjax cell has no place for."
        )
    paths = {path[:-1] for path, _ in nnx.to_flat_state(streams)}
    return graphdef, nnx.to_pure_dict(params), tuple(sorted(paths, key=str))


def stream_at(module: Any, path: tuple) -> Any:
    """The PRNG stream of an nnx module at a path."""
    for name in path:
        module = module[name] if isinstance(name, int) else getattr(module, name)
    return module


def stream_keys(streams: tuple, key: Array) -> dict[Any, Array]:
    """A separate key for each stream."""
    return dict(zip(streams, jax.random.split(key, max(len(streams), 1)), strict=False))


def initial_carry(owner: str, make: Callable[[Shape], Carry], batch_shape: Shape) -> Carry:
    """The carry of a Flax cell, whose shape may not depend on the number of input features.

    Raises:
      ValueError: it does.
    """
    one = jax.eval_shape(lambda: make((*batch_shape, 1)))
    if one != jax.eval_shape(lambda: make((*batch_shape, 2))):
        raise ValueError(f"{owner}: its carry depends on the number of input features, which a seqjax carry may not.")
    return make((*batch_shape, 1))
