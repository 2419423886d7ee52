# SPDX-License-Identifier: Apache-2.0
"""How well firing is predicted: the likelihood of the spikes, and bits a spike above a constant rate."""

import dataclasses
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.spikes.data import RESOLUTION
from seqjax import training
from seqjax.base import Array, Mask

Spikes = TypeVar("Spikes", np.ndarray, Array)


def pooled(logits: Array) -> Array:
    """Log odds `[T, ...]` of a spike in each bin as those `[T / 2, ...]` of one in either bin of a pair.

    The odds of no spike in both are (1 + e^a)(1 + e^b) - 1 = e^a + e^b + e^(a + b) to 1.

    >>> odds = jnp.exp(pooled(jnp.log(jnp.array([1.0, 3.0]))))
    >>> round(float(odds[0]), 3)  # 1 - 1/2 · 1/4 = 7/8
    7.0
    """
    a, b = logits[0::RESOLUTION], logits[1::RESOLUTION]
    return jax.nn.logsumexp(jnp.stack([a, b, a + b]), axis=0)


def told(spikes: Spikes) -> Spikes:
    """Spikes `[T, ...]` of bins as those `[T / 2, ...]` of pairs."""
    return spikes[0::RESOLUTION] + spikes[1::RESOLUTION]


@dataclasses.dataclass(frozen=True)
class Surprise:
    """The binary cross-entropy of spikes, in nats a pair of bins; a model's output of 0 is a constant rate.

    Spike times are multiples of 100 microseconds, so half of the bins of 50 never have a spike: knowing
    which would be worth a bit a spike, and says nothing of the neuron. So it is pairs that are predicted.

    Args:
      base: the log odds of a spike in a bin where the output is 0, those of the learnt part's mean rate.
    """

    base: float

    def __call__(self, outputs: Array, spikes: Array, mask: Mask = None) -> Array:
        return training.binary_cross_entropy(pooled(outputs + self.base), told(spikes), mask)


def log_odds(rate: float) -> float:
    """Of something of probability `rate`."""
    return math.log(rate / (1 - rate))


def entropy(rate: float) -> float:
    """What a pair of bins of constant `rate` costs, in nats.

    >>> round(entropy(0.5), 4)
    0.6931
    """
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def bits_per_spike(nats: float, rate: float) -> float:
    """The gain in log likelihood over a constant rate, in bits a spike.

    (H - nats) / (rate · log 2), H the entropy of the constant rate.

    Args:
      nats: the cross-entropy of a model, a pair of bins.
      rate: spikes a pair of bins, of the very bins that are judged: no constant does better than 0.

    Source: Brenner et al. 2000, Neural Computation 12 (the information of single spikes); Paninski 2004, Network 15
    (the likelihood of a point process).
    """
    return (entropy(rate) - nats) / (rate * math.log(2))
