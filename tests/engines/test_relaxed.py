# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.cells import GRU, LSTM, LambdaCell, Simple, Zoneout
from seqjax.cells.diagonal import DiagonalGRU, DiagonalLSTM
from seqjax.cells.indrnn import IndRNN
from seqjax.dtypes import DTypes
from seqjax.engines.relaxed import Relaxed, relaxed_solve
from seqjax.engines.solving.relaxation import relax
from seqjax.initializers import Chrono
from seqjax.testing import assert_close, example, reference_loop, value_and_gradients
from tests.common import F64, assert_equals_loop, gradients, runs, sigmoid


@functools.cache
def compiled(cell, engine):
    return jax.jit(functools.partial(relaxed_solve, cell, engine=engine))


def solve(cell, engine, params, carry, xs, **flags):
    return compiled(cell, engine)(params, carry, xs, **flags)


def expanding(T=18, batch_shape=(2,)):
    """A GRU with recurrent gain 4, whose trajectories fly apart."""
    cell = GRU(16, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=T, batch_shape=batch_shape, in_dim=4)
    params = cell.init(jax.random.key(0), 4)
    return cell, params._replace(w_rec=4 * params.w_rec), carry, xs


@pytest.mark.parametrize(
    ("cell", "engine", "T", "batch_shape", "masked", "with_resets"),
    [
        (Simple(3, dtypes=F64), Relaxed(), 64, (3,), True, True),
        (Simple(3, dtypes=F64), Relaxed(coupling="diagonal"), 2, (), False, False),
        (LSTM(3, dtypes=F64), Relaxed(chunk=4, coupling="diagonal"), 13, (2, 3), True, True),
        (GRU(3, dtypes=F64), Relaxed(chunk=5), 13, (), True, False),
        (DiagonalGRU(3, dtypes=F64), Relaxed(chunk=1, coupling="diagonal"), 2, (3,), True, False),
        (DiagonalLSTM(3, dtypes=F64), Relaxed(), 1, (), False, True),
        (IndRNN(3, dtypes=F64), Relaxed(chunk=3), 13, (3,), False, True),
    ],
)
def test_relaxation_equals_the_reference_loop(cell, engine, T, batch_shape, masked, with_resets):
    arguments = example(cell, T=T, batch_shape=batch_shape, masked=masked, with_resets=with_resets)
    assert_equals_loop(cell, engine, *arguments)


@settings(max_examples=3, deadline=None)
@given(options=runs(24), chunk=st.integers(1, 30), coupling=st.sampled_from(["diagonal", "none"]))
def test_any_length_chunk_batch_mask_and_resets_give_the_loops_answer(options, chunk, coupling):
    cell = GRU(2, dtypes=F64)
    params, carry, xs, mask, resets = example(cell, **options)
    engine = Relaxed(chunk=chunk, coupling=coupling)
    solution = solve(cell, engine, params, carry, xs, mask=mask, resets=resets)
    expected = reference_loop(cell, params, carry, xs, mask=mask, resets=resets)
    assert_close((solution.carry, solution.ys), expected, 1e-10)


def numpy_gru(params, xs):
    w_in, w_rec, b = (np.asarray(p, np.float64) for p in params[:3])
    h, H = np.zeros((*xs.shape[1:-1], w_rec.shape[0])), w_rec.shape[0]
    for a in np.asarray(xs, np.float64) @ w_in + b:
        z, r = np.split(sigmoid(a[..., : 2 * H] + h @ w_rec[:, : 2 * H]), 2, axis=-1)
        h = z * h + (1 - z) * np.tanh(a[..., 2 * H :] + (r * h) @ w_rec[:, 2 * H :])
        yield h


