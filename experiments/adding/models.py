# SPDX-License-Identifier: Apache-2.0
"""The models of the adding problem: cells with the library's initialization, and with a memory of T steps."""

import math

import seqjax
from experiments.adding.task import model
from experiments.study.generated import Entry
from seqjax.initializers import Chrono, Uniform, WriteGate


def closed(length: int) -> WriteGate:
    """A minGRU's z, which writes, at σ(-log(T / 4)), about 4/T: the state outlasts the sequence."""
    return WriteGate(-math.log(max(length, 8) / 4))


MODELS = {
    "gru": Entry(lambda units, length: model(seqjax.GRU(units)), 5e-3, published="5.3e-5"),
    "gru-chrono": Entry(
        lambda units, length: model(seqjax.GRU(units, bias_init=Chrono(length))), 5e-3, note="b_z = log U(1, T - 1)"
    ),
    "lstm": Entry(lambda units, length: model(seqjax.LSTM(units)), 5e-3, published="0.164"),
    "lstm-chrono": Entry(
        lambda units, length: model(seqjax.LSTM(units, bias_init=Chrono(length))),
        5e-3,
        note="b_f = -b_i = log U(1, T - 1)",
    ),
    "mingru": Entry(lambda units, length: model(seqjax.MinGRU(units)), 1e-2),
    "mingru-closed": Entry(
        lambda units, length: model(seqjax.MinGRU(units, bias_init=closed(length))),
        1e-2,
        note="b_z = -log(T / 4)",
    ),
    "minlstm-chrono": Entry(
        lambda units, length: model(seqjax.MinLSTM(units, bias_init=Chrono(length))),
        1e-2,
        note="b_f = -b_i = log U(1, T - 1)",
    ),
    "rglru-slow": Entry(
        lambda units, length: model(
            seqjax.RGLRU(units, min_decay=math.exp(-6 / length), max_decay=math.exp(-0.06 / length))
        ),
        1e-2,
        note="decays of T/6 to 17 T steps",
    ),
    "indrnn-slow": Entry(
        lambda units, length: model(*[seqjax.IndRNN(units, w_rec_init=Uniform(math.exp(-6 / length), 1.0))] * 2),
        2e-3,
        note="two layers, w_rec = U(1 - 6/T, 1)",
    ),
    "simple": Entry(lambda units, length: model(seqjax.Simple(units)), 1e-3, published="0.177"),
}
"""Published figures: S. Bai, J. Z. Kolter and V. Koltun, An Empirical Evaluation of Generic Convolutional
and Recurrent Networks for Sequence Modeling (2018), table 1, with about 70,000 parameters each."""
