# SPDX-License-Identifier: Apache-2.0
"""The engine for affine cells against the loop: values, gradients, masks, resets, segments."""

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
from seqjax import testing
from seqjax.base import Cell
from seqjax.cells.lru import LRU
from seqjax.cells.minimal import MinGRU, MinGRUParams, MinLSTM
from seqjax.cells.rg_lru import RGLRU
from seqjax.engines.associative import Associative
from tests.common import F64, assert_equals_loop, gradients, runs

ENGINES = {
    "scan": Associative("scan"),
    "scan-segments": Associative("scan", segment=3),  # 7 steps: two segments and a rest
    "tree": Associative("tree"),
    "tree-segments": Associative("tree", segment=4),
}


CELLS = [MinLSTM(3, mode="log", dtypes=F64), LRU(3, state_dim=4, dtypes=F64), RGLRU(3, dtypes=F64)]


@settings(max_examples=5, deadline=None)
@given(options=runs(20), method=st.sampled_from(["scan", "tree"]), segment=st.none() | st.integers(1, 24))
def test_any_length_segment_batch_mask_and_resets_give_the_loops_answer(options, method, segment):
    cell = RGLRU(2, dtypes=F64)
    assert_equals_loop(cell, Associative(method, segment), *testing.example(cell, **options))


class TwoSpeedParams(NamedTuple):
    start: jax.Array  # [2], where both states begin
    rate: jax.Array  # [2]


class TwoSpeedCarry(NamedTuple):
    slow: jax.Array
    fast: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class TwoSpeed(Cell):
    """An affine cell with two leaves and a learned initial carry that is not zero."""

    @property
    def capabilities(self):
        return frozenset({"affine"})

    def init(self, key, in_dim):
        return TwoSpeedParams(jnp.array([0.5, -2.0]), jnp.array([0.1, 0.7]))

    def initial_carry(self, params, batch_shape):
        return TwoSpeedCarry(*(jnp.broadcast_to(start, (*batch_shape, 2)) for start in params.start))

    def coefficients(self, params, z):
        slow, fast = params.rate
        decay = TwoSpeedCarry(1 - slow * jnp.ones(2), jnp.cos(fast * z))  # one constant in time, one not
        return decay, TwoSpeedCarry(slow * z, jnp.sin(z))

    def readout(self, params, carry, z):
        return carry.slow * carry.fast + z

    def step(self, params, carry, z, key=None):
        decay, drive = self.coefficients(params, z)
        carry = TwoSpeedCarry(decay.slow * carry.slow + drive.slow, decay.fast * carry.fast + drive.fast)
        return carry, self.readout(params, carry, z)


@pytest.mark.parametrize("cell", [*CELLS, TwoSpeed()], ids=repr)
def test_masked_resetting_gradients_equal_the_loop_to_1e_10(cell):
    """NaN in masked steps, resets to the initial carry, a carry to start from that is not the initial one."""
    params, carry, xs, mask, resets = testing.example(cell, masked=True, with_resets=True)
    flags = {"mask": mask, "resets": resets}
    expected = testing.value_and_gradients(testing.reference_loop, cell, params, carry, xs, **flags)
    for engine in (ENGINES["scan-segments"], ENGINES["tree"]):
        actual = gradients(engine, cell, params, carry, xs, **flags)
        testing.assert_close(actual, expected, 1e-10)
        d_xs = np.asarray(actual[1][2])
        assert np.isfinite(d_xs).all()
        assert (d_xs[~np.asarray(mask)] == 0).all()


@pytest.mark.parametrize("cell", [MinGRU(3), LRU(3)], ids=repr)
def test_gradients_equal_the_loop_in_float32(cell):
    params, carry, xs, *_ = testing.example(cell)
    expected = testing.value_and_gradients(testing.reference_loop, cell, params, carry, xs)
    for engine in (ENGINES["scan"], ENGINES["tree-segments"]):
        testing.assert_close(gradients(engine, cell, params, carry, xs), expected, 1e-5)


@pytest.mark.parametrize("engine", [ENGINES["scan-segments"], ENGINES["tree"]], ids=repr)
def test_two_pieces_equal_the_whole_and_vmap_equals_batched(engine):
    cell = TwoSpeed()
    params, carry, xs, mask, resets = testing.example(cell, masked=True, with_resets=True)
    testing.check_pieces(cell, params, carry, xs, engine=engine, tolerance=1e-10, mask=mask, resets=resets)

    def run(carry, xs, mask, resets):
        return engine.run(cell, params, carry, xs, mask=mask, resets=resets)

    mapped = jax.jit(jax.vmap(run, (0, 1, 1, 1), (0, 1)))(carry, xs, mask, resets)
    testing.assert_close(mapped, jax.jit(run)(carry, xs, mask, resets), 1e-10)


@pytest.mark.parametrize(("T", "batch_shape"), [(1, ()), (2, (3,)), (11, ()), (16, (2, 3))])
def test_any_length_equals_the_loop(T, batch_shape):
    cell = RGLRU(2, dtypes=F64)
    params, carry, xs, mask, resets = testing.example(cell, T=T, batch_shape=batch_shape, masked=True, with_resets=True)
    expected = testing.reference_loop(cell, params, carry, xs, mask=mask, resets=resets)
    for engine in (Associative("scan", segment=4), Associative("tree")):
        run = jax.jit(functools.partial(engine.run, cell))
        testing.assert_close(run(params, carry, xs, mask=mask, resets=resets), expected, 1e-10)


