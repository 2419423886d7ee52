# SPDX-License-Identifier: Apache-2.0
"""What clipping does to gradients that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax.training import clip, clipped, was_clipped


def apply(clipping, grads, params=None):
    params = jax.tree.map(jnp.ones_like, grads) if params is None else params
    out, state = clipping.update(grads, clipping.init(params), params)
    return out, bool(state.clipped)


def test_norm_scales_all_leaves_by_one_factor():
    # The norm over both leaves is sqrt(1 + 4 + 4) = 3, so every element is divided by 3.
    out, was = apply(clip(norm=1.0), {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[-2.0]])})
    np.testing.assert_allclose(out["a"], [1 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(out["b"], [[-2 / 3]], rtol=1e-14)
    assert was


def test_value_cuts_each_element():
    out, was = apply(clip(value=0.5), jnp.array([0.2, -3.0, 0.5, 7.0]))
    np.testing.assert_array_equal(out, [0.2, -0.5, 0.5, 0.5])
    assert was


def test_adaptive_scales_each_column_to_its_weights_norm():
    # Columns: |w| = 5, 13; |g| = 1, 2; the limits are 0.1 * |w| = 0.5, 1.3.
    params = jnp.array([[3.0, 5.0], [4.0, 12.0]])
    grads = jnp.array([[0.6, 0.0], [0.8, 2.0]])
    out, was = apply(clip(adaptive=0.1), grads, params)
    np.testing.assert_allclose(out, [[0.3, 0.0], [0.4, 1.3]], rtol=1e-14)
    assert was


def test_adaptive_takes_a_vector_as_one_unit():
    out, _ = apply(clip(adaptive=0.1), jnp.array([0.6, 0.8]), jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(out, [0.3, 0.4], rtol=1e-14)


def test_adaptive_takes_a_convolutions_filter_as_one_unit():
    # kernel [width, D, F]: the norm of a filter runs over width and D together.
    rng = np.random.default_rng(0)
    params, grads = rng.normal(size=(2, 3, 4, 5))
    norms = np.sqrt((grads**2).sum((0, 1))), np.sqrt((params**2).sum((0, 1)))
    out, was = apply(clip(adaptive=0.01), jnp.asarray(grads), jnp.asarray(params))
    np.testing.assert_allclose(out, grads * 0.01 * norms[1] / norms[0], rtol=1e-12)
    assert was


def test_adaptive_counts_zero_weights_as_a_thousandth():
    out, _ = apply(clip(adaptive=0.1), jnp.array([3.0, 4.0]), jnp.zeros(2))
    np.testing.assert_allclose(out, [3e-4 / 5, 4e-4 / 5], rtol=1e-12)


def test_adaptive_takes_each_column_as_a_unit_though_it_has_one_element():
    out, _ = apply(clip(adaptive=0.1), jnp.array([[0.6, 0.1]]), jnp.array([[3.0, 4.0]]))
    np.testing.assert_allclose(out, [[0.3, 0.1]], rtol=1e-14)


def test_adaptive_without_params_says_so():
    clipping = clip(adaptive=0.1)
    with pytest.raises(ValueError, match=r"needs the params"):
        clipping.update(jnp.ones(2), clipping.init(jnp.ones(2)))


def test_norm_comes_before_value():
    # [3, 4] to norm 1 is [0.6, 0.8], and then to 0.7; the other order would give [1, 1] / sqrt(2).
    out, was = apply(clip(norm=1.0, value=0.7), jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(out, [0.6, 0.7], rtol=1e-14)
    assert was


@pytest.mark.parametrize("ways", [{"norm": 5.1}, {"value": 4.0}, {"adaptive": 6.0}, {}])
def test_small_gradients_pass_bit_for_bit(ways):
    grads = jnp.array([3.0, 4.0])
    out, was = apply(clip(**ways), grads, jnp.array([0.6, 0.8]))
    np.testing.assert_array_equal(out, grads)
    assert not was


@pytest.mark.parametrize(
    ("dtype", "grads", "ways", "expected"),
    [
        ("float16", [300, 400], {"norm": 1.0}, [0.6, 0.8]),
        ("float16", [3e-4, 4e-4], {"norm": 1e-4}, [6e-5, 8e-5]),
        ("float16", [300, 400], {"adaptive": 0.01}, [0.03, 0.04]),
        ("float16", [3e-4, 4e-4], {"adaptive": 1e-5}, [3e-5, 4e-5]),
        ("float32", [3e19, 4e19], {"norm": 1.0}, [0.6, 0.8]),
        ("float32", [3e-25, 4e-25], {"norm": 1e-25}, [6e-26, 8e-26]),
        ("float32", [3e19, 4e19], {"adaptive": 0.01}, [0.03, 0.04]),
        ("float64", [3e200, 4e200], {"norm": 1.0}, [0.6, 0.8]),
    ],
)
def test_gradients_whose_squares_leave_their_dtypes_range_are_clipped_as_others_are(dtype, grads, ways, expected):
    out, was = apply(clip(**ways), jnp.array(grads, dtype), jnp.array([3, 4], dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, np.array(expected, dtype), rtol=2e-3 if dtype == "float16" else 1e-6)
    assert was


def test_one_gradient_that_is_not_finite_leaves_none_that_passes_for_one():
    for bad in (jnp.nan, jnp.inf):
        out, _ = apply(clip(norm=1.0, value=1.0), (jnp.array([bad]), jnp.array([1.0])))
        assert np.isnan(out).all()


def test_clipped_feeds_the_optimizer_with_clipped_gradients():
    optimizer = clipped(optax.sgd(0.5), norm=1.0)
    params = jnp.array([1.0, 1.0])
    updates, state = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.3, -0.4], rtol=1e-14)
    assert bool(was_clipped(state))


def test_was_clipped_looks_through_nested_optimizers():
    inner = optax.inject_hyperparams(lambda rate: clipped(optax.sgd(rate), value=0.5))(rate=0.1)
    optimizer = optax.chain(clip(norm=100.0), inner)
    params = jnp.zeros(2)
    state = optimizer.init(params)
    assert not bool(was_clipped(state))
    _, small = optimizer.update(jnp.array([0.1, 0.4]), state, params)
    _, large = optimizer.update(jnp.array([0.1, 0.6]), state, params)
    assert not bool(was_clipped(small))
    assert bool(was_clipped(large))


def test_an_optimizer_without_clipping_never_clips():
    optimizer = optax.adam(1e-3)
    with jax.numpy_dtype_promotion("standard"):  # Adam's own bias correction needs it
        _, state = optimizer.update(jnp.array([1e9]), optimizer.init(jnp.zeros(1)))
    assert not bool(was_clipped(state))


@pytest.mark.parametrize("way", ["norm", "value", "adaptive"])
@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_limit_that_is_not_positive_is_refused_by_name(way, limit):
    with pytest.raises(ValueError, match=rf"clip: {way} must be positive and finite, got"):
        clip(**{way: limit})
