# SPDX-License-Identifier: Apache-2.0
"""Blocks of steps in the hand-written pass: lengths that the contract table does not reach."""

import functools

import jax
import jax.numpy as jnp
import pytest

import seqjax
from seqjax import DTypes
from seqjax.engines import Checkpointed
from seqjax.engines.scan import Scan, block_size
from seqjax.testing import assert_close, example, reference_loop, value_and_gradients

DOUBLE = DTypes("float64")
CELLS = {
    "lstm": seqjax.LSTM(3, dtypes=DOUBLE),
    "gru": seqjax.GRU(3, dtypes=DOUBLE),
}


@pytest.mark.parametrize(("T", "size"), [(74, 37), (67, 1)], ids=["two blocks", "a prime: none"])
@pytest.mark.parametrize("name", CELLS)
def test_blocks_of_steps_equal_the_reference_loop(name, T, size):
    cell = CELLS[name]
    params, carry, xs, mask, resets = example(cell, T=T, batch_shape=(2,), masked=True, with_resets=True)
    assert block_size(cell, params, xs) == size
    flags = {"mask": mask, "resets": resets}
    expected = value_and_gradients(reference_loop, cell, params, carry, xs, **flags)
    actual = jax.jit(functools.partial(value_and_gradients, Scan().run, cell))(params, carry, xs, **flags)
    assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize("engine", [Scan(), Checkpointed()], ids=repr)
def test_a_batch_of_no_sequences_runs_through_blocks(engine):
    cell = seqjax.GRU(3)
    params = cell.init(jax.random.key(0), 2)
    xs = jnp.ones((74, 0, 2), "float32")

    def total(params):
        return engine.run(cell, params, cell.initial_carry(params, (0,)), xs)[1].sum()

    assert engine.run(cell, params, cell.initial_carry(params, (0,)), xs)[1].shape == (74, 0, 3)
    assert float(jnp.abs(jax.grad(total)(params).w_rec).max()) == 0
