# SPDX-License-Identifier: Apache-2.0
"""A small run, and what is said of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import seqjax
from seqjax.training import Batch, clipped, fit, mean_squared_error

MODEL = seqjax.Serial(seqjax.Dropout(0.2), seqjax.Dense(1))
OPTIMIZER = clipped(optax.adam(0.05), norm=0.5)


def make_batch(seed, t):
    rng = np.random.default_rng((seed, t))
    xs = rng.normal(size=(4, 3, 2)).astype(np.float32)
    return Batch(xs, xs.sum(-1, keepdims=True))


def train(run_dir=None, steps=12, batches=make_batch, **options):
    options = {"loss": mean_squared_error, "optimizer": OPTIMIZER, "checkpoint_every": 4, **options}
    return fit(MODEL, batches, steps=steps, run_dir=run_dir, **options)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def never(seed, t):
    assert t == 0, "training began"
    return make_batch(seed, t)
