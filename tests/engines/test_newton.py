# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seqjax
from seqjax.base import Cell
from seqjax.cells import GRU, LambdaCell, Simple, Zoneout
from seqjax.cells.diagonal import DiagonalGRU, DiagonalLSTM
from seqjax.cells.indrnn import IndRNN
from seqjax.engines.newton import Newton, newton_solve
from seqjax.engines.scan import Scan
from seqjax.testing import assert_close, example, reference_loop
from tests.common import F64, assert_equals_loop, runs


class BlockCarry(NamedTuple):
    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class ParaLSTM(Cell):
    """Danieli et al.'s LSTM with its h: a 2 x 2 Jacobian for each unit."""

    hidden_dim: int
    jacobian_structure: str = "block"

    def init(self, key, in_dim):
        shapes = {"w_in": (in_dim, 3 * self.hidden_dim), "on_h": (3, self.hidden_dim), "on_c": (2, self.hidden_dim)}
        return {name: jax.random.normal(key, shape, "float64") for name, shape in shapes.items()}

    def initial_carry(self, params, batch_shape):
        zeros = jnp.zeros((*batch_shape, self.hidden_dim), "float64")
        return BlockCarry(zeros, zeros)

    def step(self, params, carry, z, key=None):
        f, g, o = jnp.split(z @ params["w_in"], 3, axis=-1)
        a, p = params["on_h"], params["on_c"]
        f = jax.nn.sigmoid(f + a[0] * carry.h + p[0] * carry.c)
        c = f * carry.c + (1 - f) * jnp.tanh(g + a[1] * carry.h)
        h = jax.nn.sigmoid(o + a[2] * carry.h + p[1] * c) * jnp.tanh(c)
        return BlockCarry(h, c), h


@functools.cache
def compiled(cell, engine):
    return jax.jit(functools.partial(newton_solve, cell, engine=engine))


def solve(cell, engine, params, carry, xs, **flags):
    return compiled(cell, engine)(params, carry, xs, **flags)


def at_initialization(cell, T, gain=1.0, in_dim=4):
    """Params as drawn, recurrent ones times `gain`, a zero carry and standard normal inputs."""
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, 2, in_dim)).astype(cell.dtypes.params))
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), in_dim)
    params = params._replace(w_rec=gain * params.w_rec)
    return params, cell.initial_carry(params, (2,)), xs


@pytest.mark.parametrize(
    ("cell", "engine", "T", "batch_shape", "masked", "with_resets"),
    [
        (Simple(3, dtypes=F64), Newton(), 64, (3,), True, True),
        (GRU(3, dtypes=F64), Newton("diagonal"), 13, (), False, False),
        (DiagonalGRU(3, dtypes=F64), Newton(window=5), 13, (3,), True, True),
        (DiagonalGRU(3, dtypes=F64), Newton("dense"), 2, (), False, True),
        (DiagonalLSTM(3, dtypes=F64), Newton(), 1, (3,), True, False),
        (IndRNN(3, dtypes=F64), Newton(), 13, (3,), False, True),
        (ParaLSTM(3), Newton(window=10), 13, (2,), True, True),
    ],
)
def test_newton_equals_the_reference_loop(cell, engine, T, batch_shape, masked, with_resets):
    arguments = example(cell, T=T, batch_shape=batch_shape, masked=masked, with_resets=with_resets)
    assert_equals_loop(cell, engine, *arguments)


@settings(max_examples=3, deadline=None)
@given(options=runs(24), window=st.none() | st.integers(1, 30))
def test_any_length_window_batch_mask_and_resets_give_the_loops_answer(options, window):
    cell = DiagonalGRU(2, dtypes=F64)
    params, carry, xs, mask, resets = example(cell, **options)
    solution = solve(cell, Newton(window=window), params, carry, xs, mask=mask, resets=resets)
    expected = reference_loop(cell, params, carry, xs, mask=mask, resets=resets)
    assert_close((solution.carry, solution.ys), expected, 1e-10)


@pytest.mark.parametrize(
    ("cell", "engine", "low", "high"),
    [
        (GRU(16), Newton(tol=1e-6), 3, 8),
        (GRU(16), Newton("diagonal", tol=1e-6), 9, 30),
        (DiagonalGRU(16), Newton(tol=1e-6), 3, 6),
        (DiagonalLSTM(16), Newton(tol=1e-6), 3, 8),
    ],
)
def test_cells_at_initialization_take_few_iterations_whatever_the_length(cell, engine, low, high):
    params, carry, xs = at_initialization(cell, 1000)
    for T in (250, 1000):
        solution = solve(cell, engine, params, carry, xs[:T])
        assert bool(solution.converged.all())
        assert not bool(solution.fell_back)
        assert low <= int(solution.iterations) <= high


