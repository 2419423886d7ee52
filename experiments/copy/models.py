# SPDX-License-Identifier: Apache-2.0
"""The models of copy memory: one recurrent layer and a hidden layer at every step."""

import math

import seqjax
from experiments.copy.task import model
from experiments.study.generated import Entry
from seqjax.initializers import Chrono, Ring


def ring(length: int) -> Ring:
    """Eigenvalues that forget between 2% and half of their state over the pause."""
    return Ring(math.exp(-0.7 / (length + 20)), math.exp(-0.02 / (length + 20)))


MODELS = {
    "gru": Entry(lambda units, length: model(seqjax.GRU(units)), 3e-3, published="0.0197"),
    "gru-chrono": Entry(
        lambda units, length: model(seqjax.GRU(units, bias_init=Chrono(length + 20))),
        3e-3,
        note="b_z = log U(1, T + 19)",
    ),
    "lstm": Entry(lambda units, length: model(seqjax.LSTM(units)), 3e-3, published="0.0204"),
    "lstm-chrono": Entry(
        lambda units, length: model(seqjax.LSTM(units, bias_init=Chrono(length + 20))),
        3e-3,
        note="b_f = -b_i = log U(1, T + 19)",
    ),
    "simple": Entry(lambda units, length: model(seqjax.Simple(units)), 1e-3),
    "mingru": Entry(lambda units, length: model(seqjax.MinGRU(units)), 3e-3),
    "lru": Entry(lambda units, length: model(seqjax.LRU(units, state_dim=2 * units)), 3e-3),
    "lru-ring": Entry(
        lambda units, length: model(seqjax.LRU(units, state_dim=2 * units, eigenvalue_init=ring(length))),
        3e-3,
        note="|λ|^(T + 20) from 1/2 to 0.98",
    ),
}
"""Published figures: S. Bai, J. Z. Kolter and V. Koltun (2018), table 1."""
