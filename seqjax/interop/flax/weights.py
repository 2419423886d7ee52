# SPDX-License-Identifier: Apache-2.0
"""Where the weights of Flax's cells are, and how seqjax's params are made from them and written back.

A Flax cell has affine maps for its inputs and for its carry, either one for all gates (`dense_i`,
`dense_h`) or one per gate (`ii`, `if`, ..., `hi`, `hf`, ...). Its weights are a nested dict of
arrays, `variables["params"]` in linen and `nnx.to_pure_dict(nnx.state(cell, nnx.Param))` in nnx.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from seqjax.base import Array, Params
from seqjax.cells.gru import GRUParams
from seqjax.cells.lstm_equations import LSTMParams
from seqjax.cells.simple import SimpleParams
from seqjax.interop.layout import check_one_dtype, reorder, to_jax, unsupported

Tree = Mapping[str, Any]
"""A nested dict of arrays."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a Flax cell keeps its weights.

    Args:
      cell: `"Simple"`, `"LSTM"` or `"GRU"`.
      gates: one letter each, in Flax's order.
      ours: the same letters in seqjax's order.
      biases: the gates with a bias on their inputs, and those with one on their carry.
      fused: the names of the affine maps for all gates at once; `None`: one map per gate, i· and h·.
      escape: appended to a name that is a Python keyword.
    """

    cell: str
    gates: str
    ours: str
    biases: tuple[str, str]
    fused: tuple[str, str] | None = None
    escape: str = ""

    def maps(self, side: int) -> list[tuple[str, str]]:
        """The affine maps of inputs (0) or carry (1), and the gates of each."""
        if self.fused is not None:
            return [(self.fused[side], self.gates)]
        names = ["ih"[side] + gate for gate in self.gates]
        return [(name + self.escape * (name == "if"), name[1]) for name in names]

    def shapes(self, in_dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
        """Names such as `"ii/kernel"`, and the shapes of those weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for side, rows in enumerate((in_dim, hidden_dim)):
            for name, gates in self.maps(side):
                shapes[f"{name}/kernel"] = (rows, len(gates) * hidden_dim)
                if gates[0] in self.biases[side]:
                    shapes[f"{name}/bias"] = (len(gates) * hidden_dim,)
        return shapes

    def read(self, owner: str, tree: Tree, hidden_dim: int) -> Params:
        """seqjax's params.

        Raises:
          ValueError: weights that are missing or unknown, or whose shape or dtype does not fit the rest.
        """
        flat = flatten_dict(tree, sep="/")
        shapes = self.shapes(1, hidden_dim)
        if set(flat) != set(shapes):
            raise ValueError(f"{owner} has the params {sorted(shapes)}, got {sorted(flat)}.")
        first = flat[f"{self.maps(0)[0][0]}/kernel"]
        shapes = self.shapes(first.shape[0], hidden_dim)
        flat = {name: to_jax(owner, name, flat[name], shape) for name, shape in shapes.items()}
        check_one_dtype(owner, flat)
        zeros = jnp.zeros(hidden_dim, first.dtype)

        def side(k: int, leaf: str) -> Array:
            arrays = [flat.get(f"{name}/{leaf}", zeros) for name, _ in self.maps(k)]
            return reorder(jnp.concatenate(arrays, axis=-1), self.gates, self.ours)

        w_in, w_rec = side(0, "kernel"), side(1, "kernel")
        if self.cell == "LSTM":
            return LSTMParams(w_in, w_rec, side(1, "bias"))
        if self.cell == "Simple":
            return SimpleParams(w_in, w_rec, side(0, "bias"))
        bias = side(0, "bias")
        return GRUParams(w_in, w_rec, bias, side(1, "bias") if self.biases[1] else jnp.zeros_like(bias))

    def write(self, owner: str, params: Params) -> dict[str, Any]:
        """Flax's weights.

        A recurrent bias for which Flax has no place is added to the input's where the two are summed
        anyway, as in the gates z and r of a GRU (with one rounding, or none if it is zero).

        Raises:
          ValueError: a bias inside the reset gate's product where this cell has none.
        """
        bias = jnp.zeros(params.w_in.shape[-1:], params.w_in.dtype) if params.bias is None else params.bias
        bias_rec = getattr(params, "bias_rec", None)
        biases = (bias, jnp.zeros_like(bias) if bias_rec is None else bias_rec)
        if self.cell == "LSTM":
            biases = biases[::-1]
        if self.cell == "GRU":
            biases = self._merged(owner, *biases)
        flat = {}
        for side, weights in enumerate((params.w_in, params.w_rec)):
            for name, gates in self.maps(side):
                for leaf, array in (("kernel", weights), ("bias", biases[side])):
                    if leaf == "kernel" or gates[0] in self.biases[side]:
                        flat[f"{name}/{leaf}"] = self._gates_of(array, gates)
        return unflatten_dict(flat, sep="/")

    def _gates_of(self, array: Array, gates: str) -> Array:
        array = reorder(array, self.ours, self.gates)
        width = array.shape[-1] // len(self.gates)
        start = self.gates.index(gates)
        return array[..., start * width : (start + len(gates)) * width]

    def _merged(self, owner: str, bias: Array, bias_rec: Array) -> tuple[Array, Array]:
        hidden = bias.shape[-1] // 3
        inside = bias_rec[2 * hidden :]
        if not self.biases[1] and bool(jnp.any(inside != 0)):
            raise unsupported(
                owner,
                "a bias on the recurrent part of g, inside the reset gate's product",
                "it is not zero here, and this Flax cell has none (flax#5594): use api='linen', whose GRUCell has it",
            )
        return bias.at[: 2 * hidden].add(bias_rec[: 2 * hidden]), bias_rec.at[: 2 * hidden].set(0)


_LSTM = Layout("LSTM", "ifgo", "ifgo", ("", "ifgo"))

LAYOUTS: dict[tuple[str, str], Layout] = {
    ("linen", "SimpleCell"): Layout("Simple", "n", "n", ("n", ""), ("i", "h")),
    ("linen", "LSTMCell"): _LSTM,
    ("linen", "OptimizedLSTMCell"): _LSTM,
    ("linen", "GRUCell"): Layout("GRU", "rzn", "zrn", ("rzn", "n")),
    ("nnx", "SimpleCell"): Layout("Simple", "n", "n", ("n", ""), ("dense_i", "dense_h")),
    ("nnx", "LSTMCell"): dataclasses.replace(_LSTM, escape="_"),
    ("nnx", "OptimizedLSTMCell"): dataclasses.replace(_LSTM, fused=("dense_i", "dense_h")),
    ("nnx", "GRUCell"): Layout("GRU", "rzn", "zrn", ("rzn", ""), ("dense_i", "dense_h")),
}
"""The layouts of Flax's cells, by API and class."""