def test_what_leaves_its_linearization_is_kept_from_running_away():
    cell = Simple(16, dtypes=F64)
    params, carry, xs = at_initialization(cell, 300, gain=1.3)
    solution = solve(cell, Newton(), params, carry, xs)
    assert bool(solution.converged.all())
    assert int(solution.iterations) > 5
    h, expected = np.zeros((2, 16)), []
    for x in np.asarray(xs):
        h = np.tanh(x @ params.w_in + h @ params.w_rec + params.bias)
        expected.append(h)
    np.testing.assert_allclose(solution.ys, expected, atol=1e-9)


@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
def test_an_expanding_recurrence_is_flagged_and_falls_back_to_the_right_answer(jacobian):
    cell = GRU(16, dtypes=F64)
    params, carry, xs = at_initialization(cell, 30, gain=4.0)
    engine = Newton(jacobian, max_iterations=5)
    solution = solve(cell, engine, params, carry, xs)
    assert bool(solution.fell_back)
    assert not bool(solution.converged.any())
    if jacobian == "dense":
        assert_close((solution.carry, solution.ys), reference_loop(cell, params, carry, xs), 1e-10)
    else:  # the reverse pass, too, ends in the loop
        assert_equals_loop(cell, engine, params, carry, xs)


def test_a_block_jacobian_takes_as_few_iterations_as_a_dense_one():
    cell = ParaLSTM(4)
    params, carry, xs, *_ = example(cell, T=100, batch_shape=(2,))
    block = solve(cell, Newton(), params, carry, xs)
    dense = solve(cell, Newton("dense"), params, carry, xs)
    assert bool(block.converged.all())
    assert int(block.iterations) == int(dense.iterations)
    assert_close(block.ys, dense.ys, 1e-12)


def test_states_that_overflow_are_reported():
    cell = IndRNN(2, dtypes=F64)
    params, carry, xs = at_initialization(cell, 60)
    params = params._replace(w_rec=jnp.array([1e12, 0.5]), bias=jnp.ones(2))
    solution = solve(cell, Newton(), params, carry, xs)
    assert not bool(solution.converged.any())
    np.testing.assert_allclose(solution.ys, reference_loop(cell, params, carry, xs)[1], rtol=1e-10)
    assert np.isinf(solution.carry.h[:, 0]).all()


def test_a_nan_input_is_reported_and_stays_in_its_sequence():
    cell = DiagonalGRU(3, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=20, batch_shape=(3,))
    xs = xs.at[7, 1].set(jnp.nan)
    solution = solve(cell, Newton(), params, carry, xs)
    assert solution.converged.tolist() == [True, False, True]
    np.testing.assert_allclose(solution.ys, reference_loop(cell, params, carry, xs)[1], rtol=1e-12)
    assert np.isnan(solution.ys[7:, 1]).all()


def test_windows_report_for_all_of_them():
    cell = DiagonalGRU(3, dtypes=F64)
    params, carry, xs, *_ = example(cell, T=20, batch_shape=(2,))
    whole = solve(cell, Newton(), params, carry, xs)
    windows = solve(cell, Newton(window=5), params, carry, xs)
    assert windows.residual.shape == windows.converged.shape == (2,)
    assert bool(windows.converged.all())
    assert int(windows.iterations) > int(whole.iterations)
    broken = solve(cell, Newton(window=5), params, carry, xs.at[18, 0].set(jnp.nan))
    assert broken.converged.tolist() == [False, True]
    assert bool(broken.fell_back)


def test_raise_raises_at_once_and_under_jit():
    cell = GRU(8, dtypes=F64)
    params, carry, xs = at_initialization(cell, 20, gain=4.0)
    engine = Newton(max_iterations=2, on_failure="raise")
    with pytest.raises(FloatingPointError, match=r"forward pass of GRU.* did not converge"):
        engine.run(cell, params, carry, xs)
    with pytest.raises(jax.errors.JaxRuntimeError, match="did not converge"):
        jax.block_until_ready(jax.jit(functools.partial(engine.run, cell))(params, carry, xs))


def test_nan_answers_nan_for_what_did_not_converge():
    cell = GRU(8, dtypes=F64)
    params, carry, xs = at_initialization(cell, 20, gain=4.0)
    solution = solve(cell, Newton(max_iterations=2, on_failure="nan"), params, carry, xs)
    assert not bool(solution.fell_back)
    assert np.isnan(solution.ys).all()
    assert np.isnan(solution.carry.h).all()


def test_a_stochastic_cell_gets_the_loops_keys():
    cell = Zoneout(GRU(3, dtypes=F64), 0.3)
    params, carry, xs, *_ = example(cell, T=7)
    key = jax.random.key(5)
    solution = solve(cell, Newton(), params, carry, xs, key=key)
    assert_close((solution.carry, solution.ys), reference_loop(cell, params, carry, xs, key=key), 1e-10)


