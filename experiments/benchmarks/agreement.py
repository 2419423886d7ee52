# SPDX-License-Identifier: Apache-2.0
"""Whether two systems compute the same, before their times are compared."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.systems import Task, in_float32, of_seqjax
from seqjax.base import Array, Params
from seqjax.engines import Scan


class Errors(NamedTuple):
    """Relative, in the Euclidean norm: of the outputs, and of the weight whose gradient is worst."""

    forward: float
    gradient: float


TOLERANCES = {"float32": Errors(1e-4, 1e-3), "bfloat16": Errors(0.05, 0.25)}
"""Against a float32 run. In bfloat16, autodiff adds up a weight's gradient step by step in 8 bits of mantissa: this is
what the libraries do, and a wrong equation is wrong by about 1."""


def reference(given: Task) -> tuple[np.ndarray, Params]:
    """Outputs and gradients, the same numbers computed in float32, by autodiff of a plain loop."""
    system = of_seqjax(Scan(adjoint=False), in_float32(given))

    def loss(params: Params, xs: Array) -> tuple[Array, Array]:
        ys = system.apply(params, xs)
        return jnp.sum(jnp.square(ys)), ys

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(system.params, system.xs)
    return np.asarray(outputs), gradients


def errors(outputs: np.ndarray, gradients: Params, expected: tuple[np.ndarray, Params]) -> Errors:
    """How far results are from those expected.

    Raises:
      ValueError: results of another shape.

    >>> import seqjax
    >>> from seqjax.cells.simple import SimpleParams
    >>> ones = SimpleParams(np.ones((2, 3)), np.ones((3, 3)), np.ones(3))
    >>> errors(np.ones(4), ones, (np.ones(4), ones._replace(bias=np.full(3, 2.0))))
    Errors(forward=0.0, gradient=0.5)
    """
    weights = {name: _distance(array, parts(expected[1])[name]) for name, array in parts(gradients).items()}
    return Errors(_distance(outputs, expected[0]), max(weights.values()))


def agree(found: Errors, dtype: str) -> bool:
    """False also where an error is NaN."""
    return all(error <= limit for error, limit in zip(found, TOLERANCES[dtype], strict=True))


def parts(params: Params) -> dict[str, np.ndarray]:
    """The arrays by name. Of a GRU's recurrent bias only what is inside the reset: the rest of it is the bias again."""
    arrays = {name: np.asarray(leaf, "float32") for name, leaf in params._asdict().items() if leaf is not None}
    if "bias_rec" in arrays:
        arrays["bias_rec"] = arrays["bias_rec"][2 * arrays["w_rec"].shape[0] :]
    return arrays


def _distance(given: Any, expected: Any) -> float:
    if given.shape != expected.shape:
        raise ValueError(f"results have the shape {given.shape}, expected {expected.shape}.")
    given, expected = (np.asarray(array, "float64") for array in (given, expected))
    return float(np.linalg.norm(given - expected) / max(float(np.linalg.norm(expected)), 1e-30))
