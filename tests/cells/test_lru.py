# SPDX-License-Identifier: Apache-2.0
"""LRU against its published equations in complex NumPy, and its ring of eigenvalues."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.cells.lru import LRU, LRUCarry, LRUParams, lru_eigenvalues
from seqjax.engines.associative import Associative
from seqjax.engines.linear import linear_recurrence
from seqjax.initializers import Ring
from tests.common import F64

D, N, H, B = 2, 4, 3, 5


def draw(steps):
    random = np.random.default_rng(0)
    params = LRUParams(
        nu_log=random.normal(size=N) - 1,
        theta_log=random.normal(size=N),
        gamma_log=random.normal(size=N),
        b_re=random.normal(size=(D, N)),
        b_im=random.normal(size=(D, N)),
        c_re=random.normal(size=(N, H)),
        c_im=random.normal(size=(N, H)),
        d=random.normal(size=(D, H)),
    )
    h = random.normal(size=(B, N)) + 1j * random.normal(size=(B, N))
    return params, random.normal(size=(steps, B, D)), h


def published(p, xs, h):
    """h_t = Λ h_{t-1} + γ ⊙ (B x_t), y_t = Re(C h_t) + D x_t, in complex matrices."""
    eigenvalues = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
    ys = []
    for x in xs:
        h = eigenvalues * h + np.exp(p.gamma_log) * (x @ (p.b_re + 1j * p.b_im))
        ys.append((h @ (p.c_re + 1j * p.c_im)).real + (0 if p.d is None else x @ p.d))
    return h, np.stack(ys)


@pytest.mark.parametrize("skip", [True, False])
def test_two_steps(skip):
    params, xs, h = draw(2)
    params = params if skip else params._replace(d=None)
    expected_h, expected = published(params, xs, h)
    cell = LRU(H, state_dim=N, skip=skip, dtypes=F64)
    params, carry = jax.tree.map(jnp.asarray, (params, LRUCarry(h)))
    for x, y in zip(xs, expected, strict=True):
        z = cell.project(params, jnp.asarray(x))
        decay, drive = cell.coefficients(params, z)
        affine = decay.h * carry.h + drive.h
        carry, actual = cell.step(params, carry, z)
        np.testing.assert_allclose(actual, y, rtol=1e-12)
        np.testing.assert_allclose(affine, carry.h, rtol=1e-13)
    np.testing.assert_allclose(carry.h, expected_h, rtol=1e-12)


def test_impulse_response_is_a_sum_of_damped_oscillations():
    """y_t = Re Σ_n c_n λ_n^t γ_n b_n, with no recurrence in the oracle."""
    params, _, _ = draw(1)
    params = params._replace(d=None)
    T = 60
    t = np.arange(T)[:, None]
    modes = np.exp(t * (-np.exp(params.nu_log) + 1j * np.exp(params.theta_log)))
    drive = np.exp(params.gamma_log) * (params.b_re + 1j * params.b_im)[0]
    expected = ((modes * drive) @ (params.c_re + 1j * params.c_im)).real
    xs = jnp.zeros((T, D)).at[0, 0].set(1.0)
    cell = LRU(H, state_dim=N, skip=False, dtypes=F64)
    arrays = jax.tree.map(jnp.asarray, params)
    _, ys = jax.jit(functools.partial(Associative().run, cell))(arrays, cell.initial_carry(arrays, ()), xs)
    np.testing.assert_allclose(ys, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_real_params_agree_with_finite_differences():
    params, xs, h = draw(3)
    cell = LRU(H, state_dim=N, dtypes=F64)

    def loss(params):
        return jnp.sum(jnp.sin(Associative().run(cell, params, LRUCarry(jnp.asarray(h)), jnp.asarray(xs))[1]))

    gradients = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    for name in ("nu_log", "theta_log", "gamma_log", "b_im", "c_im", "d"):
        leaf = getattr(params, name)
        direction = np.random.default_rng(1).normal(size=leaf.shape)

        def shifted(step, name=name, leaf=leaf, direction=direction):
            return np.sin(published(params._replace(**{name: leaf + step * direction}), xs, h)[1]).sum()

        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.sum(getattr(gradients, name) * direction), slope, rtol=1e-7, err_msg=name)


def test_states_have_the_variance_of_their_input():
    """γ = sqrt(1 - |λ|²): for white noise E|h|² = E|B x|² (proposition 3.3)."""
    cell = LRU(1, state_dim=64, eigenvalue_init=Ring(0.8, 0.95), dtypes=F64)

    @jax.jit
    def states(key, xs):
        params = cell.init(key, 1)
        decay, drive = cell.coefficients(params, cell.project(params, xs))
        return params, linear_recurrence(decay.h, drive.h)

    params, h = states(jax.random.key(0), np.random.default_rng(0).normal(size=(20_000, 1)))
    ratio = np.mean(np.abs(h[500:]) ** 2, 0) / (params.b_re**2 + params.b_im**2)[0]
    np.testing.assert_allclose(ratio, 1, rtol=0.15)


def test_ten_thousand_steps_with_decay_near_one_stay_finite_in_float32():
    cell = LRU(2, state_dim=8, eigenvalue_init=Ring(0.9999, 0.99999))

    def loss(params, xs):
        return jnp.mean(Associative().run(cell, params, cell.initial_carry(params, ()), xs)[1] ** 2)

    @jax.jit
    def run(key, xs):
        return jax.value_and_grad(loss, (0, 1))(cell.init(key, 1), xs)

    xs = np.random.default_rng(0).normal(size=(10_000, 1)).astype("float32")
    for leaf in jax.tree.leaves(run(jax.random.key(0), xs)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("ring", [Ring(), Ring(0.0, 0.5), Ring(0.5, 0.6, max_phase=0.1), Ring(0.0, 1 - 1e-12)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_ring_eigenvalues_lie_within_the_ring_and_inside_the_unit_circle(ring, dtype):
    nu_log, theta_log = ring(jax.random.key(0), (2, 1000), jnp.dtype(dtype))
    assert nu_log.dtype == dtype
    nu_log, theta_log = np.asarray(nu_log, np.float64), np.asarray(theta_log, np.float64)
    slack = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 0.05}[dtype]
    modulus, phase = np.exp(-np.exp(nu_log)), np.exp(theta_log)
    assert (modulus < 1).all()
    assert (modulus > 0).all()
    assert modulus.min() >= ring.r_min - slack
    assert modulus.max() <= ring.r_max + slack
    assert phase.min() > 0
    assert phase.max() <= ring.max_phase * (1 + slack)


def test_ring_is_uniform_in_area_and_phase():
    nu_log, theta_log = (np.asarray(a) for a in Ring(0.5, 0.9, max_phase=2.0)(jax.random.key(1), (2, 20_000)))
    share = (np.exp(-2 * np.exp(nu_log)) - 0.5**2) / (0.9**2 - 0.5**2)
    for uniform in (share, np.exp(theta_log) / 2.0):
        np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
    assert abs(np.corrcoef(share, theta_log)[0, 1]) < 0.03


def test_eigenvalues_stay_inside_the_unit_circle_for_any_params():
    params, _, _ = draw(1)
    params = params._replace(nu_log=np.array([-10.0, 0.0, 10.0, 100.0]))
    assert (np.abs(lru_eigenvalues(jax.tree.map(jnp.asarray, params), jnp.dtype("float64"))) < 1).all()


@pytest.mark.parametrize(
    ("dtypes", "state", "output"),
    [
        (seqjax.DTypes(), "complex64", "float32"),
        (F64, "complex128", "float64"),
        (seqjax.DTypes(compute="bfloat16"), "complex64", "bfloat16"),
        (seqjax.DTypes(carry="float64"), "complex128", "float32"),
    ],
    ids=repr,
)
def test_state_is_complex_output_real_and_sizes_are_independent(dtypes, state, output):
    cell = LRU(H, state_dim=N, dtypes=dtypes)

    def step(key, x):
        params = cell.init(key, D)
        carry = cell.initial_carry(params, (B,))
        return params, carry, *cell.step(params, carry, cell.project(params, x))

    params, carry, after, y = jax.eval_shape(step, jax.random.key(0), jax.ShapeDtypeStruct((B, D), output))
    assert carry.h.shape == (B, N)
    assert carry.h.dtype == after.h.dtype == state
    assert y.shape == (B, H)
    assert y.dtype == output
    assert {leaf.dtype for leaf in params} == {jnp.dtype(dtypes.params)}


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="state_dim must be a positive integer"):
        LRU(3, state_dim=0)
    with pytest.raises(ValueError, match="keeps its state in float32 or float64"):
        LRU(3, dtypes=seqjax.DTypes(carry="float16"))
    for options in ({"r_min": 0.9, "r_max": 0.5}, {"r_max": 1.0}, {"r_min": -0.1}, {"max_phase": 7.0}):
        with pytest.raises(ValueError, match="Ring needs"):
            Ring(**options)
    with pytest.raises(ValueError, match=r"Ring fills .* \[2, N\], got shape \(3, 4\)"):
        Ring()(jax.random.key(0), (3, 4))