def test_neither_half_precision_holds_the_others_numbers():
    def step(params, carry, x):
        a, b = carry
        a = jnp.tanh(0.5 * a + x.astype(a.dtype))
        b = 0.5 * b + 1e5 * a.astype(b.dtype)  # beyond float16
        return (a, b), b.astype("float32")

    cell = LambdaCell(
        lambda key, in_dim: (),
        step,
        lambda params, batch_shape: (jnp.zeros((*batch_shape, 2), "float16"), jnp.zeros((*batch_shape, 2), "bfloat16")),
    )
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3, 2)), "float32")
    carry = cell.initial_carry((), (3,))
    _, ys = Newton().run(cell, (), carry, xs)
    _, expected = reference_loop(cell, (), carry, xs)
    assert_close(ys, expected, 1e-2)


def test_a_complex_carry_is_refused():
    rotating = LambdaCell(
        lambda key, in_dim: (),
        lambda params, h, x: (1j * h + x, h.real),
        lambda params, batch_shape: jnp.zeros((*batch_shape, 1), "complex128"),
    )
    with pytest.raises(ValueError, match="complex; use Scan"):
        Newton().run(rotating, (), jnp.zeros((2, 1), "complex128"), jnp.ones((5, 2, 1)))


def test_a_cell_that_mixes_its_batch_is_refused_in_training():
    cell = Simple(3, normalize="batch", dtypes=F64)
    params, carry, xs, *_ = example(cell)
    with pytest.raises(ValueError, match="use Scan"):
        Newton().run(cell, params, carry, xs, key=jax.random.key(0))


@pytest.mark.parametrize(
    "options", [{"jacobian": "full"}, {"window": 0}, {"tol": -1.0}, {"max_iterations": 0}, {"on_failure": "pass"}]
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"Newton: {next(iter(options))}"):
        Newton(**options)


def test_the_plan_counts_windows_and_levels_of_the_tree():
    shapes = jax.ShapeDtypeStruct((1024, 3, 2), jnp.float32)
    plans = {}
    for cell in (GRU(8), DiagonalGRU(8)):
        params = jax.eval_shape(lambda cell=cell: cell.init(jax.random.key(0), 2))
        carry = jax.eval_shape(lambda cell=cell, params=params: cell.initial_carry(params, (3,)))
        plans[type(cell)] = [Newton(window=window).plan(cell, params, carry, shapes) for window in (None, 256)]
        whole, windows = plans[type(cell)]
        assert whole.memory / 4 < windows.memory < whole.memory / 2
        assert (whole.depth, windows.depth) == (10, 32)


def test_the_plan_refuses_what_the_run_refuses():
    with pytest.raises(ValueError, match="iterates on real carries"):
        seqjax.explain(seqjax.RNN(seqjax.LRU(4), Newton()), jnp.ones((5, 3), "float32"))


@pytest.mark.parametrize("engine", [Newton(max_iterations=1, on_failure="nan"), Newton(on_failure="raise")], ids=repr)
def test_a_derivative_of_the_gradient_is_nan_where_the_answer_is(engine):
    cell = GRU(3, dtypes=F64)
    params = jax.tree.map(lambda a: 6 * a, cell.init(jax.random.key(0), 2))
    xs = 3 * jax.random.normal(jax.random.key(0), (20, 2), "float64")
    converges = engine.max_iterations > 1
    found = hessian_product(engine, cell, cell.init(jax.random.key(0), 2) if converges else params, xs)
    assert jnp.isfinite(found).all() if converges else jnp.isnan(found).all()


def hessian_product(engine, cell, params, xs):
    def loss(xs):
        carry = cell.initial_carry(params, xs.shape[1:-1])
        return jnp.sin(engine.run(cell, params, carry, xs)[1] + 0.3)[-1].sum()

    return jax.jit(lambda xs: jax.jvp(jax.grad(loss), (xs,), (jnp.ones_like(xs),))[1])(xs)


@pytest.mark.parametrize("cell", [GRU(4, dtypes=F64), DiagonalGRU(4, dtypes=F64)], ids=repr)
def test_a_derivative_of_the_gradient_is_exact_or_refused(cell):
    """Without inputs and biases the first guess is the answer: what stops by the answer has no derivative yet."""
    params, xs = cell.init(jax.random.key(0), 3), jnp.zeros((12, 2, 3))
    found = hessian_product(Newton(), cell, params, xs)
    assert_close(found, hessian_product(Scan(adjoint=False), cell, params, xs), 1e-12)
    if cell.jacobian_structure != "diagonal":
        with pytest.raises(ValueError, match=r"Newton\(jacobian='diagonal'\) refuses derivatives of its gradient"):
            hessian_product(Newton(jacobian="diagonal"), cell, params, xs)
