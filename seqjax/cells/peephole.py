# SPDX-License-Identifier: Apache-2.0
"""The LSTM whose gates see the memory cell."""

import dataclasses
from typing import ClassVar

from seqjax.cells.lstm import LSTMFamily


@dataclasses.dataclass(frozen=True, repr=False)
class PeepholeLSTM(LSTMFamily):
    """LSTM with peephole connections.

    i, f = σ(W_x· x_t + W_h· h_{t-1} + p· ⊗ c_{t-1} + b·),  g = φ(W_xg x_t + W_hg h_{t-1} + b_g),
    c_t = f ⊗ c_{t-1} + i ⊗ g,  o = σ(W_xo x_t + W_ho h_{t-1} + p_o ⊗ c_t + b_o),
    y_t = h_t = o ⊗ φ(c_t)

    `peephole [3, H]`, in the order i, f, o, starts at zero, so the cell starts as an LSTM.
    Its other params are those of `LSTM`.

    Args:
      hidden_dim: H.
      activation, recurrent_activation, use_bias, normalize, epsilon, proj_dim, w_in_init, w_rec_init, bias_init,
        dtypes: as for `LSTM`; `proj_dim` gives the LSTMP of Sak et al.

    Raises:
      ValueError: an unknown option, or a size that is not a positive integer.

    >>> import jax
    >>> PeepholeLSTM(4).init(jax.random.key(0), 3).peephole.shape
    (3, 4)

    Source: Gers and Schmidhuber 2000; Sak, Senior and Beaufays 2014, equations 1 to 6.
    """

    peepholes: ClassVar[bool] = True
