# SPDX-License-Identifier: Apache-2.0
"""RGLRU against Griffin's equations 1 to 4 in NumPy, and its root near a = 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.cells.rg_lru import RGLRU, RGLRUCarry, RGLRUInput, RGLRUParams, complement_root, rg_lru_coefficients
from seqjax.engines.associative import Associative
from tests.common import F64, sigmoid

H, B = 3, 4


def draw(steps, in_dim, project):
    random = np.random.default_rng(0)
    params = RGLRUParams(
        w_in=random.normal(size=(in_dim, 2 * H)),
        bias=random.normal(size=2 * H),
        decay_logit=random.normal(size=H) + 2,
        w_x=random.normal(size=(in_dim, H)) if project else None,
    )
    return params, random.normal(size=(steps, B, in_dim)), random.normal(size=(B, H))


@pytest.mark.parametrize("project", [False, True])
def test_two_steps(project):
    params, xs, h = draw(2, 2 if project else H, project)
    expected = []
    for x in xs:
        r = sigmoid(x @ params.w_in[:, :H] + params.bias[:H])  # equation 1
        i = sigmoid(x @ params.w_in[:, H:] + params.bias[H:])  # equation 2
        a = sigmoid(params.decay_logit) ** (8 * r)  # equation 3
        u = x @ params.w_x if project else x
        h = a * h + np.sqrt(1 - a**2) * (i * u)  # equation 4
        expected.append(h)
    cell = RGLRU(H, project_input=project, dtypes=F64)
    params, xs, h = jax.tree.map(jnp.asarray, draw(2, 2 if project else H, project))
    carry = RGLRUCarry(h)
    for x, y in zip(xs, expected, strict=True):
        z = cell.project(params, x)
        decay, drive = cell.coefficients(params, z)
        affine = decay.h * carry.h + drive.h
        carry, actual = cell.step(params, carry, z)
        np.testing.assert_allclose(actual, y, rtol=1e-12)
        np.testing.assert_allclose(affine, carry.h, rtol=1e-13)


def test_root_does_not_cancel_near_one():
    """sqrt(1 - e^(-2u)) = sqrt(2u) (1 - u/2 + O(u²))."""
    u = np.array([1e-12, 1e-9, 1e-6], np.float32)
    exact = np.sqrt(2 * u.astype(np.float64)) * (1 - u.astype(np.float64) / 2)
    np.testing.assert_allclose(complement_root(-jnp.asarray(u)), exact, rtol=1e-6)


def test_gradient_is_exact_and_bounded_for_any_gate_and_any_decay():
    """d/dk of sqrt(1 - a²), with log a = -8 σ(k) softplus(-Λ), against its closed form in float64."""
    k, logit = (a.ravel() for a in np.meshgrid(np.linspace(-120, 120, 25), np.linspace(-120, 120, 25)))

    def root(k, logit):
        ones = jnp.ones_like(k)
        z = RGLRUInput(jnp.stack([k, 200 * ones]), ones[None])  # i = 1, x = 1: the drive is the root
        return rg_lru_coefficients(logit[None], z)[1].h[0]

    gradient = jax.jit(jax.vmap(jax.grad(root, (0, 1))))
    softplus = np.logaddexp(0, -logit)
    u = 8 * sigmoid(k) * softplus
    with np.errstate(invalid="ignore"):
        core = np.where(u > 0, u * np.exp(-2 * u) / np.sqrt(-np.expm1(-2 * u)), 0)
    expected = core * sigmoid(-k), -core * sigmoid(-logit) / softplus
    for slope, exact in zip(gradient(k, logit), expected, strict=True):
        np.testing.assert_allclose(slope, exact, rtol=1e-9, atol=1e-15)
    for slope in gradient(k.astype("float32"), logit.astype("float32")):
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() <= 0.25


def test_decay_of_exactly_one_keeps_the_state_and_stops_no_gradient_with_nan():
    cell = RGLRU(H, project_input=False)
    ones = np.ones((H, 2 * H), np.float32)
    params = RGLRUParams(ones, ones[0], 300 * ones[0, :H], None)
    carry = RGLRUCarry(jnp.arange(3, dtype=jnp.float32))

    def loss(params, xs):
        after, ys = Associative().run(cell, params, carry, xs)
        return jnp.sum(ys), after

    (_, after), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        params, jnp.ones((4, H), jnp.float32)
    )
    np.testing.assert_array_equal(after.h, carry.h)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()


def test_decays_start_uniform_between_their_bounds():
    cell = RGLRU(20_000, min_decay=0.5, max_decay=0.9, dtypes=F64)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 1)
    decay = sigmoid(np.asarray(params.decay_logit)) ** 8
    assert 0.5 <= decay.min() < 0.501
    assert 0.899 < decay.max() <= 0.9
    np.testing.assert_allclose(np.quantile(decay, [0.25, 0.5, 0.75]), [0.6, 0.7, 0.8], atol=0.01)


def test_ten_thousand_steps_keep_unit_variance_in_float32():
    """a² + (1 - a²) = 1: white noise of variance 1, fully let in, gives states of variance 1."""
    T, width = 10_000, 64
    cell = RGLRU(width, project_input=False)
    weights = jnp.zeros((width, 2 * width), jnp.float32)
    bias = jnp.concatenate([jnp.zeros(width, jnp.float32), jnp.full(width, 50.0, jnp.float32)])  # i = 1
    logit = jnp.full(width, 6.0, jnp.float32)  # a = 0.99
    params = RGLRUParams(weights, bias, logit, None)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, width)).astype("float32"))
    run = jax.jit(functools.partial(Associative().run, cell))
    _, ys = run(params, cell.initial_carry(params, ()), xs)
    np.testing.assert_allclose(np.mean(np.asarray(ys[1000:]) ** 2), 1, rtol=0.05)


def test_bfloat16_compute_keeps_a_float32_state():
    cell = RGLRU(H, dtypes=seqjax.DTypes(compute="bfloat16"))

    def step(key, x):
        params = cell.init(key, 2)
        carry = cell.initial_carry(params, (B,))
        return carry, *cell.step(params, carry, cell.project(params, x))

    carry, after, y = jax.eval_shape(step, jax.random.key(0), jax.ShapeDtypeStruct((B, 2), "bfloat16"))
    assert carry.h.dtype == after.h.dtype == jnp.float32
    assert y.dtype == jnp.bfloat16


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="0 < min_decay < max_decay < 1"):
        RGLRU(3, max_decay=1.0)
    with pytest.raises(ValueError, match=r"takes inputs of 3 features as they are, got 2"):
        RGLRU(3, project_input=False).init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="keeps its state in float32 or float64"):
        RGLRU(3, dtypes=seqjax.DTypes(carry="bfloat16"))
