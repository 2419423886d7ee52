# SPDX-License-Identifier: Apache-2.0
"""A measure of the steps at which something is recalled."""

import dataclasses

from seqjax.base import Array, Described, Mask
from seqjax.training.losses import Loss


@dataclasses.dataclass(frozen=True, repr=False)
class AtLastSteps(Described):
    """A loss, or another measure, of the last `steps` steps alone; targets may be of these alone, too.

    >>> import jax.numpy as jnp
    >>> from seqjax.training import accuracy
    >>> logits = jnp.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    >>> float(AtLastSteps(accuracy, 2)(logits, jnp.array([1, 1, 1])))
    0.5
    >>> float(AtLastSteps(accuracy, 1)(logits, jnp.array([1])))
    1.0
    """

    loss: Loss
    steps: int

    def __call__(self, predictions: Array, targets: Array, mask: Mask = None) -> Array:
        return self.loss(
            predictions[-self.steps :], targets[-self.steps :], None if mask is None else mask[-self.steps :]
        )
