# SPDX-License-Identifier: Apache-2.0
"""What the tests of many subjects share."""

import functools

import jax
import numpy as np
from hypothesis import strategies as st

import seqjax
from seqjax.testing import assert_close, reference_loop, value_and_gradients

F64 = seqjax.DTypes("float64")


def runs(longest, batch_shapes=((), (2,), (2, 1))):
    """Lengths, batch shapes, masks and resets that Hypothesis varies: options of `seqjax.testing.example`."""
    return st.builds(
        lambda T, **options: {"T": T, "seed": T, **options},
        T=st.integers(1, longest),
        batch_shape=st.sampled_from(batch_shapes),
        masked=st.booleans(),
        with_resets=st.booleans(),
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gradients(engine, cell, *arguments, **flags):
    """`value_and_gradients` of an engine's run, compiled."""
    return jax.jit(functools.partial(value_and_gradients, engine.run, cell))(*arguments, **flags)


def assert_equals_loop(cell, engine, params, carry, xs, mask=None, resets=None, *, key=None, tolerance=1e-10):
    """The engine gives the values of the reference loop, and its gradients in params, carry and inputs."""
    flags = {"mask": mask, "resets": resets, "key": key}
    expected = value_and_gradients(reference_loop, cell, params, carry, xs, **flags)
    assert_close(gradients(engine, cell, params, carry, xs, **flags), expected, tolerance)
