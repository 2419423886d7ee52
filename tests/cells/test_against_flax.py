# SPDX-License-Identifier: Apache-2.0
"""LSTM, GRU and simple cells against flax's, with the same weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from tests.common import F64

H, D = 5, 3


def flax_weights(module, carry, x):
    variables = module.init(jax.random.key(0), carry, x)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape)), variables)["params"]


def test_lstm_equals_flax():
    module = nn.OptimizedLSTMCell(H, param_dtype=jnp.float64)
    random = np.random.default_rng(1)
    x, h, c = (jnp.asarray(random.normal(size=(4, d))) for d in (D, H, H))
    theirs = flax_weights(module, (c, h), x)
    params = seqjax.cells.LSTMParams(
        w_in=jnp.concatenate([theirs[f"i{k}"]["kernel"] for k in "ifgo"], 1),
        w_rec=jnp.concatenate([theirs[f"h{k}"]["kernel"] for k in "ifgo"], 1),
        bias=jnp.concatenate([theirs[f"h{k}"]["bias"] for k in "ifgo"]),
    )
    (c_new, h_new), _ = module.apply({"params": theirs}, (c, h), x)
    cell = seqjax.LSTM(H, dtypes=F64)
    carry, _ = cell.step(params, seqjax.cells.LSTMCarry(h, c), cell.project(params, x))
    np.testing.assert_allclose(carry.h, h_new, atol=1e-12)
    np.testing.assert_allclose(carry.c, c_new, atol=1e-12)


def test_gru_with_reset_after_equals_flax():
    module = nn.GRUCell(H, param_dtype=jnp.float64)
    random = np.random.default_rng(1)
    x, h = (jnp.asarray(random.normal(size=(4, d))) for d in (D, H))
    theirs = flax_weights(module, h, x)
    zeros = jnp.zeros(H)
    params = seqjax.cells.GRUParams(
        w_in=jnp.concatenate([theirs[f"i{k}"]["kernel"] for k in "zrn"], 1),
        w_rec=jnp.concatenate([theirs[f"h{k}"]["kernel"] for k in "zrn"], 1),
        bias=jnp.concatenate([theirs[f"i{k}"]["bias"] for k in "zrn"]),
        bias_rec=jnp.concatenate([zeros, zeros, theirs["hn"]["bias"]]),
    )
    h_new, _ = module.apply({"params": theirs}, h, x)
    cell = seqjax.GRU(H, reset="after", dtypes=F64)
    _, y = cell.step(params, seqjax.cells.GRUCarry(h), cell.project(params, x))
    np.testing.assert_allclose(y, h_new, atol=1e-12)


def test_simple_equals_flax():
    module = nn.SimpleCell(H, param_dtype=jnp.float64)
    random = np.random.default_rng(1)
    x, h = (jnp.asarray(random.normal(size=(4, d))) for d in (D, H))
    theirs = flax_weights(module, h, x)
    params = seqjax.cells.SimpleParams(theirs["i"]["kernel"], theirs["h"]["kernel"], theirs["i"]["bias"])
    h_new, _ = module.apply({"params": theirs}, h, x)
    cell = seqjax.Simple(H, dtypes=F64)
    np.testing.assert_allclose(
        cell.step(params, seqjax.cells.SimpleCarry(h), cell.project(params, x))[1], h_new, atol=1e-12
    )
