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
    checked,
    probed_carry,
    seen_in,
    with_deltas,
    with_probes,
)
from seqjax.norms import row_norms
from seqjax.require import shown


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
      ValueError: a `model` that is not a layer, or has no recurrent layer; inputs that are not a sequence, or params
        of another layer; a `loss` that takes targets or is not scalar; a cell whose step leaves open whether its
        output is made of the new carry, as one custom_vjp that returns both does.

    >>> import seqjax
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.LSTM(4)), seqjax.RNN(seqjax.GRU(4)), seqjax.Dense(1))
    >>> params = model.init(jax.random.key(0), jnp.ones((50, 2, 1)))
    >>> first, second = gradient_flow(model, params, jnp.ones((50, 2, 1)), lambda ys, mask: ys[-1].sum())
    >>> first.name, sorted(first.norms), second.norms["h"].shape, bool(second.total[0] < second.total[-1])
    ('0 LSTM(4)', ['c', 'h'], (50, 2), True)

    Source: Pascanu, Mikolov and Bengio 2013, section 2; Hochreiter et al. 2001.
    """
    require.functions("gradient_flow", loss=(loss, "loss(ys, mask) -> scalar"))
    if [*inspect.signature(loss).parameters][1:2] == ["targets"]:
        raise ValueError(
            f"gradient_flow: loss is called as loss(ys, mask), without targets, got {loss!r}; "
            "bind them: lambda ys, mask: loss(ys, targets, mask), which for a BatchMajor model sees them time-major."
        )
    model, xs, mask, resets = checked("gradient_flow", model, xs, mask, resets)
    probed = with_probes(model)
    start = probed_carry(probed, params, carry, model.batch_shape(xs))
    out_mask, _ = model.time_map(mask, resets, carry)

    def run(start: Carry) -> tuple[Array, Carry]:
        after, ys = probed.apply(params, start, xs, mask=mask, resets=resets, key=key)
        return loss(ys, out_mask), after

    value, after = jax.eval_shape(run, start)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"gradient_flow: loss must return one real number, got {shown(value)}; reduce it, as ys.mean() does."
        )
    layers = seen_in(after)
    zeros = [jnp.zeros((*seen.xs.shape[:-1], seen.layout.size), seen.layout.dtype) for seen in layers]
    gradients = jax.grad(lambda deltas: run(with_deltas(start, deltas))[0])(zeros)
    return tuple(
        GradientFlow(seen.name, {leaf: row_norms(part) for leaf, part in seen.layout.split(gradient).items()})
        for seen, gradient in zip(layers, gradients, strict=True)
    )
