# SPDX-License-Identifier: Apache-2.0
"""Any Flax cell as a seqjax cell: the laws, Flax's own numbers, refusals by name."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax.engines import Checkpointed, Relaxed
from seqjax.interop.flax import LinenCell, from_flax_cell
from seqjax.testing import assert_close, check_cell
from tests.interop.flax_models import B, D, H, T, flax_cell, inputs, linen_cell, nnx_cell, run_flax
from tests.interop.test_flax_rnn import Dropping


def test_a_linen_cell_keeps_the_laws():
    check_cell(LinenCell(nn.SimpleCell(3, param_dtype=jnp.float64)))


def test_an_nnx_cell_keeps_the_laws():
    make = functools.partial(nnx.OptimizedLSTMCell, hidden_features=3, param_dtype=jnp.float64)
    cell, _ = from_flax_cell(nnx.eval_shape(lambda: make(2, rngs=nnx.Rngs(0))), make=make)
    check_cell(cell)


@pytest.mark.parametrize(
    ("api", "name", "engine"), [("nnx", "GRUCell", Checkpointed(2)), ("linen", "MGUCell", Relaxed(3, tol=1e-13))]
)
def test_other_engines_give_the_numbers_of_flax(api, name, engine):
    module, tree = flax_cell(api, name)
    cell, _ = from_flax_cell(module)
    xs = inputs(T, B, D)
    flax_rnn = {"linen": nn.RNN, "nnx": nnx.RNN}[api]

    def ours(tree, xs):
        model = seqjax.RNN(cell, engine)
        return jnp.sum(model.apply(tree, model.initial_carry(tree, (B,)), xs)[1] ** 2)

    def theirs(tree, xs):
        return jnp.sum(run_flax(api, flax_rnn, module, tree, xs, time_major=True) ** 2)

    actual, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(tree, xs) for f in (ours, theirs))
    assert_close(actual, expected, 1e-10)


def test_params_come_with_the_module():
    module, tree = nnx_cell("GRUCell")
    _, params = from_flax_cell(module)
    jax.tree.map(np.testing.assert_array_equal, params, tree)
    module, tree = linen_cell("MGUCell")
    _, params = from_flax_cell(module, {"params": tree})
    assert params == tree
    assert from_flax_cell(module)[1] is None


def test_equal_cells_share_one_compiled_program():
    assert LinenCell(nn.MGUCell(3)) == LinenCell(nn.MGUCell(3))
    one, two = (from_flax_cell(nnx.GRUCell(2, 3, rngs=nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == "NNXCell(GRUCell)"


def test_a_key_means_training():
    cell, params = from_flax_cell(Dropping(nnx.Rngs(0)))
    model, xs = seqjax.RNN(cell), inputs(T, B, D, dtype="float32")

    @jax.jit
    def run(key):
        return model.apply(params, model.initial_carry(params, (B,)), xs, key=key)[1]

    one, same, two, none = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1)), run(None)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, two)
    assert not np.allclose(one, none)
    module = Dropping(nnx.Rngs(0))
    module.eval()
    np.testing.assert_allclose(none, nnx.RNN(module)(xs, time_major=True), atol=1e-6)


class Counting(nnx.RNNCellBase):
    """A cell with state of its own."""

    num_feature_axes = 1

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(D, rngs=rngs)


class Echo(nn.RNNCellBase):
    """A cell whose carry is as wide as its input."""

    num_feature_axes = 1

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    def __call__(self, carry, x):
        return x, carry


def test_what_no_seqjax_cell_can_be_is_refused_by_name():
    cell, params = from_flax_cell(nnx_cell("GRUCell")[0])
    made, _ = from_flax_cell(nnx_cell("GRUCell")[0], make=functools.partial(nnx.GRUCell, hidden_features=H))
    cases = [
        (lambda: from_flax_cell(Counting(nnx.Rngs(0))), "Counting has state besides its params, .*BatchStat"),
        (lambda: from_flax_cell(nn.ConvLSTMCell(4, (3, 3))), "ConvLSTMCell has 3 feature axes"),
        (lambda: from_flax_cell(nn.Dense(3)), "takes a Flax RNNCellBase, got Dense"),
        (lambda: from_flax_cell(linen_cell("MGUCell")[0], {"params": {}, "stats": {}}), "stats"),
        (lambda: cell.init(jax.random.key(0), D), "made from a live module.*make="),
        (lambda: made.init(jax.random.key(0), D + 1), f"another structure for in_dim={D + 1}"),
        (lambda: LinenCell(Echo()).initial_carry({}, (2,)), "depends on the number of input features"),
    ]
    for call, match in cases:
        with pytest.raises(ValueError, match=match):
            call()
    assert params["dense_i"]["kernel"].shape == (D, 3 * H)
