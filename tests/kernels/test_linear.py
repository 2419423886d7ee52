# SPDX-License-Identifier: Apache-2.0
"""The kernel of the diagonal linear recurrence against a loop written in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.kernels.triton import linear
from tests.kernels.cuda import kernels_launched

# T, columns, dtype, constant in time: one chunk of one step, one with a rest, many chunks of chunks
CASES = {
    "one-step": (1, 3, "float64", False),
    "one-chunk": (13, 3, "complex128", False),
    "chunks-of-chunks": (70, 3, "float64", False),
    "constant-decay": (19, 32, "float64", True),
}


def arrays(T, columns, dtype, constant):
    random = np.random.default_rng(0)
    decay = random.uniform(-1, 1, (1 if constant else T, columns)).astype(dtype)
    drive = random.normal(size=(T, columns)).astype(dtype)
    if np.dtype(dtype).kind == "c":
        decay, drive = (a * np.exp(1j * random.uniform(0, 6, a.shape)) for a in (decay, drive))
    return decay, drive


def forward_loop(decay, drive):
    states, state = [], np.zeros_like(drive[0])
    for a, b in zip(np.broadcast_to(decay, drive.shape), drive, strict=True):
        state = a * state + b
        states.append(state)
    return np.stack(states)


def reverse_loop(decay, drive):
    """λ_t = b_t + a_{t+1} λ_{t+1}: the transpose of the forward loop, by its matrix."""
    T = drive.shape[0]
    decay = np.broadcast_to(decay, drive.shape)
    out = np.zeros_like(drive)
    for column in range(drive.shape[1]):
        shift = np.eye(T, dtype=drive.dtype) - np.diag(decay[1:, column], -1)
        out[:, column] = np.linalg.solve(shift.T, drive[:, column])
    return out


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_the_loop_and_its_transpose(case):
    decay, drive = arrays(*CASES[case])
    solve = functools.partial(linear.solve, chunk=8, interpret=True)

    @jax.jit
    def both(decay, drive):
        return solve(decay, drive), solve(decay, drive, reverse=True)

    forward, backward = both(decay, drive)
    np.testing.assert_allclose(forward, forward_loop(decay, drive), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(backward, reverse_loop(decay, drive), rtol=1e-12, atol=1e-12)


def test_a_decay_of_zero_lets_nothing_through_not_even_nan_in_another_chunk():
    decay, drive = arrays(19, 3, "float64", False)
    drive[2] = np.nan
    decay[5] = 0
    states = jax.jit(functools.partial(linear.solve, chunk=8, interpret=True))(decay, drive)
    assert np.isnan(states[2:5]).all()
    np.testing.assert_allclose(states[5:], forward_loop(decay[5:], drive[5:]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2**20, 4, 16), "float32"), ((1000, 33), "bfloat16"), ((1000, 33), "complex64")]
)
def test_the_kernel_lowers_for_cuda(shape, dtype):
    """Without a GPU: to the code that its compiler takes, two launches for each level of chunks but the last."""
    array = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    for reverse in (False, True):
        launches = kernels_launched(functools.partial(linear.solve, reverse=reverse), array, array)
        assert launches == (5 if shape[0] == 2**20 else 3)
