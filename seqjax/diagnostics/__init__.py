# SPDX-License-Identifier: Apache-2.0
"""Diagnostics: see why a recurrent model fails to learn or to remember. Pure functions over any model.

| question                                         | function                                |
|--------------------------------------------------|-----------------------------------------|
| does the gradient reach early steps?             | `gradient_flow`                         |
| does the last output depend on early inputs?     | `memory_profile`, `memory_horizon`      |
| are gates and activations saturated?             | `trajectories`, then `saturation`       |
| does a step stretch or shrink the state?         | ..., then `jacobian_spectrum`           |
| do trajectories diverge or meet in the long run? | ..., then `lyapunov_exponents`          |
| what did clipping do in training?                | `clip_history`                          |

All but the last can be jitted. `scripts/run diagnose` plots them for a saved checkpoint.
"""

from seqjax.diagnostics.clipping import ClipHistory, clip_history
from seqjax.diagnostics.flow import GradientFlow, gradient_flow
from seqjax.diagnostics.jacobians import Spectrum, jacobian_spectrum, step_jacobians
from seqjax.diagnostics.lyapunov import lyapunov_exponents
from seqjax.diagnostics.memory import Horizon, memory_horizon, memory_profile
from seqjax.diagnostics.probe import Probe, StateLayout
from seqjax.diagnostics.saturation import GateValues, Saturation, gate_values, saturation
from seqjax.diagnostics.trajectory import Trajectory, trajectories

__all__ = [
    "ClipHistory",
    "GateValues",
    "GradientFlow",
    "Horizon",
    "Probe",
    "Saturation",
    "Spectrum",
    "StateLayout",
    "Trajectory",
    "clip_history",
    "gate_values",
    "gradient_flow",
    "jacobian_spectrum",
    "lyapunov_exponents",
    "memory_horizon",
    "memory_profile",
    "saturation",
    "step_jacobians",
    "trajectories",
]
