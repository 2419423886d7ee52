# SPDX-License-Identifier: Apache-2.0
"""Saturation: how often gates and activations are at their bounds, where their slopes vanish."""

from typing import NamedTuple

import jax.numpy as jnp

from seqjax.activations import Activation, bounds
from seqjax.base import Array
from seqjax.diagnostics.trajectory import Trajectory, check_trajectory


class GateValues(NamedTuple):
    """The values of a gate or an activation along a trajectory.

    Attributes:
      values: `[T, ..., H]`.
      activation: the function that made them, which determines the bounds.
    """

    values: Array
    activation: Activation


def gate_values(trajectory: Trajectory) -> dict[str, GateValues]:
    """The gates and activations of a cell at every step, by name.

    | cell                           | gates   | activations                                 |
    |--------------------------------|---------|---------------------------------------------|
    | `Simple`, `IndRNN`             |         | `h`                                         |
    | `LSTM`, `PeepholeLSTM`         | i, f, o | `g`, and `phi_c` = φ(c_t)                   |
    | `GRU`, `DiagonalGRU`           | z, r    | `g`                                         |
    | `DiagonalLSTM`                 | f, o    | `g`, `phi_c`                                |
    | `MinGRU`                       | z       | none: its candidate is linear               |
    | `MinLSTM`                      | f       | none; f is the normalized f', and i' 1 - f' |
    | `RGLRU`                        | r, i    | none                                        |
    | `Zoneout`, `RecurrentDropout`  | of the cell inside, in evaluation                     |
    | `MultiHead`                    | of its heads, side by side                            |

    A cell of your own names its gates by a method `gate_values`.

    Args:
      trajectory: that of a recurrent layer.

    Returns:
      Values by name, recomputed from the states; `{}` for a cell that names none.

    >>> import jax, seqjax
    >>> from seqjax.diagnostics import trajectories
    >>> model, xs = seqjax.RNN(seqjax.GRU(4)), jnp.ones((5, 2, 1))
    >>> (seen,) = trajectories(model, model.init(jax.random.key(0), xs), xs)
    >>> {name: (gate.values.shape, gate.activation) for name, gate in gate_values(seen).items()}
    {'z': ((5, 2, 4), 'sigmoid'), 'r': ((5, 2, 4), 'sigmoid'), 'g': ((5, 2, 4), 'tanh')}
    """
    check_trajectory("gate_values", trajectory)
    cell, params = trajectory.cell, trajectory.params
    found = cell.gate_values(params, trajectory.carries, cell.project(params, trajectory.xs))
    return {name: GateValues(*gate) for name, gate in found.items()}


class Saturation(NamedTuple):
    """How often the units of a gate are at a bound, over unmasked steps and sequences.

    Attributes:
      low: `[H]`: the fraction of the time that each unit is within epsilon of the lower bound; 0 if it has none.
      high: `[H]`: the same for the upper bound.
    """

    low: Array
    high: Array

    @property
    def fraction(self) -> Array:
        """The fraction of all values that are at either bound, a scalar."""
        return jnp.mean(self.low + self.high)


def saturation(trajectory: Trajectory, epsilon: float = 0.05) -> dict[str, Saturation]:
    """How often each gate and activation of a layer is within `epsilon` of its bounds.

    A gate at a bound passes no gradient to its own weights. What it does to the state depends on the
    gate: an LSTM's f remembers at 1 and forgets at 0; a tanh at ±1 is blind to its inputs. For a relu, only
    values of exactly 0, where it is off, count.

    Args:
      trajectory: that of a recurrent layer; see `trajectories`.
      epsilon: how near to a bound counts, at least 0 and below 0.5.

    Returns:
      `Saturation` by the names of `gate_values`; activations without bounds, and functions of your
      own, are left out.

    Raises:
      ValueError: an epsilon out of range.

    >>> import jax, seqjax
    >>> from seqjax.diagnostics import trajectories
    >>> model, xs = seqjax.RNN(seqjax.Simple(1, w_in_init="ones", w_rec_init="zeros")), jnp.array([[0.0], [9.0]])
    >>> (seen,) = trajectories(model, model.init(jax.random.key(0), xs), xs)
    >>> float(saturation(seen)["h"].fraction)  # tanh(0), tanh(9)
    0.5

    Source: Karpathy, Johnson and Fei-Fei 2016, section 4.2, for the fractions left and right.
    """
    check_trajectory("saturation", trajectory)
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"saturation: epsilon must be from 0 to below 0.5, half of a gate's range, got {epsilon!r}.")
    found = {}
    for name, gate in gate_values(trajectory).items():
        between = bounds(gate.activation)
        if between is not None:
            low, high = between
            near = 0.0 if gate.activation == "relu" else epsilon  # its slope vanishes at the bound, not near it
            found[name] = Saturation(
                _fraction(gate.values <= low + near, trajectory.mask),
                _fraction(gate.values >= high - epsilon, trajectory.mask),
            )
    return found


def _fraction(passed: Array, mask: Array | None) -> Array:
    """`[H]`: the fraction of unmasked values for which `passed [T, ..., H]` is True."""
    weights = jnp.ones(passed.shape[:-1], bool) if mask is None else mask
    count = (passed & weights[..., None]).sum(tuple(range(passed.ndim - 1)))
    return count.astype(jnp.float32) / jnp.maximum(weights.sum(), 1).astype(jnp.float32)
