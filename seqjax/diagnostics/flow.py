# SPDX-License-Identifier: Apache-2.0
"""Gradient flow: how much of the loss's gradient reaches the state at each step."""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import require
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
from seqjax.layers.batch_major import time_major
from seqjax.layers.inner import check_inputs, check_layers
from seqjax.norms import row_norms


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """Gradients with respect to the states of one recurrent layer. A pytree, so a jitted function can return it.

    Attributes:
      name: the layer's place in the params, and its cell: `"0 LSTM(20)"`.
      norms: for each leaf of the carry, such as `h` and `c`, ‖dL/dh_t‖₂ over features, `[T, ...]` for every sequence.
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
    through all later states. For an LSTM's c_t it includes the path through h_t. It is computed as the
    gradient with respect to a zero perturbation added to the state; see `Probe`. A model's `Truncated`
    engines are kept, so what they cut is cut here too.

    Args:
      model: any layer that contains recurrent layers.
      params: its params.
      xs: `[T, ..., D]`; for a `BatchMajor` model `[B, T, ..., D]`, with mask and resets to match.
      loss: `loss(ys, mask) -> scalar` of the model's outputs `[T', ..., F]` and their mask: over the whole
        sequence, or at the last step, which best shows how far back a gradient reaches.
      carry: the carry to start from; by default the initial one.
      mask, resets, key: as for `Layer.apply`; with a key, it measures what training sees.

    Returns:
      A `GradientFlow` for each recurrent layer, over the steps that the layer sees. Where a step is
      masked, there is no new state and the norm is 0.

    Raises:
      ValueError: a `model` that is not a layer, or has no recurrent layer; a `loss` that takes targets.

    >>> import seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.LSTM(4)), seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 1)))
    >>> first, second = gradient_flow(model, params, jnp.ones((50, 2, 1)), lambda ys, mask: ys[-1].sum())
    >>> first.name, sorted(first.norms), second.norms["h"].shape, bool(second.total[0] < second.total[-1])
    ('0 LSTM(4)', ['c', 'h'], (50, 2), True)

    Source: Pascanu, Mikolov and Bengio 2013, section 2; Hochreiter et al. 2001.
    """
    check_layers("gradient_flow", model)
    require.functions("gradient_flow", loss=(loss, "loss(ys, mask) -> scalar"))
    if [*inspect.signature(loss).parameters][1:2] == ["targets"]:
        raise ValueError(
            f"gradient_flow: loss is called as loss(ys, mask), without targets, got {loss!r}; "
            "bind them: lambda ys, mask: loss(ys, targets, mask), which for a BatchMajor model sees them time-major."
        )
    model, xs, mask, resets = time_major(model, xs, mask, resets)
    check_inputs(model, xs, mask, resets)
    xs = jnp.asarray(xs)
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