@pytest.mark.parametrize("method", ["scan", "tree"])
def test_a_diverged_sequence_does_not_leak_through_a_reset(method):
    cell = MinGRU(2, dtypes=F64)
    params, carry, xs, *_ = testing.example(cell, T=6, batch_shape=())
    resets = jnp.arange(6) == 3
    bad = xs.at[1].set(jnp.inf)

    def loss(xs):
        ys = Associative(method).run(cell, params, carry, xs, resets=resets)[1]
        return jnp.sum(ys[3:] ** 2), ys

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    (d_bad, ys_bad), (d_xs, ys) = gradient(bad), gradient(xs)
    np.testing.assert_array_equal(ys_bad[3:], ys[3:])
    np.testing.assert_array_equal(d_bad[3:], d_xs[3:])
    assert not np.isfinite(ys_bad[1:3]).all()


def test_all_steps_masked_returns_the_carry_as_given():
    cell = LRU(2, dtypes=F64)
    params, carry, xs, *_ = testing.example(cell, T=5)
    mask = jnp.zeros(xs.shape[:-1], bool)
    for engine in (ENGINES["scan-segments"], ENGINES["tree"]):
        after, ys = jax.jit(functools.partial(engine.run, cell))(params, carry, xs * jnp.nan, mask=mask)
        np.testing.assert_array_equal(after.h, carry.h)
        np.testing.assert_array_equal(ys, jnp.zeros_like(ys))


@pytest.mark.parametrize("engine", [ENGINES["scan-segments"], ENGINES["tree"]], ids=repr)
def test_gradient_of_a_gradient_equals_that_of_the_loop(engine):
    cell = MinGRU(2, dtypes=F64)
    params, carry, xs, *_ = testing.example(cell, T=4, batch_shape=())

    def curvature(run, params):
        def loss(params):
            return jnp.sum(run(cell, params, carry, xs)[1] ** 3)

        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(params)))

    actual, expected = (
        jax.jit(jax.grad(functools.partial(curvature, run)))(params) for run in (engine.run, testing.reference_loop)
    )
    testing.assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize("engine", [ENGINES["scan-segments"], ENGINES["tree"]], ids=repr)
def test_forward_mode_equals_reverse_mode(engine):
    cell = MinLSTM(2, dtypes=F64)
    params, carry, xs, *_ = testing.example(cell, T=5, batch_shape=())

    def outputs(xs):
        return engine.run(cell, params, carry, xs)[1]

    forward, reverse = jax.jit(lambda xs: (jax.jacfwd(outputs)(xs), jax.jacrev(outputs)(xs)))(xs)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["scan", "tree"])
def test_state_of_bfloat16_compute_accumulates_in_float32(method):
    """h -> 1 in steps of σ(-6.9375) ≈ 2^-10, which a bfloat16 state above 0.25 would not notice."""
    cell = MinGRU(1, dtypes=seqjax.DTypes(compute="bfloat16"))
    params = MinGRUParams(w_in=jnp.zeros((1, 2), jnp.float32), bias=jnp.array([-6.9375, 1], jnp.float32))
    run = jax.jit(functools.partial(Associative(method).run, cell))
    after, ys = run(params, cell.initial_carry(params, ()), jnp.zeros((1000, 1), jnp.bfloat16))
    assert after.h.dtype == jnp.float32
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_allclose(after.h, 1 - (1 - 1 / (1 + np.exp(6.9375))) ** 1000, rtol=1e-5)


def test_method_and_segment_follow_backend_and_length():
    assert Associative().choose(1000) == ("scan", 250)  # tests run on CPU
    assert Associative().choose(1009) == ("scan", 256)  # a prime
    assert Associative().choose(256) == ("scan", 256)
    assert Associative().choose(200) == ("scan", 200)
    assert Associative("tree").choose(1000) == ("tree", 1000)
    assert Associative("tree", segment=100).choose(1000) == ("tree", 100)
    assert Associative(segment=100).choose(10) == ("scan", 10)


def test_a_cell_that_is_not_affine_is_refused_naming_engines_that_work():
    with pytest.raises(ValueError, match=r"Associative\(\) needs a cell that offers 'affine', GRU\(2\).*Scan, Check"):
        Associative().run(seqjax.GRU(2), None, None, jnp.zeros((3, 2)))


@pytest.mark.parametrize("options", [{"method": "fast"}, {"segment": 0}, {"segment": 2.5}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="Associative: "):
        Associative(**options)


def test_plan_counts_carries_between_segments_and_one_segment():
    cell = MinGRU(4)
    xs = jax.ShapeDtypeStruct((1000, 2, 3), jnp.float32)
    params = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    carry = jax.eval_shape(lambda params: cell.initial_carry(params, (2,)), params)
    plan = Associative("scan", segment=100).plan(cell, params, carry, xs)
    one = Associative("scan", segment=100).plan(cell, params, carry, jax.ShapeDtypeStruct((100, 2, 3), jnp.float32))
    assert plan.memory - one.memory == 9 * 2 * 4 * 4  # nine carries [2, 4] of float32
    assert plan.depth == 1000
    assert Associative("tree").plan(cell, params, carry, xs).depth == 20
