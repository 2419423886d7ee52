# SPDX-License-Identifier: Apache-2.0
"""Flax's cells and layers against seqjax', live: values, gradients, exact round trips, refusals by name."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax.engines import Scan
from seqjax.interop.flax import from_flax, to_flax
from seqjax.testing import assert_close, reference_loop
from tests.common import F64
from tests.interop.flax_models import (
    CELLS,
    B,
    D,
    H,
    T,
    drawn,
    flax_cell,
    inputs,
    linen_cell,
    nnx_cell,
    run_flax,
    with_params,
)

MODULES = {"linen": nn, "nnx": nnx}


def imported(api, cell, tree):
    return from_flax(cell, tree) if api == "linen" else from_flax(with_params(cell, tree))


def equal(a, b):
    """Whether two trees hold the same bits."""
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and bool(jnp.array_equal(x, y)), a, b)
    )


@pytest.mark.parametrize(
    ("api", "name", "dtype", "tolerance"),
    [(*cell, "float64", 1e-12) for cell in CELLS] + [("nnx", name, "float32", 1e-5) for api, name in CELLS[4:]],
)
def test_an_imported_cell_has_the_values_and_gradients_of_flax(api, name, dtype, tolerance):
    cell, tree = flax_cell(api, name, dtype)
    xs, weights = inputs(T, B, D, dtype=dtype), inputs(T, B, H, dtype=dtype, seed=2)

    def theirs(tree, xs):
        ys = run_flax(api, MODULES[api].RNN, cell, tree, xs, time_major=True)
        return jnp.sum(ys * weights), ys

    def ours(tree, xs):
        model, params = imported(api, cell, tree)
        layer = seqjax.RNN(model)
        _, ys = layer.apply(params, layer.initial_carry(params, (B,)), xs)
        return jnp.sum(ys * weights), ys

    expected, actual = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(tree, xs) for f in (theirs, ours))
    assert_close(actual, expected, tolerance)


@pytest.mark.parametrize(("api", "name"), CELLS)
def test_a_round_trip_from_flax_is_exact(api, name):
    cell, tree = flax_cell(api, name)
    model, params = imported(api, cell, tree)
    back = to_flax(model, params, api=api, optimized=name != "LSTMCell")
    if api == "linen":
        module, variables = back
        assert (module, variables.keys()) == (cell, {"params"})
        assert equal(variables["params"], tree)
    else:
        assert nnx.graphdef(back) == nnx.graphdef(cell)
        assert equal(nnx.to_pure_dict(nnx.state(back, nnx.Param)), tree)


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize(
    "cell", [seqjax.Simple(H, activation="identity"), seqjax.LSTM(H, activation="relu"), seqjax.GRU(H, "after")]
)
def test_a_round_trip_to_flax_is_exact(api, cell):
    layer = seqjax.RNN(cell, Scan(unroll=2))
    params = drawn(cell)
    if cell == seqjax.GRU(H, "after"):  # what Flax has: a second bias in g, and none in nnx
        biases = 0 if api == "nnx" else jnp.arange(3 * H) >= 2 * H
        params = params._replace(bias_rec=jnp.where(biases, params.bias_rec, 0))
    back = to_flax(layer, params, api=api)
    again = from_flax(*back) if api == "linen" else from_flax(back)
    assert again[0] == layer
    assert equal(again[1], params)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_both_directions_go_and_come_back(api):
    (ahead, tree), (behind, other) = flax_cell(api, "GRUCell"), flax_cell(api, "LSTMCell")
    module = MODULES[api].Bidirectional(MODULES[api].RNN(ahead), MODULES[api].RNN(behind), time_major=True)
    trees = {"forward_rnn": {"cell": tree}, "backward_rnn": {"cell": other}}
    model, params = from_flax(module, {"params": trees}) if api == "linen" else from_flax(module)
    assert model == seqjax.Bidirectional(
        seqjax.RNN(seqjax.GRU(H, "after", dtypes=F64)),
        seqjax.RNN(seqjax.LSTM(H, dtypes=F64)),
    )
    back = to_flax(model, params, api=api, time_major=True, optimized=False)
    run = functools.partial(nn.Module.apply, back[0], back[1]) if api == "linen" else back
    xs = inputs(T, B, D)
    expected = module.apply({"params": trees}, xs) if api == "linen" else module(xs)
    _, ys = jax.jit(lambda xs: model.apply(params, model.initial_carry(params, (B,)), xs))(xs)
    np.testing.assert_allclose(ys, expected, atol=1e-12)
    np.testing.assert_array_equal(run(xs), expected)


def test_biases_that_flax_has_not_are_merged_where_they_are_summed_anyway():
    cell = seqjax.GRU(H, "after", dtypes=F64)
    params = drawn(cell)
    xs = inputs(T, B, D)
    _, expected = reference_loop(cell, params, cell.initial_carry(params, (B,)), xs)
    module, variables = to_flax(seqjax.RNN(cell), params, api="linen", time_major=True)
    np.testing.assert_allclose(module.apply(variables, xs), expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"inside the reset gate.*flax#5594.*api='linen'"):
        to_flax(cell, params)
    outside = params._replace(bias_rec=params.bias_rec.at[2 * H :].set(0))
    _, expected = reference_loop(cell, outside, cell.initial_carry(outside, (B,)), xs)
    rnn = to_flax(seqjax.RNN(cell), outside, time_major=True)
    np.testing.assert_allclose(rnn(xs), expected, atol=1e-12)


def test_a_bias_that_is_off_becomes_zeros_in_flax():
    cell = seqjax.LSTM(H, use_bias=False)
    params = drawn(cell)
    _, variables = to_flax(cell, params, api="linen")
    assert all(not variables["params"][f"h{gate}"]["bias"].any() for gate in "ifgo")


def test_dtypes_and_activations_are_read():
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes inside its step
        module, tree = linen_cell("LSTMCell", "float32", dtype=jnp.bfloat16, activation_fn=nn.relu, gate_fn=jnp.cos)
    cell, _ = from_flax(module, tree)
    assert cell.dtypes == seqjax.DTypes("float32", compute="bfloat16", carry="float32")
    assert (cell.activation, cell.recurrent_activation) == ("relu", jnp.cos)


def test_options_that_have_no_equal_are_refused_by_name():
    gru, tree = linen_cell("GRUCell")
    cases = [
        (lambda: from_flax(nnx_cell("SimpleCell", residual=True)[0]), "nnx.SimpleCell: residual=True"),
        (lambda: from_flax(nn.RNN(gru, reverse=True), {"cell": tree}), "linen.RNN: reverse=True"),
        (lambda: from_flax(nn.MGUCell(H), {}), "linen.MGUCell is not supported.*from_flax_cell"),
        (lambda: from_flax(gru), "needs its variables"),
        (lambda: from_flax(seqjax.GRU(H)), "linen or nnx module, got GRU"),
        (lambda: from_flax(gru, {"params": tree, "batch_stats": {}}), "batch_stats"),
        (lambda: from_flax(gru, {**tree, "more": {"kernel": jnp.ones(1)}}), "has the params .*more/kernel"),
        (lambda: from_flax(gru, {**tree, "ir": {**tree["ir"], "kernel": jnp.ones((D, H + 1))}}), "ir/kernel must have"),
        (lambda: from_flax(nn.GRUCell(H, carry_init=nn.initializers.ones), tree), "carry_init"),
        (lambda: to_flax(seqjax.GRU(H), None), "reset='before'"),
        (lambda: to_flax(seqjax.LSTM(H, normalize="layer"), None), "normalize='layer'"),
        (lambda: to_flax(seqjax.LSTM(H, proj_dim=2), None), "proj_dim=2"),
        (lambda: to_flax(seqjax.PeepholeLSTM(H), None), "PeepholeLSTM"),
        (lambda: to_flax(seqjax.Dense(H), None), "Dense"),
        (lambda: to_flax(seqjax.Bidirectional(seqjax.RNN(seqjax.LSTM(H)), merge="sum"), None), "merge='sum'"),
        (lambda: to_flax(seqjax.LSTM(H), None, api="haiku"), "'nnx' or 'linen'"),
    ]
    for call, match in cases:
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_params_of_another_model_are_refused(api):
    params = drawn(seqjax.GRU(H, "after"))
    for options, match in (({}, r"w_in must have shape \(3, 15\)"), ({"use_bias": False}, "has no bias")):
        cell = seqjax.GRU(H if options else H + 1, "after", **options)
        with pytest.raises(ValueError, match=match):
            to_flax(seqjax.RNN(cell), params, api=api)


def test_a_carry_in_another_dtype_than_the_params_is_refused():
    cell = seqjax.Simple(H, dtypes=seqjax.DTypes("float32", compute="bfloat16", carry="bfloat16"))
    params = drawn(cell)
    with pytest.raises(ValueError, match="a carry in bfloat16 is not supported"):
        to_flax(cell, params)
