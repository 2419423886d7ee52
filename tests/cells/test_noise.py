# SPDX-License-Identifier: Apache-2.0
"""Zoneout around cells of one's own, whatever their carries hold."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cells import LambdaCell, Zoneout
from seqjax.engines import Scan


class Carry(NamedTuple):
    h: Any
    more: Any


def cell(more, update):
    """h_t = tanh(h_{t-1} + x_t), and something more in the carry."""

    def step(params, carry, x):
        h = jnp.tanh(carry.h + x)
        return Carry(h, update(carry.more, h)), h

    return LambdaCell(lambda key, in_dim: (), step, lambda params, batch: Carry(jnp.zeros((*batch, 3)), more(batch)))


def test_a_carry_may_hold_none_and_trees():
    def pair(batch):
        return jnp.zeros((*batch, 3)), jnp.zeros(batch, jnp.int32)

    xs = jax.random.normal(jax.random.key(0), (5, 2, 3))
    plain = Zoneout(cell(lambda batch: None, lambda more, h: None), 0.3)
    richer = Zoneout(cell(pair, lambda more, h: (h, more[1] + 1)), 0.3)
    (h, _), ys = Scan().run(plain, (), plain.initial_carry((), (2,)), xs)
    carry, more_ys = Scan().run(richer, (), richer.initial_carry((), (2,)), xs)
    expected = np.zeros((2, 3))
    for x in np.asarray(xs):
        expected = 0.3 * expected + 0.7 * np.tanh(expected + x)
    np.testing.assert_allclose(h, expected, rtol=1e-6)
    np.testing.assert_array_equal(ys, more_ys)
    assert carry.more[1].tolist() == [5, 5]


@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_a_carry_that_is_an_array_is_refused_by_name(batch_shape):
    summing = LambdaCell(lambda key, in_dim: (), lambda p, c, x: (c + x.sum(-1), x), lambda p, batch: jnp.zeros(batch))
    with pytest.raises(ValueError, match="Zoneout needs a cell whose carry has the output as `h`"):
        Scan().run(Zoneout(summing, 0.3), (), jnp.zeros(batch_shape), jnp.ones((5, *batch_shape, 4)))