def numpy_lstm(params, xs):
    w_in, w_rec, b = (np.asarray(p, np.float64) for p in params[:3])
    h = c = np.zeros((*xs.shape[1:-1], w_rec.shape[0]))
    for a in np.asarray(xs, np.float64) @ w_in + b:
        i, f, g, o = np.split(a + h @ w_rec, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        yield h


@pytest.mark.parametrize(("cell", "chunk", "oracle"), [(GRU(16), None, numpy_gru), (LSTM(16), 250, numpy_lstm)])
def test_cells_at_initialization_take_two_sweeps(cell, chunk, oracle):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5000, 2, 4)).astype(np.float32))
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 4)
    solution = solve(cell, Relaxed(chunk=chunk, tol=1e-6), params, cell.initial_carry(params, (2,)), xs)
    assert int(solution.iterations) == 2
    assert bool(solution.converged.all())
    assert not bool(solution.fell_back)
    np.testing.assert_allclose(solution.ys, np.stack(list(oracle(params, xs))), atol=2e-6)


def logistic_chunks(count, size):
    """Chunks of a chaotic map x <- 3.9 x (1 - x), and its trajectory from 0.3 by a loop."""

    def chunk(x):
        for _ in range(size):
            x = 3.9 * x * (1 - x)
        return x

    starts = [0.3]
    for _ in range(count):
        starts.append(chunk(starts[-1]))
    return chunk, np.array(starts)


@pytest.mark.parametrize("sweeps", [1, 3])
def test_after_n_sweeps_the_first_n_chunks_are_exact_however_chaotic(sweeps):
    chunk, exact = logistic_chunks(6, 5)
    engine = Relaxed(max_sweeps=sweeps, on_failure="nan")
    guess = jnp.full((6, 1), 0.3)
    unknown = None, None, None
    run = jax.jit(lambda guess: relax(engine, lambda s: (chunk(s), ()), lambda k, s: chunk(s), guess, *unknown, 0))
    found = run(guess)
    assert int(found.sweeps) == sweeps
    assert not bool(found.converged)
    np.testing.assert_allclose(found.ends[:sweeps, 0], exact[1 : sweeps + 1], rtol=1e-6)
    assert np.abs(np.asarray(found.ends[sweeps:, 0]) - exact[sweeps + 1 :]).min() > 1e-3


def test_the_loop_finishes_from_the_exact_prefix():
    chunk, exact = logistic_chunks(6, 5)
    asked = []

    def advance(k, start):
        jax.debug.callback(lambda k: asked.append(int(k)), k)
        return chunk(start)

    engine = Relaxed(max_sweeps=3)
    found = jax.jit(lambda guess: relax(engine, lambda s: (chunk(s), ()), advance, guess, None, None, None, 0))(
        jnp.full((6, 1), 0.3)
    )
    np.testing.assert_allclose(found.ends[:, 0], exact[1:], rtol=1e-6)
    jax.effects_barrier()
    assert min(asked) == 2
    assert not bool(found.converged)


def test_an_expanding_recurrence_is_flagged_and_falls_back_to_the_right_answer():
    cell, params, carry, xs = expanding()
    engine = Relaxed(chunk=3, max_sweeps=3)
    solution = solve(cell, engine, params, carry, xs)
    assert bool(solution.fell_back)
    assert not bool(solution.converged.any())
    assert int(solution.iterations) == 3
    expected = value_and_gradients(reference_loop, cell, params, carry, xs)
    assert_close((solution.carry, solution.ys), expected[0], 1e-10)
    assert_close(gradients(engine, cell, params, carry, xs), expected, 1e-10)


def test_coupled_chunks_of_a_long_memory_take_fewer_sweeps():
    cell = LSTM(8, bias_init=Chrono(1000), dtypes=F64)
    params, carry, xs, *_ = example(cell, T=1000, batch_shape=(1,))
    params = cell.init(jax.random.key(0), 2)
    plain, coupled = (
        solve(cell, Relaxed(chunk=40, coupling=coupling, max_sweeps=30, tol=1e-6), params, carry, xs)
        for coupling in ("none", "diagonal")
    )
    assert bool(plain.converged.all())
    assert bool(coupled.converged.all())
    assert int(coupled.iterations) < 0.6 * int(plain.iterations)
    assert_close(coupled.ys, plain.ys, 1e-5)


