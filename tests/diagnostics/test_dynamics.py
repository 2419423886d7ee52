# SPDX-License-Identifier: Apache-2.0
"""Trajectories, Jacobians and Lyapunov exponents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import engines
from seqjax.cells import LambdaCell, Zoneout
from seqjax.cells.simple import SimpleParams
from seqjax.diagnostics import (
    gate_values,
    gradient_flow,
    jacobian_spectrum,
    lyapunov_exponents,
    saturation,
    step_jacobians,
    trajectories,
)
from seqjax.diagnostics.trajectory import probed_carry, with_probes
from seqjax.testing import example
from tests.common import F64
from tests.diagnostics.by_hand import differences, lstm_step, random_params


def looked_at(cell, function, params, xs, **flags):
    def run(params, xs, flags):
        (seen,) = trajectories(seqjax.RNN(cell), params, xs, **flags)
        return function(seen)

    return jax.tree.map(np.asarray, jax.jit(run)(params, xs, flags))


def linear(matrix):
    """h_t = A h_{t-1} + x_t."""
    n = len(matrix)
    cell = seqjax.Simple(n, activation="identity", dtypes=F64)
    return cell, SimpleParams(np.eye(n), np.asarray(matrix).T, np.zeros(n))


def scalar(step, start):
    return LambdaCell(lambda key, in_dim: (), step, lambda params, batch: jnp.full((*batch, 1), start))


LSTM = seqjax.LSTM(2, dtypes=F64)


@pytest.fixture(scope="module")
def lstm():
    """Params, inputs with a mask and a reset, and the states that each step starts from, by hand."""
    params = random_params(LSTM, 1)
    xs = np.random.default_rng(1).normal(size=(5, 2, 1))
    mask, resets = np.ones((5, 2), bool), np.zeros((5, 2), bool)
    mask[1, 0], resets[3, 1] = False, True
    states, h, c = [], np.zeros((2, 2)), np.zeros((2, 2))
    for t in range(5):
        h, c = (np.where(resets[t][:, None], 0, a) for a in (h, c))
        states.append(np.concatenate([h, c], -1))
        h, c = (
            np.where(mask[t][:, None], new, old)
            for new, old in zip(lstm_step(params, h, c, xs[t]), (h, c), strict=True)
        )
    flags = {"mask": jnp.array(mask), "resets": jnp.array(resets)}
    return params, np.where(mask[..., None], xs, np.nan), flags, np.stack(states)


def test_trajectory_holds_what_each_step_started_from(lstm):
    params, xs, flags, states = lstm
    seen = looked_at(LSTM, lambda seen: (seen.carries.h, seen.carries.c, seen.xs), params, xs, **flags)
    mask = np.asarray(flags["mask"])
    np.testing.assert_allclose(np.concatenate(seen[:2], -1)[mask], states[mask], rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(seen[2], np.nan_to_num(xs))


@pytest.mark.parametrize(
    "cell",
    [
        Zoneout(seqjax.LSTM(2, dtypes=F64), 0.3),
        seqjax.LRU(2, state_dim=3, dtypes=F64),
    ],
)
def test_probes_change_no_number(cell):
    params, carry, xs, mask, resets = example(cell, masked=True, with_resets=True)
    model = seqjax.Residual(seqjax.Serial(seqjax.RNN(cell), seqjax.Dense(2, dtypes=F64)))
    dense = jax.eval_shape(model.init, jax.random.key(0), xs)[1]
    params = params, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.7), dense)

    def run(params, carry, xs):
        flags = {"mask": mask, "resets": resets, "key": jax.random.key(1)}
        probed = with_probes(model)
        start = probed_carry(probed, params, carry, (3,))
        after, ys = probed.apply(params, start, xs, **flags)
        return (after[0].carry, ys), tuple(jax.tree.leaves(model.apply(params, carry, xs, **flags)))

    (after, ys), expected = jax.jit(run)(params, (carry, ()), xs)
    for got, wanted in zip((*jax.tree.leaves(after), ys), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


def test_jacobians_are_those_of_finite_differences(lstm):
    params, xs, flags, states = lstm

    def step(t, b):
        return lambda state: np.concatenate(lstm_step(params, state[:2], state[2:], xs[t, b]))

    jacobians, spectrum, exponents = looked_at(
        LSTM, lambda s: (step_jacobians(s), jacobian_spectrum(s), lyapunov_exponents(s, 4)), params, xs, **flags
    )
    volumes = [[], []]
    for t in range(5):
        for b in range(2):
            if (t, b) == (1, 0):  # masked
                assert np.isnan(spectrum.singular_values[t, b]).all()
                continue
            expected = differences(step(t, b), states[t, b])
            np.testing.assert_allclose(jacobians[t, b], expected, atol=1e-8)
            np.testing.assert_allclose(
                spectrum.singular_values[t, b], np.linalg.svd(expected, compute_uv=False), atol=1e-8
            )
            moduli = np.sort(np.abs(np.linalg.eigvals(expected)))[::-1]
            np.testing.assert_allclose(spectrum.eigenvalue_moduli[t, b], moduli, atol=1e-7)
            volumes[b].append(np.linalg.slogdet(expected)[1])
    # all exponents together are the mean logarithm of the change of volume
    np.testing.assert_allclose(exponents.sum(-1), [np.mean(v) for v in volumes], rtol=1e-6)


def test_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues():
    turn = np.random.default_rng(0).normal(size=(3, 3))
    cell, params = linear(turn @ np.diag([0.9, -0.5, 0.2]) @ np.linalg.inv(turn))
    found = looked_at(cell, lambda s: lyapunov_exponents(s, 3, discard=60), params, np.ones((200, 1, 3)))
    np.testing.assert_allclose(found[0], np.log([0.9, 0.5, 0.2]), rtol=1e-9)


def test_logistic_map_doubles_distances():
    cell = scalar(lambda params, h, x: (4 * h * (1 - h), h), 0.3)
    found = looked_at(cell, lyapunov_exponents, (), np.zeros((5000, 1)))
    assert found[0] == pytest.approx(np.log(2), abs=2e-3)


def test_fixed_point_attracts_at_its_slope():
    fixed = 1.0
    for _ in range(200):
        fixed = np.tanh(1.5 * fixed)
    cell = scalar(lambda params, h, x: (jnp.tanh(1.5 * h), h), 0.4)
    found = looked_at(cell, lambda s: lyapunov_exponents(s, discard=200), (), np.zeros((300, 1)))
    assert found[0] == pytest.approx(np.log(1.5 * (1 - fixed**2)), rel=1e-9)


def test_masked_steps_do_not_count():
    cell, params = linear([[0.5]])
    mask = jnp.array([[True, False], [False, False], [True, False]])
    found = looked_at(cell, lyapunov_exponents, params, np.ones((3, 2, 1)), mask=mask)
    np.testing.assert_allclose(found[0], [np.log(0.5)], rtol=1e-12)
    assert np.isnan(found[1])


def test_complex_state_turns_in_a_plane():
    cell = seqjax.LRU(1, state_dim=1, dtypes=F64)
    params = random_params(cell, 1)
    exponents, spectrum = looked_at(
        cell, lambda s: (lyapunov_exponents(s, 2), jacobian_spectrum(s)), params, np.ones((6, 1))
    )
    log_modulus = -np.exp(params.nu_log[0])
    np.testing.assert_allclose(exponents, [log_modulus] * 2, rtol=1e-9)
    np.testing.assert_allclose(spectrum.singular_values, np.full((6, 2), np.exp(log_modulus)), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_numbers_are_widened_for_linear_algebra(dtype):
    cell = seqjax.Simple(2, activation="identity", dtypes=seqjax.DTypes(compute=dtype))
    params = SimpleParams(*(jnp.asarray(a, jnp.float32) for a in (np.eye(2), np.diag([0.5, 0.25]), np.zeros(2))))
    jacobians, exponents, spectrum = looked_at(
        cell,
        lambda s: (step_jacobians(s), lyapunov_exponents(s, 2, discard=8), jacobian_spectrum(s)),
        params,
        np.ones((20, 3, 2), np.float32),
    )
    assert {a.dtype.name for a in (jacobians, exponents, *spectrum)} == {"float32"}
    np.testing.assert_array_equal(jacobians, np.broadcast_to(np.diag([0.5, 0.25]), (20, 3, 2, 2)))
    np.testing.assert_allclose(exponents, np.broadcast_to(np.log([0.5, 0.25]), (3, 2)), rtol=0.02)
    np.testing.assert_allclose(spectrum.singular_values[0, 0], [0.5, 0.25], rtol=1e-6)


def test_every_second_step_is_kept():
    cell, params = linear([[0.5]])
    seen = looked_at(cell, lambda s: s.every(2).carries.h, params, np.ones((5, 1)))
    np.testing.assert_allclose(seen[:, 0], [0, 1.5, 1.875])


def test_a_carry_of_integers_alone_is_refused_by_name():
    cell = LambdaCell(
        lambda key, in_dim: (), lambda params, n, x: (n + 1, x), lambda p, b: jnp.zeros((*b, 1), jnp.int32)
    )
    with pytest.raises(ValueError, match=r"LambdaCell\(.* carries no floating-point numbers"):
        trajectories(seqjax.RNN(cell), (), jnp.ones((3, 1)))


@pytest.mark.parametrize(
    "look", [gate_values, jacobian_spectrum, lyapunov_exponents, saturation, step_jacobians], ids=lambda f: f.__name__
)
def test_the_trajectories_of_all_layers_are_not_those_of_one(look):
    cell, params = linear([[0.5]])
    with pytest.raises(ValueError, match=rf"{look.__name__} takes .* of one recurrent layer, got .*choose one"):
        look(trajectories(seqjax.RNN(cell), params, jnp.ones((3, 1))))


def test_bad_counts_are_refused():
    cell, params = linear([[0.5]])
    (seen,) = trajectories(seqjax.RNN(cell), params, jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="count must be from 1 to the 1 numbers"):
        lyapunov_exponents(seen, 2)
    for count in (0, 1.0):
        with pytest.raises(ValueError, match=f"count must be a positive integer, got {count}"):
            lyapunov_exponents(seen, count)
    with pytest.raises(ValueError, match="discard must leave a step"):
        lyapunov_exponents(seen, discard=3)


def test_inputs_are_taken_as_apply_takes_them():
    """NumPy's float64 as `jit` would hand it on, and a list by no other than an error that says what to do."""
    cell, params = linear([[0.5]])
    with pytest.raises(ValueError, match="xs must be an array, got list"):
        trajectories(seqjax.RNN(cell), params, [[1.0]])


