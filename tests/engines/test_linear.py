# SPDX-License-Identifier: Apache-2.0
"""The diagonal linear recurrence and its reverse pass, against loops in NumPy and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.engines.linear import linear_recurrence

METHODS = ("scan", "tree")


def numpy_loop(decay, drive, initial=None, cut=None):
    decay = np.broadcast_to(decay, drive.shape)
    state = np.zeros_like(drive[0]) if initial is None else initial
    states = []
    for t in range(len(drive)):
        before = state if cut is None else np.where(cut[t][..., None], 0, state)
        state = decay[t] * before + drive[t]
        states.append(state)
    return np.stack(states)


def draw(*shape, seed=0, dtype=np.float64, radius=0.9):
    """Decays within `radius`, drives and an initial state."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        value = random.normal(size=shape)
        return (value + 1j * random.normal(size=shape) if np.dtype(dtype).kind == "c" else value).astype(dtype)

    decay = normal(*shape)
    decay *= radius * random.uniform(size=shape).astype(decay.real.dtype) / np.abs(decay)
    return decay, normal(*shape), normal(*shape[1:])


def adjoint(decay, drive, initial, weight, cut=None):
    """λ_t = w_t + a_{t+1} λ_{t+1} by a loop; d_a_t = λ_t h_{t-1}, d_b_t = λ_t, d_h0 = a_1 λ_1 (JAX's convention)."""
    states = numpy_loop(decay, drive, initial, cut)
    before = np.concatenate([initial[None], states[:-1]])
    if cut is not None:
        decay = np.where(cut[..., None], 0, decay)
        before = np.where(cut[..., None], 0, before)
    adjoints, passed = np.zeros_like(drive), np.zeros_like(initial)
    for t in reversed(range(len(drive))):
        adjoints[t] = weight[t] + passed
        passed = decay[t] * adjoints[t]
    return adjoints * before, adjoints, passed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (8, 2, 3), (5, 2, 2, 1)])
def test_states_and_gradients_equal_a_loop(method, dtype, shape):
    decay, drive, initial = draw(*shape, dtype=dtype)
    _, weight, _ = draw(*shape, seed=1, dtype=dtype)
    cut = np.random.default_rng(2).random(shape[:-1]) < 0.3

    @jax.jit
    def run(decay, drive, initial):
        recur = functools.partial(linear_recurrence, cut=jnp.asarray(cut), method=method)
        states, transpose = jax.vjp(recur, decay, drive, initial)
        return states, transpose(jnp.asarray(weight))

    states, gradients = run(decay, drive, initial)
    np.testing.assert_allclose(states, numpy_loop(decay, drive, initial, cut), rtol=1e-12, atol=1e-12)
    for actual, expected in zip(gradients, adjoint(decay, drive, initial, weight, cut), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_decay_constant_in_time_equals_its_copies(method):
    decay, drive, initial = draw(6, 2, 3)
    decay = decay[0, 0]
    _, weight, _ = draw(6, 2, 3, seed=1)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(weight * linear_recurrence(a, drive, initial, method=method))))
    every, _, _ = adjoint(np.broadcast_to(decay, drive.shape), drive, initial, weight)
    np.testing.assert_allclose(gradient(jnp.asarray(decay)), every.sum((0, 1)), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_forward_mode_and_second_order_equal_autodiff_of_a_loop(method, dtype):
    decay, drive, initial = draw(5, 2, dtype=dtype)
    tangents = draw(5, 2, seed=1, dtype=dtype)

    def unrolled(decay, drive, initial):
        states = [initial]
        for t in range(len(drive)):
            states.append(decay[t] * states[-1] + drive[t])
        return jnp.stack(states[1:])

    def derivatives(run, *primals):
        def loss(*primals):
            return jnp.sum(jnp.real(run(*primals) ** 3))

        gradient = jax.grad(loss, (0, 1, 2))
        return jax.jvp(run, primals, tangents), jax.jvp(gradient, primals, tangents)

    primals = tuple(map(jnp.asarray, (decay, drive, initial)))
    actual, expected = (
        jax.jit(functools.partial(derivatives, run))(*primals)
        for run in (functools.partial(linear_recurrence, method=method), unrolled)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), actual, expected)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_any_argument_equals_one_by_one(method):
    decay, drive, initial = draw(4, 5, 3)
    run = jax.jit(jax.grad(lambda a, b, h: jnp.sum(linear_recurrence(a, b, h, method=method) ** 2), (0, 1, 2)))
    mapped = jax.jit(jax.vmap(run, (0, None, None)))(decay, drive[0], initial[0])
    for k in range(4):
        for actual, expected in zip(mapped, run(decay[k], drive[0], initial[0]), strict=True):
            np.testing.assert_allclose(actual[k], expected, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_cut_lets_neither_nan_nor_infinity_through_in_either_direction(method, poison):
    decay, drive, initial = draw(6, 2)
    cut = np.zeros((6,), bool)
    cut[3] = True
    bad = drive.copy()
    bad[1] = poison

    def later(drive, decay):
        states = linear_recurrence(decay, drive, initial, cut=jnp.asarray(cut), method=method)
        return jnp.sum(states[3:] ** 2), states

    grad = jax.jit(jax.grad(later, (0, 1), has_aux=True))
    (d_drive, d_decay), states = grad(bad, decay)
    (clean_drive, clean_decay), clean = grad(drive, decay)
    np.testing.assert_array_equal(states[3:], clean[3:])
    np.testing.assert_array_equal(d_drive[3:], clean_drive[3:])
    np.testing.assert_array_equal(d_decay[3:], clean_decay[3:])
    assert not np.isfinite(states[1]).any()

    def earlier(drive, weight):
        return jnp.sum(weight * linear_recurrence(decay, drive, initial, cut=jnp.asarray(cut), method=method))

    weight = np.ones_like(drive)
    weight[4] = poison  # the cotangent of a sequence after the cut
    assert np.isfinite(jax.jit(jax.grad(earlier))(drive, weight)[:3]).all()


def test_first_step_cut_ignores_the_initial_state():
    decay, drive, _ = draw(3, 2)
    cut = jnp.array([True, False, False])
    states = linear_recurrence(decay, drive, jnp.full(2, jnp.nan), cut=cut)
    np.testing.assert_allclose(states, numpy_loop(decay, drive), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_ten_thousand_steps_of_decay_near_one_stay_finite_and_right_in_float32(method):
    T = 10_000
    decay = np.full((T, 1), 1 - 2.0**-12, np.float32)
    states = jax.jit(functools.partial(linear_recurrence, method=method))(decay, np.ones((T, 1), np.float32))
    exact = (1 - (1 - 2.0**-12) ** np.arange(1.0, T + 1)) * 2**12  # geometric series
    np.testing.assert_allclose(states[:, 0], exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": jnp.ones((3, 2), jnp.float32)}, "decay is float32, drive is float64"),
        ({"decay": jnp.ones((2, 2))}, "does not broadcast"),
        ({"decay": jnp.ones((1, 3, 2))}, "does not broadcast"),
        ({"initial": jnp.ones(3)}, r"initial must be \(2,\), got \(3,\)"),
        ({"cut": jnp.ones(2, bool)}, "does not lead"),
        ({"method": "loop"}, "method must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**{"decay": jnp.ones((3, 2)), "drive": jnp.ones((3, 2)), **arguments})


def test_numpys_float64_is_taken_as_jit_takes_it():
    decay, drive, initial = draw(5, 2)
    with jax.enable_x64(False):
        found = linear_recurrence(decay, drive, initial)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, numpy_loop(decay, drive, initial), rtol=1e-5)
