# SPDX-License-Identifier: Apache-2.0
"""Haiku's cores against seqjax', live: values and gradients, round trips, refusals by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.interop.haiku import from_haiku, to_haiku
from seqjax.testing import assert_close
from tests.common import F64

hk = pytest.importorskip("haiku")

D, H, T, B = 3, 4, 6, 2
CORES = ("VanillaRNN", "LSTM", "GRU")


def inputs(*shape, dtype="float64", seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def transformed(core, dtype="float64", **options):
    """haiku's unroll of a core as a function of params and inputs, and random params for it."""

    def run(xs):
        module = getattr(hk, core)(H, **options)
        state = jax.tree.map(lambda leaf: leaf.astype(dtype), module.initial_state(B))
        return hk.dynamic_unroll(module, xs, state)

    functions = hk.without_apply_rng(hk.transform(run))
    shapes = jax.eval_shape(functions.init, jax.random.key(0), jnp.zeros((T, B, D), dtype))
    random = np.random.default_rng(0)
    return functions.apply, jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape).astype(a.dtype)), shapes)


def states(core, carry):
    """seqjax' carry as haiku has it."""
    return hk.LSTMState(carry.h, carry.c) if core == "LSTM" else carry.h


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("core", CORES)
def test_an_imported_core_has_the_values_and_gradients_of_haiku(core, dtype, tolerance):
    run, params = transformed(core, dtype)
    xs, weights = inputs(T, B, D, dtype=dtype), inputs(T, B, H, dtype=dtype, seed=2)

    def theirs(params, xs):
        ys, state = run(params, xs)
        return jnp.sum(ys * weights), (ys, state)

    def ours(params, xs):
        model, own = from_haiku(core, params)
        carry, ys = model.apply(own, model.initial_carry(own, (B,)), xs)
        return jnp.sum(ys * weights), (ys, states(core, carry))

    expected, actual = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(params, xs) for f in (theirs, ours))
    assert_close(actual, expected, tolerance)


def test_padding_is_skipped_where_haiku_stops():
    run, params = transformed("LSTM")
    xs, model = inputs(T, B, D), from_haiku("LSTM", params)
    layer, own = model
    mask = seqjax.mask_from_lengths(jnp.array([4, 4]), T)
    padded = jnp.where(mask[..., None], xs, jnp.nan)
    carry, ys = jax.jit(lambda xs: layer.apply(own, layer.initial_carry(own, (B,)), xs, mask=mask))(padded)
    expected, state = run(params, xs[:4])
    np.testing.assert_allclose(ys[:4], expected, atol=1e-12)
    np.testing.assert_allclose(carry.c, state.cell, atol=1e-12)


@pytest.mark.parametrize("core", CORES)
def test_params_written_to_haiku_give_its_own_numbers(core):
    cells = {"VanillaRNN": seqjax.Simple, "LSTM": seqjax.LSTM, "GRU": seqjax.GRU}
    options = {"activation": "relu"} if core == "VanillaRNN" else {}
    cell = cells[core](H, dtypes=F64, **options)
    params = jax.tree.map(
        lambda a: inputs(*a.shape, seed=a.size), jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    )
    run, like = transformed(core)
    written, xs = to_haiku(seqjax.RNN(cell), params), inputs(T, B, D)
    assert jax.tree.map(jnp.shape, written) == jax.tree.map(jnp.shape, like)
    carry, ys = seqjax.testing.reference_loop(cell, params, cell.initial_carry(params, (B,)), xs)
    assert_close(jax.jit(run)(written, xs), (ys, states(core, carry)), 1e-12)


def test_round_trips_are_exact_where_nothing_is_summed():
    _, gru = transformed("GRU")
    _, single = transformed("VanillaRNN", double_bias=False)
    _, lstm = transformed("LSTM")
    for core, params, options in (("GRU", gru, {}), ("VanillaRNN", single, {"double_bias": False})):
        back = to_haiku(*from_haiku(core, params), **options)
        jax.tree.map(np.testing.assert_array_equal, back, dict(params))
    back = to_haiku(*from_haiku("LSTM", lstm))
    np.testing.assert_array_equal(back["lstm/linear"]["w"], lstm["lstm/linear"]["w"])
    bias, given = back["lstm/linear"]["b"], lstm["lstm/linear"]["b"]
    rest = np.r_[0 : 2 * H, 3 * H : 4 * H]  # all but f
    np.testing.assert_array_equal(bias[rest], given[rest])
    np.testing.assert_allclose(bias, given, rtol=0, atol=np.finfo(float).eps * 4)  # b + 1 is rounded once