def test_a_kernel_deep_inside_segments_is_replaced():
    engine = engines.Checkpointed(2, inner=engines.Checkpointed(1, inner=engines.Fused()))
    cell, params = linear([[0.5]])
    (seen,) = trajectories(seqjax.RNN(cell, engine), params, np.ones((4, 1)))
    np.testing.assert_allclose(seen.carries.h[:, 0], [0, 1, 1.5, 1.75])


def test_params_are_enough_where_a_cell_draws_none():
    """An imported cell has its params from elsewhere, and its `init` refuses."""

    def init(key, in_dim):
        raise ValueError("made by an importer")

    cell = LambdaCell(init, lambda a, h, x: (a * h + x,) * 2, lambda a, batch_shape: jnp.zeros((*batch_shape, 1)))
    xs = jnp.ones((3, 2, 1))
    model = seqjax.Serial(seqjax.RNN(cell), seqjax.Bidirectional(seqjax.RNN(cell)))
    params = jnp.array(0.5), (jnp.array(0.2), jnp.array(0.1))
    seen = trajectories(model, params, xs)
    assert [s.name[:3] for s in seen] == ["0 L", "1.0", "1.1"]
    np.testing.assert_allclose(seen[0].carries[:, 0, 0], [0, 1, 1.5])
    flows = gradient_flow(model, params, xs, lambda ys, mask: ys[-1].sum())
    assert [f.name for f in flows] == [s.name for s in seen]
    np.testing.assert_allclose(flows[1].norms["carry"][:, 0], [0.04, 0.2, 1])


def test_a_cell_of_flax_is_looked_at():
    nnx = pytest.importorskip("flax.nnx")
    from seqjax.interop.flax import from_flax_cell

    cell, params = from_flax_cell(nnx.GRUCell(1, 4, rngs=nnx.Rngs(0)))
    model, xs = seqjax.RNN(cell), jnp.ones((3, 2, 1), jnp.float32)
    (seen,) = trajectories(model, params, xs)
    (flow,) = gradient_flow(model, params, xs, lambda ys, mask: ys[-1].sum())
    assert jax.tree.leaves(seen.carries)[0].shape == (3, 2, 4)
    np.testing.assert_allclose(next(iter(flow.norms.values()))[-1], [2, 2], rtol=1e-6)  # y_T = h_T, of four units
