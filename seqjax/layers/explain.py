# SPDX-License-Identifier: Apache-2.0
"""Which engine each layer of a model will use, and why."""

import jax

from seqjax.base import Array, Layer
from seqjax.layers.inner import check_layers
from seqjax.plan import Plan, as_text
from seqjax.sequences import check_sequence


def explain(model: Layer, xs: Array | jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
    """Prints for each layer the chosen engine and why it was chosen, with the memory and sequential depth.

    Nothing is computed. Memory is that of a gradient, besides inputs, outputs and params, estimated from shapes.

    Args:
      model: any layer.
      xs: `[T, ..., D]`, or its shape and dtype.

    Returns:
      The rows of the table.

    Raises:
      ValueError: `model` is not a layer or `xs` is not an array; inputs or a cell that an engine or the model
        cannot take.

    >>> import jax.numpy as jnp, seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.GRU(64)), seqjax.Dense(1))
    >>> rows = explain(model, jax.ShapeDtypeStruct((100_000, 8, 64), jnp.float32))  # doctest: +ELLIPSIS
    layer ...
    GRU(64) ...Checkpointed() ...
    Dense(1) ...
    >>> rows[0].depth
    100000
    """
    check_layers("explain", model)
    check_sequence(xs)
    xs = jax.ShapeDtypeStruct(xs.shape, xs.dtype)
    params = jax.eval_shape(lambda key: model.init(key, xs), jax.random.key(0))
    plans = model.plan(params, xs)
    print(as_text(plans))
    return plans