def test_padding_takes_no_sweeps():
    cell = GRU(4, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=200, batch_shape=(2,))
    mask = jnp.asarray(np.arange(200)[:, None] < np.array([35, 200]))
    short, long = (jax.tree.map(lambda a, b=b: a[b : b + 1], carry) for b in (0, 1))
    engine = Relaxed(chunk=10)
    alone = solve(cell, engine, params, long, xs[:, 1:])
    padded = solve(cell, engine, params, carry, xs, mask=mask)
    assert int(padded.iterations) <= int(alone.iterations)
    expected = reference_loop(cell, params, short, xs[:35, :1])[0]
    assert_close(jax.tree.map(lambda a: a[:1], padded.carry), expected, 1e-12)


def test_the_tolerance_of_the_reverse_pass_does_not_depend_on_the_size_of_the_loss():
    cell = LSTM(4, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=60)

    def gradient(scale):
        def loss(params):
            return scale * jnp.square(Relaxed(chunk=10).run(cell, params, carry, xs)[1][-1]).sum()

        return jax.grad(loss)(params)

    tiny, plain = jax.jit(gradient)(2.0**-60), jax.jit(gradient)(1.0)
    assert_close(jax.tree.map(lambda d: d * 2.0**60, tiny), plain, 1e-12)


def test_a_nan_input_is_reported_and_stays_in_its_sequence():
    cell = GRU(3, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=40, batch_shape=(3,))
    xs = xs.at[17, 1].set(jnp.nan)
    solution = solve(cell, Relaxed(chunk=5), params, carry, xs)
    assert solution.converged.tolist() == [True, False, True]
    expected_carry, expected_ys = reference_loop(cell, params, carry, xs)
    np.testing.assert_allclose(solution.ys, expected_ys, rtol=1e-12)
    np.testing.assert_allclose(solution.carry.h, expected_carry.h, rtol=1e-12)
    assert np.isnan(solution.ys[17:, 1]).all()


def test_a_nan_that_a_reset_forgets_is_still_reported():
    cell = GRU(3, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=20, batch_shape=(1,))
    xs = xs.at[11].set(jnp.nan)
    resets = jnp.zeros((20, 1), bool).at[13].set(True)
    solution = solve(cell, Relaxed(chunk=5), params, carry, xs, resets=resets)
    assert not bool(solution.converged[0])
    assert bool(jnp.isfinite(solution.carry.h).all())


def test_raise_raises_at_once_and_under_jit():
    cell, params, carry, xs = expanding()
    engine = Relaxed(chunk=3, max_sweeps=2, on_failure="raise")
    with pytest.raises(FloatingPointError, match=r"forward pass of GRU.* did not converge"):
        engine.run(cell, params, carry, xs)
    with pytest.raises(jax.errors.JaxRuntimeError, match="did not converge"):
        jax.block_until_ready(jax.jit(functools.partial(engine.run, cell))(params, carry, xs))


def linear_cell(gain):
    """h_t = h_{t-1} + x_t forward; the cotangent of h is multiplied by `gain` on its way back."""

    @jax.custom_vjp
    def remember(h):
        return h

    remember.defvjp(lambda h: (h, None), lambda _, d: (gain * d,))

    def step(params, h, x):
        h = 0.1 * remember(h) + params * x
        return h, h

    return LambdaCell(
        lambda key, in_dim: jnp.ones(in_dim), step, lambda params, batch_shape: jnp.zeros((*batch_shape, 1))
    )


def test_the_reverse_pass_is_judged_by_itself():
    cell = linear_cell(10.0)  # forward it forgets by 0.1 a step, backwards nothing decays
    params, carry, xs = jnp.ones(1), jnp.zeros(1), jnp.ones((60, 1))

    def gradient(engine):
        return jax.jit(jax.grad(lambda xs: engine.run(cell, params, carry, xs)[1][-1].sum()))(xs)

    engine = Relaxed(chunk=5, max_sweeps=9)
    assert bool(solve(cell, engine, params, carry, xs).converged)
    np.testing.assert_allclose(gradient(engine), np.ones((60, 1)), rtol=1e-12)
    assert np.isnan(gradient(Relaxed(chunk=5, max_sweeps=9, on_failure="nan"))).all()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"reverse pass of LambdaCell.* did not converge"):
        jax.block_until_ready(gradient(Relaxed(chunk=5, max_sweeps=9, on_failure="raise")))


