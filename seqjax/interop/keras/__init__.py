# SPDX-License-Identifier: Apache-2.0
"""Keras 3 models, live or from a `.keras` file, as seqjax models; and back.

| Keras                                     | seqjax                                                      |
|-------------------------------------------|-------------------------------------------------------------|
| `SimpleRNN`, `LSTM`, `GRU`, `RNN(cell)`   | `RNN(Simple)`, `RNN(LSTM)`, `RNN(GRU)`, one `RNN` for each cell |
| `reset_after=True` / `False`              | `reset="after"` / `"before"`                                |
| `return_sequences=False`                  | `Last` after the `RNN`, in each direction                   |
| `dropout` of a recurrent layer            | `Dropout(rate, variational=True)` before the `RNN`          |
| `Bidirectional`                           | `Bidirectional`; `"ave"` is `"mean"`                        |
| `Conv1D`, `Dense`, `TimeDistributed(...)` | `Conv1D`, `Dense`, the layer inside                         |
| `LayerNormalization`, `BatchNormalization`| `LayerNorm`, `BatchNorm`                                    |
| `Embedding`, `Activation`                 | `Embed`, `Activation`                                       |
| `Dropout`, `SpatialDropout1D`             | `Dropout`, `Dropout(variational=True)`                      |
| `Sequential`                              | `Serial`                                                    |

Keras is batch-major, and the result is time-major: swap the first two axes, or wrap the model in `BatchMajor`.
Where a step is masked, the output is zeros, as in Keras with `zero_output_for_mask=True`, which `to_keras` writes. By
default Keras repeats the last output there; that is read as zeros too, which differs in the masked steps alone, until
a layer that takes no mask, such as a convolution, looks at them. Initializers, seeds and names are not read, as the
params already exist. Anything without a counterpart is rejected by name.
"""

from seqjax.interop.keras.file import load_keras
from seqjax.interop.keras.reading import from_keras
from seqjax.interop.keras.writing import to_keras

__all__ = ["from_keras", "load_keras", "to_keras"]
