# SPDX-License-Identifier: Apache-2.0
"""Every cell and every engine: one row each, all laws follow."""

import jax
import jax.numpy as jnp

from seqjax import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    DiagonalGRU,
    DiagonalLSTM,
    DTypes,
    IndRNN,
    MinGRU,
    MinLSTM,
    PeepholeLSTM,
    Simple,
)
from seqjax.base import Cell, Engine
from seqjax.cells import LambdaCell, MultiHead, RecurrentDropout, Zoneout
from seqjax.engines import Associative, Checkpointed, Fused, Newton, Relaxed, Scan, Sharded, Truncated


def cells(dtype: str) -> dict[str, Cell]:
    """Every cell, in every form that has its own equations."""
    d = DTypes(dtype)
    return {
        "simple": Simple(3, dtypes=d),
        "simple-gelu-no-bias": Simple(3, activation="gelu", use_bias=False, dtypes=d),  # no slope: autodiff
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
        "multi-head-gru": MultiHead(GRU(2, dtypes=d), 2),
        "zoneout-lstm": Zoneout(LSTM(3, dtypes=d), 0.2, c_rate=0.4),
        "recurrent-dropout-gru": RecurrentDropout(GRU(3, dtypes=d), 0.3),
        "lambda": LambdaCell(leaky_init(dtype), leaky_step, leaky_carry),
        "indrnn": IndRNN(3, dtypes=d),
        "diagonal-gru": DiagonalGRU(3, dtypes=d),
        "diagonal-lstm": DiagonalLSTM(3, dtypes=d),
        "min-gru": MinGRU(3, dtypes=d),
        "min-gru-log": MinGRU(3, mode="log", dtypes=d),
        "min-lstm": MinLSTM(3, dtypes=d),
        "min-lstm-log": MinLSTM(3, mode="log", dtypes=d),
        "lru": LRU(3, dtypes=d),
        "rg-lru": RGLRU(3, dtypes=d),
    }


# Sharded has laws of its own, on eight devices: tests/engines/test_sharded.py
ENGINES: dict[str, Engine] = {
    "scan": Scan(unroll=2),
    "scan-generic": Scan(adjoint=False),
    "checkpointed": Checkpointed(segment=2, levels=2),
    "truncated": Truncated(16),  # no shorter than any sequence here; what it cuts has its own test
    "associative": Associative(),
    "associative-tree": Associative("tree"),
    "associative-kernel": Associative("interpreter"),
    "relaxed": Relaxed(chunk=3),
    "newton": Newton(),  # its other Jacobian, and the coupling of Relaxed, have their own tests
    "fused": Fused(interpret=True),
    "sharded": Sharded(jax.make_mesh((1,), ("time",)), "time"),  # on one device; on eight it has its own tests
}


KERNELS = "simple", "lstm", "gru-before", "gru-after", "multi-head-gru"


def refusal(name: str, cell: Cell, engine: Engine) -> str | None:
    """What an engine says to a cell that it cannot run; `None` where it can."""
    if isinstance(engine, Associative) and "affine" not in cell.capabilities:
        return "needs a cell that offers 'affine'.*Scan, Checkpointed or Truncated"
    if isinstance(engine, Fused) and name not in KERNELS:
        return "no kernel for.*Scan or Checkpointed"
    if isinstance(engine, Newton) and isinstance(cell, LRU):
        return "complex; use Scan"
    return None


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
