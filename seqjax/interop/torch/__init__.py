# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules, state dicts and safetensors files as seqjax models; and back.

| PyTorch                                       | seqjax                                               |
|-----------------------------------------------|------------------------------------------------------|
| `nn.RNN`, `nn.LSTM`, `nn.GRU`                 | `RNN(Simple)`, `RNN(LSTM)`, `RNN(GRU(reset="after"))` |
| `num_layers`, `dropout`                       | `Serial` of them, `Dropout` in between               |
| `bidirectional`                               | `Bidirectional`, at each layer                       |
| `proj_size`                                   | `LSTM(proj_dim=...)`                                 |
| `bias_ih` + `bias_hh` of RNN and LSTM         | one `bias`; back: `bias_ih`, and zeros in `bias_hh`  |
| `bias_ih`, `bias_hh` of GRU                   | `bias`, `bias_rec`                                   |
| `Linear`, `Conv1d`, `LayerNorm`, `Embedding`  | `Dense`, `Conv1D`, `LayerNorm`, `Embed`              |
| `Dropout`, `Tanh`, `ReLU`, `Sigmoid`, ...     | `Dropout`, `Activation`                              |
| `Sequential` of those                         | `Serial`                                             |

The result is time-major, `[T, B, D]`, whatever `batch_first` says; that is PyTorch's own default, and the `[B, D, T]`
of its convolutions becomes `[T, B, D]` too. Anything without a counterpart is rejected by name.
"""

from seqjax.interop.torch.modules import from_torch, to_torch
from seqjax.interop.torch.safetensors import load_safetensors, read_safetensors
from seqjax.interop.torch.state import from_state_dict
from seqjax.interop.torch.writing import to_state_dict

__all__ = ["from_state_dict", "from_torch", "load_safetensors", "read_safetensors", "to_state_dict", "to_torch"]