def test_nan_answers_nan_for_what_did_not_converge():
    cell, params, carry, xs = expanding()
    solution = solve(cell, Relaxed(chunk=3, max_sweeps=2, on_failure="nan"), params, carry, xs)
    assert not bool(solution.fell_back)
    assert np.isnan(solution.ys).all()
    assert np.isnan(solution.carry.h).all()


def test_a_stochastic_cell_gets_the_loops_keys():
    cell = Zoneout(LSTM(3, dtypes=F64), 0.3)
    params, carry, xs, *_ = example(cell, T=7)
    key = jax.random.key(5)
    solution = solve(cell, Relaxed(chunk=3, coupling="diagonal"), params, carry, xs, key=key)
    assert_close((solution.carry, solution.ys), reference_loop(cell, params, carry, xs, key=key), 1e-10)


@pytest.mark.parametrize("cell", [GRU(3, dtypes=F64), Zoneout(GRU(3, dtypes=F64), 0.3)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_of_the_gradient_are_refused_whatever_the_cell(cell, weighted):
    """Those in a weight of the loss, which reaches the reverse pass alone, as well."""
    params, carry, xs, *_ = example(cell, T=7)

    def gradient(xs, weight):
        return jax.grad(lambda xs: weight * Relaxed(chunk=3).run(cell, params, carry, xs)[1].sum())(xs)

    with pytest.raises(ValueError, match=r"Relaxed\(chunk=3\) refuses derivatives of its gradient"):
        jax.jvp(lambda a: gradient(xs, a) if weighted else gradient(a, 1.0), *[(1.0 if weighted else xs,)] * 2)


def test_a_bfloat16_cell_gives_the_loops_numbers():
    cell = GRU(4, dtypes=DTypes(compute="bfloat16", carry="float32"))
    params, carry, xs, *_ = example(cell, T=30)
    solution = solve(cell, Relaxed(chunk=6), params, carry, xs)
    expected = reference_loop(cell, params, carry, xs)
    assert bool(solution.converged.all())
    assert solution.ys.dtype == jnp.bfloat16
    assert_close((solution.carry, solution.ys), expected, 2**-7)


def test_a_cell_that_mixes_its_batch_is_refused_in_training_alone():
    cell = Simple(3, normalize="batch", dtypes=F64)
    params, carry, xs, *_ = example(cell)
    with pytest.raises(ValueError, match="use Scan"):
        Relaxed().run(cell, params, carry, xs, key=jax.random.key(0))
    expected = reference_loop(cell, params, carry, xs)
    assert_close(jax.jit(functools.partial(Relaxed().run, cell))(params, carry, xs), expected, 1e-10)


def test_a_carry_that_is_not_floating_is_refused():
    counter = LambdaCell(
        lambda key, in_dim: (), lambda params, n, x: (n + 1, x), lambda params, batch_shape: jnp.zeros(batch_shape, int)
    )
    with pytest.raises(ValueError, match="use Scan"):
        Relaxed().run(counter, (), jnp.zeros(2, int), jnp.ones((5, 2, 1)))


@pytest.mark.parametrize(
    "options",
    [{"chunk": 0}, {"coupling": "full"}, {"tol": 0.0}, {"max_sweeps": -1}, {"max_sweeps": 2.0}, {"on_failure": "pass"}],
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"Relaxed: {next(iter(options))}"):
        Relaxed(**options)


def test_the_plan_says_how_many_steps_wait_for_each_other():
    cell = GRU(4)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    carry = jax.eval_shape(lambda: cell.initial_carry(params, (3,)))
    plan = Relaxed(chunk=50).plan(cell, params, carry, jax.ShapeDtypeStruct((10_000, 3, 2), jnp.float32))
    assert plan.depth == 100
    assert "200 chunks of 50 steps" in plan.why
