# SPDX-License-Identifier: Apache-2.0
"""How the arrays of a recurrence are cut into tiles `[64, 16]`, units by sequences, for the Hopper kernels.

In memory two bfloat16 share a word, so that tiles of them are `[64, 8]` uint32. A thread loads two words, of which it
puts one on the left and one on the right of a product: in other columns than those next to each other in memory.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seqjax.base import Array
from seqjax.kernels.equations import Kind, States
from seqjax.kernels.operands import pad

UNITS, ROWS = 64, 16
"""Rows and columns of a tile."""
SHARED = 224 * 2**10
"""Bytes of shared memory that a block may take; a Hopper has 227 KiB."""
BLOCKS = 8
"""The most blocks in a cluster."""
FACTORS = {"bfloat16": jnp.bfloat16, "float32": jnp.float16}
"""What the matrix units multiply, for each dtype: float16 has as many digits as TF32, in half the room."""
MOVED = np.arange(ROWS).reshape(4, 2, 2).swapaxes(0, 1).ravel()
"""The place in memory, in a tile of bfloat16, of what is in each column of a product."""


class Tiles(NamedTuple):
    """`B` sequences of `H` units in tiles, for a recurrence in `dtype`.

    Sequences are in order in tiles of `dtype`, which are the large ones; so in bfloat16 columns have them as `MOVED`
    says, and tiles of another dtype are rearranged to match.
    """

    B: int
    H: int
    dtype: Any = "float32"

    @property
    def parts(self) -> int:
        """The number of parts into which H is cut, which is that of blocks in a cluster."""
        return -(-self.H // UNITS)

    @property
    def clusters(self) -> int:
        """The number of clusters over which B is divided."""
        return -(-self.B // ROWS)

    def shape(self, count: int, dtype: Any, *lead: int) -> jax.ShapeDtypeStruct:
        """What `count` arrays `[*lead, B, H]` are in tiles."""
        words = dtype == jnp.bfloat16
        shape = (*lead, self.clusters, count, self.parts, UNITS, ROWS // 2 if words else ROWS)
        return jax.ShapeDtypeStruct(shape, jnp.uint32 if words else dtype)

    def tile(self, array: Array) -> Array:
        """`[..., B, N, H]` as `[..., clusters, N, parts, UNITS, ROWS]`."""
        *lead, _, N, _ = array.shape
        array = pad(pad(array, -1, self.parts * UNITS), -3, self.clusters * ROWS)
        return self._stored(jnp.moveaxis(array.reshape(*lead, self.clusters, ROWS, N, self.parts, UNITS), -4, -1))

    def untile(self, tiles: Array) -> Array:
        """The inverse of `tile`."""
        *lead, _, N, _, _, _ = tiles.shape
        array = jnp.moveaxis(self._read(tiles), -1, -4).reshape(*lead, self.clusters * ROWS, N, self.parts * UNITS)
        return array[..., : self.B, :, : self.H]

    def states(self, states: States, dtype: Any) -> Array:
        """States, `[B, H]` each, in tiles."""
        return self.tile(jnp.stack([state.astype(dtype) for state in states], 1))

    def untile_states(self, tiles: Array) -> States:
        arrays = self.untile(tiles)
        return tuple(arrays[:, i] for i in range(arrays.shape[1]))

    def flags(self, flags: Array | None) -> Array | None:
        """Flags `[T, B]` as `[T, clusters, UNITS, ROWS]`, the same for each unit of a tile."""
        if flags is None:
            return None
        rows = pad(flags.astype(jnp.int32), 1, self.clusters * ROWS).reshape(-1, self.clusters, 1, ROWS)
        rows = self._stored(rows)
        return jnp.broadcast_to(rows, (rows.shape[0], self.clusters, UNITS, ROWS))

    def _stored(self, tiles: Array) -> Array:
        """Tiles with sequences in order, as they are in memory."""
        words = tiles.dtype == jnp.bfloat16
        if words != (jnp.dtype(self.dtype) == jnp.bfloat16):
            tiles = tiles[..., np.argsort(MOVED) if words else MOVED]
        if not words:
            return tiles
        return lax.bitcast_convert_type(tiles.reshape(*tiles.shape[:-1], ROWS // 2, 2), jnp.uint32)

    def _read(self, tiles: Array) -> Array:
        """The inverse of `_stored`."""
        words = tiles.dtype == jnp.uint32
        if words:
            tiles = lax.bitcast_convert_type(tiles, jnp.bfloat16).reshape(*tiles.shape[:-1], ROWS)
        if words == (jnp.dtype(self.dtype) == jnp.bfloat16):
            return tiles
        return tiles[..., MOVED if words else np.argsort(MOVED)]

    def weights(self, w_rec: Array, gates: int, *, transposed: bool) -> tuple[Array, Array]:
        """What each block multiplies by: `[parts, parts * G, 64, 64]`, and the power of two that it was divided by.

        At `turn * G + k` is what block `part` has for gate k and the block `turn` places further on: in the forward
        pass the columns of its own units, in reverse the rows of W^T for its own gates.
        """
        full = self.parts * UNITS
        w_rec = w_rec.astype(jnp.float32)
        factor, scale = FACTORS[jnp.dtype(self.dtype).name], jnp.float32(1)
        if factor == jnp.float16:  # which has few exponents: the largest weight becomes 2^14 to 2^15
            scale = jnp.ldexp(scale, jnp.frexp(jnp.max(jnp.abs(w_rec)))[1] - 15)
        apart = pad(pad((w_rec / scale).reshape(self.H, gates, self.H), 0, full), 2, full)
        apart = apart.reshape(self.parts, UNITS, gates, self.parts, UNITS)  # from part, unit; gate; to part, unit
        apart = apart.transpose((3, 0, 2, 1, 4) if transposed else (3, 0, 2, 4, 1))
        part = jnp.arange(self.parts)[:, None]
        apart = apart[part, (part + part.T) % self.parts].astype(factor)
        return apart.reshape(self.parts, self.parts * gates, UNITS, UNITS), scale


class Buffers(NamedTuple):
    """The shapes of what a block has in shared memory. Steps use the two halves of what changes alternately."""

    weights: tuple[int, ...]
    """`[parts * G, 64, 64]`, those that `Tiles.weights` gives the block."""
    factors: tuple[int, ...]
    """`[2, parts, products, 64, 16]`, what they are multiplied by; in reverse `[2, 1, G, 64, 16]`."""
    sums: tuple[int, ...] | None
    """`[2 * products, parts - 1, 64, 16]`, in reverse: what goes to other blocks, and as much that comes from them."""


def buffers(kind: Kind, parts: int, *, transposed: bool) -> Buffers:
    """Those of one of `parts` blocks, in the forward pass or in reverse."""
    weights = (parts * kind.gates, UNITS, UNITS)
    if not transposed:
        return Buffers(weights, (2, parts, kind.products, UNITS, ROWS), None)
    sums = (2 * kind.products, parts - 1, UNITS, ROWS) if parts > 1 else None
    return Buffers(weights, (2, 1, kind.gates, UNITS, ROWS), sums)


def fits(kind: Kind, H: int, dtype: Any) -> bool:
    """Whether a recurrence has room on the chip.

    >>> from seqjax.kernels.equations import LSTM
    >>> fits(LSTM, 256, "bfloat16"), fits(LSTM, 256, "float32"), fits(LSTM, 257, "float32"), fits(LSTM, 64, "float64")
    (True, True, False, False)
    """
    parts = Tiles(1, H).parts
    if jnp.dtype(dtype).name not in FACTORS or parts > BLOCKS:
        return False

    def size(transposed: bool) -> int:
        weights, factors, sums = buffers(kind, parts, transposed=transposed)
        return 2 * (math.prod(weights) + math.prod(factors)) + 2 * 4 * (math.prod(sums) if sums else 0)

    return max(size(False), size(True)) <= SHARED
