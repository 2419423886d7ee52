# SPDX-License-Identifier: Apache-2.0
"""Gradient flow: how much of the loss's gradient arrives at the state of each step."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax.base import Array, Carry, Key, Layer, Mask, Params, Resets
from seqjax.diagnostics.trajectory import (
    ProbedParams,
    layer_name,
    named,
    probed_carry,
    probed_params,
    state_layout,
    with_probes,
)
from seqjax.layers.compose import time_major
from seqjax.norms import row_norms
from seqjax.sequences import as_sequence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """Gradients in the states of one recurrent layer. A pytree, so it may leave a jitted function.

    Attributes:
      name: its place in the params, and its cell: `"0 LSTM(20)"`.
      norms: for each leaf of the carry, `h` and `c` say, ‖dL/dh_t‖₂ over features, `[T, ...]` for every sequence.
    """

    name: str = dataclasses.field(metadata={"static": True})
    norms: dict[str, Array]

    @property
    def total(self) -> Array:
        """`[T]`: the norm over all leaves and sequences together."""
        return row_norms(jnp.concatenate([norms.reshape(len(norms), -1) for norms in self.norms.values()], axis=-1))


def gradient_flow(
    model: Layer,
    params: Params,
    xs: Array,
    loss: Callable[[Array, Mask], Array],
    *,
    carry: Carry | None = None,
    mask: Mask = None,
    resets: Resets = None,
    key: Key = None,
) -> tuple[GradientFlow, ...]:
    """‖dL/dh_t‖ at every step t, for every recurrent layer.

    dL/dh_t is the gradient along all paths from h_t to the loss: through the output of step t, and
    through all later states. Of an LSTM's c_t it includes the path through h_t. It is read off as the
    gradient in a perturbation of zero that is added to the state, see `Probe`; the model's own
    engines run it, so what `Truncated` cuts is cut here.

    Args:
      model: any layer with recurrent layers in it.
      params: its params.
      xs: `[T, ..., D]`; `[B, T, ..., D]`, with mask and resets to match, for a `BatchMajor` model.
      loss: `loss(ys, mask) -> scalar` of the model's outputs `[T', ..., F]` and their mask: over the whole
        sequence, or at the last step, which shows best how far back a gradient comes.
      carry: to start from; by default the initial one.
      mask, resets, key: as for `Layer.apply`; a key measures what training sees.

    Returns:
      A `GradientFlow` for each recurrent layer, over the steps that the layer sees. Where a step is
      masked there is no new state and the norm is 0.

    Raises:
      ValueError: a model without a recurrent layer.

    >>> import seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.LSTM(4)), seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 1)))
    >>> first, second = gradient_flow(model, params, jnp.ones((50, 2, 1)), lambda ys, mask: ys[-1].sum())
    >>> first.name, sorted(first.norms), second.norms["h"].shape, bool(second.total[0] < second.total[-1])
    ('0 LSTM(4)', ['c', 'h'], (50, 2), True)

    Source: Pascanu, Mikolov and Bengio 2013, section 2; Hochreiter et al. 2001.
    """
    model, xs, mask, resets = time_major(model, xs, mask, resets)
    xs = as_sequence(xs, mask, resets)
    probed = with_probes(model)
    params = probed_params(probed, params, xs)
    batch_shape = model.batch_shape(xs)
    start = probed_carry(probed, params, carry, batch_shape)
    out_mask, _ = model.time_map(mask, resets, carry)
    layers = named(params, ProbedParams)

    def objective(deltas: dict[str, Array]) -> Array:
        filled = iter(deltas.values())

        def fill(node: Params) -> Params:
            return dataclasses.replace(node, deltas=next(filled)) if isinstance(node, ProbedParams) else node

        perturbed = jax.tree.map(fill, params, is_leaf=lambda node: isinstance(node, ProbedParams))
        _, ys = probed.apply(perturbed, start, xs, mask=mask, resets=resets, key=key)
        return loss(ys, out_mask)

    gradients = jax.grad(objective)({path: node.deltas for path, node in layers.items()})
    flows = []
    for path, node in layers.items():
        layout = state_layout(node.cell, node.params, batch_shape)
        norms = {name: row_norms(part) for name, part in layout.split(gradients[path]).items()}
        flows.append(GradientFlow(layer_name(path, node.cell), norms))
    return tuple(flows)
