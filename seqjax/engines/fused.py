# SPDX-License-Identifier: Apache-2.0
"""The engine that runs a whole recurrence in one accelerator kernel."""

import dataclasses
import math

import jax

from seqjax import require
from seqjax.base import Array, Carry, Cell, Params
from seqjax.cells import gates
from seqjax.cells.heads import MultiHead
from seqjax.engines.fusing.fusible import kernel, no_room, on_hopper, unsupported
from seqjax.engines.fusing.rules import fused, fused_by_loop
from seqjax.engines.steps.sequential import SequentialEngine
from seqjax.engines.steps.stepping import Steps, visible
from seqjax.kernels.hopper.tiles import ROWS, UNITS, Tiles
from seqjax.kernels.triton import recurrence
from seqjax.kernels.triton.blocks import Blocks
from seqjax.kernels.triton.launch import missing
from seqjax.plan import Plan
from seqjax.sequences import hide
from seqjax.spread import is_spread

OTHERS = "run it with Scan or Checkpointed, or let Auto pick an engine"


@dataclasses.dataclass(frozen=True, repr=False)
class Fused(SequentialEngine):
    """Runs all steps of a `Simple`, `LSTM` or `GRU` in one launch of a GPU kernel, and likewise the reverse pass.

    On a Hopper GPU (H100, H200) a cluster of thread blocks owns 16 sequences, and each block keeps the weights
    of 64 units on chip; at every step the blocks send each other what they have computed. This works up to
    H = 256 for `LSTM` and `GRU`, 320 for a `GRU` that resets after the product, 512 for `Simple`. In float32
    products are of float16 numbers, scaled so that they are as exact as TF32, JAX's default there (2^-11); all
    else, activations too, is float32.

    On other NVIDIA GPUs, or in float32 where `jax.default_matmul_precision` asks for more than TF32 or an
    activation is not bounded (`"relu"`, `"identity"`), each program owns some sequences of the batch and runs
    through time on its own. Weights that fit on one processor (192 KiB of a Hopper: in bfloat16 H <= 128 for
    `LSTM` and `GRU`, 256 for `Simple`) are read once; larger ones, up to H = 256 in bfloat16 and 128 in float32,
    come from the cache at every step. Where a processor has less shared memory, all of this shrinks with it.

    Larger layers fit as heads, `cells.MultiHead(LSTM(128), 4)`, where each head is run by its own programs.
    Sequences are padded to a multiple of 16, so `jax.vmap` over single ones takes 16 times the room and
    time of a batch. XLA cannot split the kernel over devices: run it inside `jax.shard_map`.

    Inputs are projected before the kernel and weight gradients contracted after it, each by one matmul over all
    steps. Gradients of gradients work, through the loop. Forward mode is refused, even through a gradient: use
    `Scan(adjoint=False)`. Supported are cells with the activations `"tanh"`, `"sigmoid"`, `"relu"` and
    `"identity"`, without normalization or projection, whose carry is as wide as the computation, or float32.

    Args:
      interpret: run the kernels in Pallas' interpreter, on any device and without the limit on H; slow,
        for tests. Inside `jax.shard_map` it needs `check_vma=False`.

    Raises:
      ValueError: an `interpret` that is neither True nor False; in `run`, a cell without a kernel or too
        large for it, a machine without a GPU, or inputs that a mesh with explicit axes splits.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> cell = seqjax.Simple(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = Fused(interpret=True).run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((5, 2, 3)))
    >>> ys.shape
    (5, 2, 4)

    Source: Diamos et al. 2016 (persistent RNNs); Pöppel et al. 2024 (FlashRNN).
    """

    interpret: bool = False

    def __post_init__(self):
        require.boolean("Fused", interpret=self.interpret)

    def run_steps(
        self, cell: Cell, params: Params, initial: Carry | None, carry: Carry, steps: Steps
    ) -> tuple[Carry, Array]:
        if is_spread(steps.x):
            raise ValueError(
                f"{self!r} runs a kernel on one device, and got inputs {jax.typeof(steps.x)} that a mesh with explicit "
                f"axes splits; run the model on each device's part, inside jax.shard_map, or {OTHERS}."
            )
        self._check_room(cell, params)
        if isinstance(cell, MultiHead):
            inner = cell.cell
            return cell.run_heads(lambda p, i, c: self.run_steps(inner, p, i, c, steps), params, initial, carry)
        zs = gates.project_input(cell, params, visible(steps))
        if not zs.size:
            return fused_by_loop(cell, params, initial, carry, steps._replace(x=zs))
        carry, ys = fused(cell, self.interpret, params, initial, carry, steps._replace(x=zs))
        return carry, hide(ys, steps.mask)

    def check(self, cell: Cell) -> None:
        why = unsupported(cell)
        if why is not None:
            raise ValueError(f"{self!r} has no kernel for {cell!r}: {why}; {OTHERS}.")
        what = None if self.interpret else missing()
        if what is not None:
            raise ValueError(
                f"{self!r} needs {what}; {OTHERS}, or try the kernels in the interpreter with Fused(interpret=True)."
            )

    def runs(self, cell: Cell, params: Params) -> bool:
        """Whether there is a kernel for `cell` with `params` on the default device.

        >>> import seqjax
        >>> cells = seqjax.GRU(4), seqjax.PeepholeLSTM(4)
        >>> [Fused(interpret=True).runs(cell, cell.init(jax.random.key(0), 3)) for cell in cells]
        [True, False]
        """
        try:
            self.check(cell)
            self._check_room(cell, params)
        except ValueError:
            return False
        return True

    def _check_room(self, cell: Cell, params: Params) -> None:
        why = None if self.interpret else no_room(cell, params)
        if why is not None:
            raise ValueError(f"{self!r} cannot run {cell!r}: {why}; {OTHERS}.")

    def plan(self, cell: Cell, params: Params, carry: Carry, xs: jax.ShapeDtypeStruct) -> Plan:
        self.check(cell)
        self._check_room(cell, params)
        if isinstance(cell, MultiHead):
            head = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
            start = jax.eval_shape(lambda params: cell.cell.initial_carry(params, xs.shape[1:-1]), head)
            plan = self.plan(cell.cell, head, start, xs)
            return plan._replace(layer=repr(cell), memory=cell.heads * plan.memory)
        zs = jax.eval_shape(lambda params, xs: gates.project_input(cell, params, xs), params, xs)
        kind = kernel(cell).kind
        T, *batch, width = zs.shape
        B, H = math.prod(batch), width // kind.gates
        if not self.interpret and on_hopper(cell, zs.dtype):
            tiles = Tiles(B, H)
            rows, units = tiles.clusters * ROWS, tiles.parts * UNITS
            how = f"{tiles.parts} thread blocks together hold the weights for {ROWS} sequences"
        else:
            blocks = Blocks(T, B, H)
            rows, units = blocks.batch, blocks.hidden
            stay = recurrence.resident(kind.gates, H, zs.dtype)
            how = "weights stay on chip" if stay else "weights are read from the cache at every step"
        arrays = 2 * kind.gates + kind.states + kind.kept  # z padded, its cotangents, states, kept
        memory = T * rows * units * arrays * zs.dtype.itemsize
        return Plan(repr(cell), repr(self), f"one kernel for all steps, {how}", memory, T)
