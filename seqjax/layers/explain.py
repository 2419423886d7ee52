# SPDX-License-Identifier: Apache-2.0
"""Which engine each layer of a model will use, and why."""

import jax

from seqjax.base import Array, Layer
from seqjax.layers.compose import check_layers
from seqjax.plan import Plan, as_text
from seqjax.sequences import check_sequence


def explain(model: Layer, xs: Array | jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
    """Prints, for each layer, the engine that was chosen and why, memory and sequential depth.

    Nothing is computed: memory is estimated from shapes, for a gradient, beside inputs, outputs and params.

    Args:
      model: any layer.
      xs: `[T, ..., D]`, or its shape and dtype.

    Returns:
      The table's rows.

    Raises:
      ValueError: what is no layer or no array; inputs or a cell that the model or its engine cannot take.

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
