# SPDX-License-Identifier: Apache-2.0
"""Every cell and every engine: one row each, all laws follow."""

import jax
import jax.numpy as jnp

from seqjax import GRU, LSTM, DTypes, PeepholeLSTM, Simple
from seqjax.base import Cell, Engine
from seqjax.cells import LambdaCell, RecurrentDropout, Zoneout
from seqjax.engines import Scan


def cells(dtype: str) -> dict[str, Cell]:
    """Every cell, in every form that has its own equations."""
    d = DTypes(dtype)
    return {
        "simple": Simple(3, dtypes=d),
        "simple-relu-no-bias": Simple(3, activation="relu", use_bias=False, dtypes=d),
        "simple-gelu": Simple(3, activation="gelu", dtypes=d),  # no slope from the output: autodiff
        "simple-layer": Simple(3, normalize="layer", dtypes=d),
        "simple-batch": Simple(3, normalize="batch", dtypes=d),
        "lstm": LSTM(3, dtypes=d),
        "lstm-layer-proj-no-bias": LSTM(3, normalize="layer", proj_dim=2, use_bias=False, dtypes=d),
        "peephole": PeepholeLSTM(3, dtypes=d),
        "peephole-layer-proj": PeepholeLSTM(3, normalize="layer", proj_dim=2, dtypes=d),
        "gru-before": GRU(3, dtypes=d),
        "gru-after": GRU(3, reset="after", dtypes=d),
        "gru-before-layer": GRU(3, normalize="layer", use_bias=False, dtypes=d),
        "gru-after-layer": GRU(3, reset="after", normalize="layer", dtypes=d),
        "zoneout-lstm": Zoneout(LSTM(3, dtypes=d), 0.2, c_rate=0.4),
        "recurrent-dropout-gru": RecurrentDropout(GRU(3, dtypes=d), 0.3),
        "lambda": LambdaCell(leaky_init(dtype), leaky_step, leaky_carry),
    }


ENGINES: dict[str, Engine] = {
    "scan": Scan(),
    "scan-unrolled": Scan(unroll=3),
    "scan-generic": Scan(adjoint=False),
}


def leaky_init(dtype: str):
    """A user's own three-line cell: a leaky integrator."""

    def init(key, in_dim):
        return {"rate": jax.random.uniform(key, (in_dim,), dtype, 0.1, 0.9)}

    return init


def leaky_step(params, carry, x):
    carry = carry + params["rate"] * (x - carry)
    return carry, carry


def leaky_carry(params, batch_shape):
    return jnp.zeros((*batch_shape, params["rate"].shape[0]), params["rate"].dtype)
