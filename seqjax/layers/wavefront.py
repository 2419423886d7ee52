# SPDX-License-Identifier: Apache-2.0
"""A stack of equal recurrent layers, split over devices by layer and pipelined over time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from seqjax import require
from seqjax.base import Array, Carry, Cell, Key, Layer, Mask, Params, Resets, Shape
from seqjax.engines.scan import Scan
from seqjax.engines.sharding import devices
from seqjax.engines.steps.pieces import join, pad_steps
from seqjax.engines.steps.stepping import Steps, prepare
from seqjax.layers.compose import Serial
from seqjax.layers.inner import fold_key, outputs_like
from seqjax.layers.rnn import RNN
from seqjax.plan import Plan
from seqjax.trees import tree_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Wavefront(Layer):
    """`Serial(RNN(cell), ..., RNN(cell))` on the devices of a mesh axis, with the same params and the same numbers.

    At any time, layer l needs only what layer l - 1 has computed so far. So at tick k device l runs its
    layer on chunk k - l, of C steps, and hands the outputs to device l + 1. This takes T / C + K - 1 ticks
    on K devices instead of K · T / C on one. A device whose first chunk has not arrived yet, or whose last
    is done, runs masked steps. The gradient runs the pipeline backwards; it keeps the inputs of every chunk
    and recomputes the rest.

    Params and their gradients live where their layer runs; inputs and outputs are on all devices of the axis.

    Args:
      cell: the recurrence; its outputs must be like its inputs, H = D.
      layers: the number of layers, a multiple of K; each device runs layers / K consecutive ones.
      mesh: a `jax.sharding.Mesh`; as for `Sharded`, not a plain hyperparameter.
      axis: the mesh axis over which layers are split.
      chunk: C; `None`: T / (8 K), so that a device waits for at most an eighth of the time.
      batch_axis: the mesh axis over which axis 1 of `xs`, the first batch axis, is split.

    Raises:
      ValueError: an axis that the mesh does not have, a number of layers that K does not divide; in `init`, a
        cell whose outputs are unlike its inputs; in `apply`, as for `Sharded`.

    >>> import jax, jax.numpy as jnp, seqjax
    >>> model = Wavefront(seqjax.GRU(4), 2, jax.make_mesh((1,), ("layer",)), "layer")
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 3, 4)))
    >>> carry, ys = model.apply(params, model.initial_carry(params, (3,)), jnp.ones((50, 3, 4)))
    >>> len(params), ys.shape
    (2, (50, 3, 4))

    Source: the wavefront over (layer, time) of Appleyard et al. 2016, section 4.3, over devices.
    """

    cell: Cell
    layers: int
    mesh: Mesh
    axis: str
    chunk: int | None = None
    batch_axis: str | None = None

    def __post_init__(self):
        require.cell("Wavefront", self.cell)
        require.positive("Wavefront", layers=self.layers)
        require.positive_if_given("Wavefront", chunk=self.chunk)
        object.__setattr__(self, "mesh", devices.automatic("Wavefront", self.mesh, self.axis, self.batch_axis))
        if self.layers % self._layout.devices:
            raise ValueError(
                f"Wavefront: layers must be a multiple of the {self._layout.devices} devices of {self.axis!r}, "
                f"got {self.layers}; use a mesh with fewer."
            )

    def __repr__(self) -> str:
        return devices.code_with_mesh(self)

    @property
    def serial(self) -> Serial:
        """The same model on one device, layer by layer; it has the same params and carry."""
        return Serial(*[RNN(self.cell)] * self.layers)

    @property
    def _layout(self) -> devices.Layout:
        return devices.Layout(self.mesh, self.axis, self.batch_axis)

    def batch_shape(self, xs: Array | jax.ShapeDtypeStruct) -> Shape:
        return xs.shape[1:-1]

    def init(self, key: Array, xs: Array | jax.ShapeDtypeStruct) -> Params:
        params = self.serial.init(key, xs)
        ys = outputs_like(RNN(self.cell), params[0], xs)
        if ys.shape != xs.shape or ys.dtype != xs.dtype:
            raise ValueError(
                f"{self!r} hands outputs on as inputs, and {self.cell!r} maps {xs.dtype}{list(xs.shape)} to "
                f"{ys.dtype}{list(ys.shape)}; put a Dense({ys.shape[-1]}) before it, or use Serial."
            )
        return params

    def initial_carry(self, params: Params, batch_shape: Shape) -> Carry:
        return self.serial.initial_carry(params, batch_shape)

    def apply(
        self,
        params: Params,
        carry: Carry,
        xs: Array,
        *,
        mask: Mask = None,
        resets: Resets = None,
        key: Key = None,
    ) -> tuple[Carry, Array]:
        self.serial.check(params=params, carry=carry)
        prepared = [
            prepare(self.cell, p, c, xs, mask, resets, fold_key(key, i))
            for i, (p, c) in enumerate(zip(params, carry, strict=True))
        ]
        devices.check_split(self, self._layout, self.cell, xs.shape[1:-1], key, prepared)
        run = functools.partial(_apply, self)
        return devices.on_automatic_axes(run, lambda *specs: specs, prepared[0][-1].x, *zip(*prepared, strict=True))

    def plan(self, params: Params, xs: jax.ShapeDtypeStruct) -> tuple[Plan, ...]:
        count, chunk, ticks = self.pipeline(xs.shape[0])
        part = jax.ShapeDtypeStruct((chunk, *xs.shape[1:]), xs.dtype)
        carry = jax.eval_shape(lambda p: self.cell.initial_carry(p, xs.shape[1:-1]), params[0])
        residuals = Scan().plan(self.cell, params[0], carry, part).memory
        each = self.layers // count
        memory = ticks * (tree_bytes(part) + each * tree_bytes(carry)) + each * residuals
        why = f"{self.layers} layers on {count} devices, {ticks} ticks of {chunk} steps; memory of one device"
        return (Plan(repr(self), "", why, memory // self._layout.batch_devices, ticks * chunk * each),)

    def calibrate(self, params: Params, carry: Carry, xs: Array, *, mask: Mask = None, resets: Resets = None) -> Params:
        return self.serial.calibrate(params, carry, xs, mask=mask, resets=resets)

    def pipeline(self, T: int) -> tuple[int, int, int]:
        """Devices, steps in a chunk, and ticks, for `T` steps."""
        count = self._layout.devices
        chunk = min(T, self.chunk or max(1, T // (8 * count)))
        return count, chunk, -(-T // chunk) + count - 1


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    model: Wavefront, params: Params, initial: tuple, carry: Carry, steps: tuple[Steps, ...]
) -> tuple[Carry, Array]:
    """Runs the layers; the entries of `steps` differ only in their keys."""
    layout, T = model._layout, steps[0].x.shape[0]
    count, chunk, ticks = model.pipeline(T)
    first, last = 0, ticks - count  # chunks

    def run_layer(x: Array, layer: tuple, flags: Steps) -> tuple[Array, Carry]:
        params, initial, carry, key = layer
        carry, y = Scan().run_steps(model.cell, params, initial, carry, flags._replace(x=x, key=key))
        return y, carry

    def run_device(params: Params, initial: Carry, carry: Carry, chunks: Steps) -> tuple[Carry, Array]:
        """Runs a device's layers over all ticks; `chunks.key [layers, chunks, C]`, the rest `[chunks, C, ...]`."""
        device = jax.lax.axis_index(layout.axis)
        keys, chunks = chunks.key, chunks._replace(key=None)

        def tick(state: tuple[Carry, Array], k: Array) -> tuple[tuple[Carry, Array], Array]:
            carry, arrived = state
            here = jnp.clip(k - device, first, last)
            piece = jax.tree.map(lambda a: a[here], chunks)
            busy = here == k - device
            mask = jnp.ones(piece.x.shape[:-1], bool) if piece.mask is None else piece.mask
            # a reset acts even on masked steps, so the resets of a chunk that is not this device's must go
            reset = None if piece.reset is None else piece.reset & busy
            flags = piece._replace(mask=mask & busy, reset=reset)
            key = None if keys is None else keys[:, here]
            x = jnp.where(device == 0, piece.x, arrived)
            y, carry = jax.lax.scan(functools.partial(run_layer, flags=flags), x, (params, initial, carry, key))
            to_next = [(d, d + 1) for d in range(count - 1)]
            return (carry, jax.lax.ppermute(y, layout.axis, to_next)), y

        begin = carry, jnp.zeros_like(chunks.x[0])
        # inside a scan, the loop itself keeps XLA from merging the two forward passes
        (carry, _), ys = jax.lax.scan(
            jax.checkpoint(tick, prevent_cse=False), begin, jnp.arange(ticks, dtype=device.dtype)
        )
        return carry, ys[None, count - 1 :]

    def chunked(array: Array) -> Array:
        return array.reshape(array.shape[0] // chunk, chunk, *array.shape[1:])

    padded = [jax.tree.map(chunked, pad_steps(s, (last + 1) * chunk)) for s in steps]
    keys = None if padded[0].key is None else jnp.stack([s.key for s in padded])
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree) for tree in (params, initial, carry)]
    by_layer, flags = layout.spec(layout.axis), layout.spec(None, None)
    unbatched_by_layer: devices.Spec = PartitionSpec(layout.axis)
    carry, ys = layout.map(
        run_device,
        in_specs=(unbatched_by_layer, by_layer, by_layer, Steps(flags, flags, flags, unbatched_by_layer)),
        out_specs=(by_layer, layout.spec(layout.axis, None, None)),
    )(*stacked, padded[0]._replace(key=keys))
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], carry) for i in range(model.layers)), join(ys[-1])[:T]
