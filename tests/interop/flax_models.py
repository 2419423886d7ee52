# SPDX-License-Identifier: Apache-2.0
"""Flax cells with random weights, as functions of their weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

D, H, T, B = 3, 4, 6, 2

CELLS = [(api, name) for api in ("linen", "nnx") for name in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell")]


def random_like(shapes, seed=0):
    """Weights of either sign everywhere, so that no zero hides an error."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray((random.normal(size=a.shape) * 0.5).astype(a.dtype)), shapes)


def drawn(cell, in_dim=D):
    """Random params of a seqjax cell, without compiling its `init`."""
    return random_like(jax.eval_shape(lambda key: cell.init(key, in_dim), jax.random.key(0)))


def inputs(*shape, dtype="float64", seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


@functools.cache
def linen_cell(name, param_dtype="float64", **options):
    """A linen cell and random params for it."""
    cell = getattr(nn, name)(H, param_dtype=jnp.dtype(param_dtype), **options)

    def init(key, x):
        return cell.init(key, cell.initialize_carry(key, x.shape), x)

    return cell, random_like(jax.eval_shape(init, jax.random.key(0), jnp.zeros(D, param_dtype)))["params"]


def nnx_cell(name, param_dtype="float64", **options):
    """An nnx cell with random params, which are returned beside it."""
    cell, tree = _abstract_nnx_cell(name, param_dtype, **options)
    return with_params(cell, tree), tree


@functools.cache
def _abstract_nnx_cell(name, param_dtype, **options):
    if name == "SimpleCell":
        options = {"dtype": jnp.dtype(param_dtype), **options}
    make = getattr(nnx, name)
    cell = nnx.eval_shape(lambda: make(D, H, param_dtype=jnp.dtype(param_dtype), rngs=nnx.Rngs(0), **options))
    return cell, random_like(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))


def with_params(module, tree):
    """A copy of an nnx module with other params, which may be traced."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, tree)
    return nnx.merge(graphdef, params, rest)


def flax_cell(api, name, param_dtype="float64", **options):
    return (linen_cell if api == "linen" else nnx_cell)(name, param_dtype, **options)


def run_flax(api, rnn, cell, tree, xs, **call):
    """`rnn(cell)` of either library on `xs`, as a function of the cell's weights."""

    def run(tree, xs):
        if api == "linen":
            return rnn(cell).apply({"params": {"cell": tree}}, xs, **call)
        return rnn(with_params(cell, tree))(xs, **call)

    return jax.jit(run)(tree, xs)
