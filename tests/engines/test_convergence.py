# SPDX-License-Identifier: Apache-2.0
"""What Newton and Relaxed have in common: an unconverged answer never passes for a converged one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cells import IndRNN, LambdaCell
from seqjax.dtypes import DTypes
from seqjax.engines import Newton, Relaxed
from seqjax.engines.newton import newton_solve
from seqjax.engines.relaxed import relaxed_solve
from seqjax.testing import assert_close, reference_loop
from tests.common import F64

# h_t = 0.999 h_{t-1} + x_t, y_t = w h_t, without a gradient through h: the reverse pass has nothing to solve
HIDDEN = LambdaCell(
    lambda key, in_dim: jnp.ones(()),
    lambda w, h, x: (jax.lax.stop_gradient(0.999 * h) + x, w * (jax.lax.stop_gradient(0.999 * h) + x)),
    lambda w, batch_shape: jnp.zeros((*batch_shape, 1)),
)


@pytest.mark.parametrize(
    "engine", [Relaxed(chunk=3, max_sweeps=2, on_failure="nan"), Newton(max_iterations=3, on_failure="nan")], ids=repr
)
def test_a_gradient_alone_does_not_hide_that_the_forward_pass_did_not_converge(engine):
    w, carry, xs = jnp.ones(()), jnp.zeros(1), jnp.ones((40, 1))

    def gradient(engine):
        return jax.jit(jax.grad(lambda w: engine.run(HIDDEN, w, carry, xs)[1].sum()))(w)

    assert np.isnan(gradient(engine))
    raising = type(engine)(**{**vars(engine), "on_failure": "raise"})
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"forward pass of LambdaCell.* did not converge"):
        jax.block_until_ready(gradient(raising))


@pytest.mark.parametrize("solve", [relaxed_solve, newton_solve])
@pytest.mark.parametrize("dtypes", [F64, DTypes()], ids=["float64", "float32"])
def test_what_came_before_a_reset_does_not_set_the_scale_for_what_follows(solve, dtypes):
    cell, T, begin = IndRNN(3, activation="relu", dtypes=dtypes), 900, 60
    params = cell.init(jax.random.key(0), 3)
    params = params._replace(w_in=jnp.eye(3, dtype=dtypes.params), w_rec=jnp.full(3, 0.99, dtypes.params))
    xs = jnp.asarray(np.abs(np.random.default_rng(0).normal(size=(T, 3))), dtypes.params).at[0].set(1e8)
    resets = jnp.arange(T) == begin
    carry = cell.initial_carry(params, ())
    solution = jax.jit(lambda: solve(cell, params, carry, xs, resets=resets))()
    _, expected = reference_loop(cell, params, carry, xs, resets=resets)
    assert_close(solution.ys[begin:], expected[begin:], 1e-5)