def test_the_forget_bias_that_haiku_adds_in_its_step_is_in_the_params():
    zeros = {"lstm/linear": {"w": np.zeros((D + H, 4 * H)), "b": np.zeros(4 * H)}}
    _, params = from_haiku(hk.LSTM, zeros)
    assert params.bias.tolist() == [0] * H + [1] * H + [0] * 2 * H


def test_one_of_several_cores_is_chosen_by_name():
    _, params = transformed("GRU")
    several = {"gru": params["gru"], "actor/~/gru_1": {k: 2 * v for k, v in params["gru"].items()}}
    _, own = from_haiku("GRU", several, "actor/~/gru_1")
    np.testing.assert_array_equal(own.w_in[:, H:], 2 * params["gru"]["w_i"][:, H:])
    with pytest.raises(ValueError, match=r"give name=.*'actor/~/gru_1', 'gru'"):
        from_haiku("GRU", several)


def test_what_has_no_equal_is_refused_by_name():
    _, params = transformed("GRU")
    cases = [
        (lambda: from_haiku("Conv1DLSTM", params), "Conv1DLSTM.*cores are"),
        (lambda: from_haiku(seqjax.GRU, params), "cores are"),
        (lambda: from_haiku("LSTM", params), r"give name=.*\['gru'\]"),
        (lambda: from_haiku("GRU", {"gru": {"w_i": params["gru"]["w_i"]}}), r"\['b', 'w_h', 'w_i'\], got \['w_i'\]"),
        (lambda: from_haiku("GRU", {"gru": {**params["gru"], "w_h": np.zeros((3, 12))}}), r"must have shape \(3, 9\)"),
        (lambda: to_haiku(seqjax.Simple(H), None), "activation='tanh' is not supported; only 'relu'"),
        (lambda: to_haiku(seqjax.GRU(H, reset="after"), None), "reset='after'"),
        (lambda: to_haiku(seqjax.LSTM(H, proj_dim=2), None), "proj_dim=2"),
        (lambda: to_haiku(seqjax.PeepholeLSTM(H), None), "PeepholeLSTM"),
    ]
    for call, match in cases:
        with pytest.raises(ValueError, match=match):
            call()


MISSHAPEN = {
    "GRU": [("w_i", (D, 3)), ("w_i", ()), ("w_h", (3, 12)), ("w_h", (12,)), ("b", (1,)), ("b", (3,)), ("b", (1, 12))],
    "LSTM": [("linear/w", (7, 12)), ("linear/w", (16,)), ("linear/w", (H, 16)), ("linear/b", (15,)), ("linear/b", ())],
    "VanillaRNN": [("linear/w", (D, 1)), ("linear_1/w", (4, 1)), ("linear/b", (1,)), ("linear_1/b", (1,))],
}


@pytest.mark.parametrize(("core", "leaf", "shape"), [(core, *case) for core in CORES for case in MISSHAPEN[core]])
def test_a_misshapen_weight_is_refused_by_name_and_not_broadcast(core, leaf, shape):
    _, params = transformed(core)
    with pytest.raises(ValueError, match=rf"{core}.*must (have shape|be a matrix).*got (shape )?\("):
        from_haiku(core, with_leaf(params, leaf, np.zeros(shape)))


@pytest.mark.parametrize(("core", "leaf"), [("GRU", "b"), ("LSTM", "linear/b"), ("VanillaRNN", "linear_1/b")])
def test_weights_of_several_dtypes_are_refused(core, leaf):
    _, params = transformed(core)
    bias = np.zeros({"GRU": 3, "LSTM": 4, "VanillaRNN": 1}[core] * H, "float32")
    with pytest.raises(ValueError, match=rf"of one dtype.*{leaf}': 'float32'"):
        from_haiku(core, with_leaf(params, leaf, bias))


def with_leaf(params, leaf, array):
    """haiku's params with another array, of the name below the core's path."""
    *module, name = leaf.split("/")
    path = next(path for path in params if path.split("/")[1:] == module)
    return {**params, path: {**params[path], name: array}}


def test_params_of_another_model_are_refused():
    cell = seqjax.LSTM(4)
    params = cell.init(jax.random.key(0), D)
    cases = [
        (seqjax.LSTM(5), params, r"w_in must have shape \(3, 20\), got \(3, 16\)"),
        (seqjax.LSTM(4, use_bias=False), params, "has no bias, but the params have one"),
        (cell, params._replace(w_rec=None), "w_rec is None"),
        (cell, params._replace(bias=jnp.zeros(16)), "bias is float64, its dtypes say float32"),
    ]
    for model, given, match in cases:
        with pytest.raises(ValueError, match=match):
            to_haiku(model, given)
