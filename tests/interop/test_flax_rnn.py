# SPDX-License-Identifier: Apache-2.0
"""seqjax' RNN for Flax in the place of Flax's own: same calls, same params, same numbers."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import seqjax
from seqjax.cells import Zoneout
from seqjax.engines import Checkpointed, Scan
from seqjax.interop.flax import linen as ours_linen
from seqjax.interop.flax import nnx as ours_nnx
from seqjax.testing import assert_close, reference_loop
from tests.interop.flax_models import B, D, H, T, drawn, flax_cell, inputs, linen_cell, nnx_cell, run_flax, with_params

PAIRS = {"linen": (nn.RNN, ours_linen.RNN), "nnx": (nnx.RNN, ours_nnx.RNN)}
LENGTHS = jnp.array([4, T])
VALID = (np.arange(T) < np.array(LENGTHS)[:, None])[..., None]  # [B, T, 1]


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_signature_and_defaults_are_those_of_flax(api):
    flax_rnn, our_rnn = PAIRS[api]
    for method in ("__init__", "__call__"):
        theirs, ours = (inspect.signature(getattr(rnn, method)).parameters for rnn in (flax_rnn, our_rnn))
        for name, parameter in theirs.items():
            assert (name, ours[name].kind, ours[name].default) == (name, parameter.kind, parameter.default)


def test_linen_params_have_the_names_and_first_values_of_flax():
    xs = inputs(B, T, D, dtype="float32")
    cell = nn.LSTMCell(H)
    theirs, ours = (jax.jit(rnn(cell).init)(jax.random.key(0), xs) for rnn in PAIRS["linen"])
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("cell", [nn.GRUCell(H), nn.MGUCell(H), seqjax.GRU(H)])
def test_params_are_drawn_in_apply_where_they_may_change_and_are_missing(cell):
    xs, rngs = inputs(B, T, D, dtype="float32"), {"params": jax.random.key(0)}
    model = ours_linen.RNN(cell)
    ys, drawn = model.apply({}, xs, mutable=["params"], rngs=rngs)
    assert_close(drawn, model.init(jax.random.key(0), xs), 0)
    again, kept = model.apply(drawn, xs, mutable=["params"])
    assert_close((again, kept), (ys, drawn), 0)


@pytest.mark.parametrize(
    ("api", "name", "options", "lengths"),
    [
        ("linen", "LSTMCell", {}, LENGTHS),
        ("linen", "MGUCell", {"reverse": True}, LENGTHS),
        ("nnx", "GRUCell", {"reverse": True, "keep_order": True}, LENGTHS),
        ("nnx", "LSTMCell", {"reverse": True}, LENGTHS),
        ("linen", "GRUCell", {"time_major": True, "reverse": True}, None),
    ],
)
def test_outputs_carries_and_gradients_are_those_of_flax(api, name, options, lengths):
    cell, tree = flax_cell(api, name)
    xs, weights = inputs(B, T, D), inputs(B, T, H, seed=2)
    weights = jnp.where(VALID, weights, 0) if lengths is not None else weights
    start = jax.tree.map(lambda a: inputs(*a.shape, seed=3), _carry_like(name))
    if options.get("time_major"):
        xs, weights = jnp.swapaxes(xs, 0, 1), jnp.swapaxes(weights, 0, 1)

    def run(rnn):
        def loss(tree, xs, start):
            carry, ys = run_flax(
                api, rnn, cell, tree, xs, initial_carry=start, seq_lengths=lengths, return_carry=True, **options
            )
            ys = jnp.where(weights == 0, 0, ys)  # Flax leaves something in padded steps
            return jnp.sum(ys * weights) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry)), (carry, ys)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(tree, xs, start)

    expected, actual = map(run, PAIRS[api])
    assert_close(actual, expected, 1e-12)


def _carry_like(name):
    h = jax.ShapeDtypeStruct((B, H), jnp.float64)
    return (h, h) if name == "LSTMCell" else h


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_options_of_the_layer_are_overridden_by_those_of_a_call(api):
    cell, tree = flax_cell(api, "SimpleCell")
    xs = inputs(B, T, D)
    flax_rnn, our_rnn = PAIRS[api]
    options = {"time_major": True, "return_carry": True, "reverse": True, "keep_order": True, "unroll": 2}
    call = {"time_major": False, "return_carry": False, "reverse": False}
    for given in ({}, call):
        expected = run_flax(api, lambda cell: flax_rnn(cell, **options), cell, tree, xs, **given)
        actual = run_flax(api, lambda cell: our_rnn(cell, **options), cell, tree, xs, **given)
        assert_close(actual, expected, 1e-12)


def test_the_engine_is_a_choice():
    cell, tree = linen_cell("LSTMCell")
    xs = inputs(B, 9, D)

    def loss(engine):
        def of(tree):
            return jnp.sum(run_flax("linen", lambda cell: ours_linen.RNN(cell, engine=engine), cell, tree, xs) ** 2)

        return jax.jit(jax.value_and_grad(of))(tree)

    assert_close(loss(Checkpointed(3)), loss(Scan(adjoint=False)), 1e-12)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_it_stands_in_flax_bidirectional(api):
    library = {"linen": nn, "nnx": nnx}[api]
    (ahead, tree), (behind, other) = flax_cell(api, "GRUCell"), flax_cell(api, "LSTMCell")
    xs = inputs(B, T, D)

    def run(rnn):
        module = library.Bidirectional(rnn(ahead), rnn(behind), return_carry=True)
        if api == "nnx":
            return nnx.jit(lambda module, xs: module(xs, seq_lengths=LENGTHS))(module, xs)
        variables = {"params": {"forward_rnn": {"cell": tree}, "backward_rnn": {"cell": other}}}
        return jax.jit(lambda xs: module.apply(variables, xs, seq_lengths=LENGTHS))(xs)

    (theirs, their_ys), (carry, ys) = map(run, PAIRS[api])
    assert_close(carry, theirs, 1e-12)
    assert_close(ys, jnp.where(VALID, their_ys, 0), 1e-12)


def loop(cell, params, xs):
    """A seqjax cell over `xs [B, T, D]`, one step at a time."""
    carry, ys = reference_loop(cell, params, cell.initial_carry(params, (B,)), jnp.swapaxes(xs, 0, 1))
    return carry, jnp.swapaxes(ys, 0, 1)


class Classifier(nnx.Module):
    """A seqjax cell inside an nnx model."""

    def __init__(self, rngs):
        self.rnn = ours_nnx.RNN(seqjax.LSTM(H, normalize="layer"), in_features=D, rngs=rngs)
        self.head = nnx.Linear(H, 1, rngs=rngs)

    def __call__(self, xs, lengths):
        return self.head(self.rnn(xs, seq_lengths=lengths))


def test_a_seqjax_cell_trains_inside_an_nnx_model():
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    xs = inputs(B, T, D, dtype="float32")

    @nnx.jit
    def train_step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(xs, LENGTHS) - 1) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(train_step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    cell, params = model.rnn.cell, jax.tree.map(lambda leaf: leaf[...], nnx.to_pure_dict(nnx.state(model.rnn.params)))
    assert sorted(params) == ["bias", "offset", "scale", "w_in", "w_rec"]
    params = seqjax.cells.LSTMParams(**{"peephole": None, "w_proj": None, **params})
    expected = loop(cell, params, xs)[1]
    np.testing.assert_allclose(model.rnn(xs), expected, atol=1e-6)


def test_a_seqjax_cell_inside_a_linen_model_has_params_of_its_own_names():
    cell = seqjax.GRU(H, "after")
    model = nn.Sequential([ours_linen.RNN(cell), nn.Dense(1)])
    xs = inputs(B, T, D, dtype="float32")
    variables = jax.jit(model.init)(jax.random.key(0), xs)
    own = variables["params"]["layers_0"]
    assert sorted(own) == ["bias", "bias_rec", "w_in", "w_rec"]
    np.testing.assert_allclose(own["w_rec"][:, :H].T @ own["w_rec"][:, :H], np.eye(H), atol=1e-5)  # drawn, orthogonal
    params = seqjax.cells.GRUParams(**own)
    carry, expected = loop(cell, params, xs)
    our_carry, ys = jax.jit(ours_linen.RNN(cell, return_carry=True).apply)({"params": own}, xs)
    np.testing.assert_allclose(ys, expected, atol=1e-6)
    np.testing.assert_allclose(our_carry.h, carry.h, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda variables: jnp.sum(model.apply(variables, xs) ** 2)))(variables)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients))


def test_noise_in_the_recurrence_is_for_training_alone():
    cell, xs = Zoneout(seqjax.Simple(H), 0.5), inputs(B, T, D, dtype="float32")
    linen = ours_linen.RNN(cell)
    variables = {"params": drawn(cell)._asdict()}
    in_nnx = ours_nnx.RNN(cell, in_features=D, rngs=nnx.Rngs(0))

    @jax.jit
    def run_linen(key):
        return linen.apply(variables, xs, rngs=None if key is None else {"dropout": key})

    @nnx.jit
    def run_nnx(key):
        return in_nnx(xs, rngs=None if key is None else nnx.Rngs(dropout=key))

    for run in (run_linen, run_nnx):
        calm, one, two = run(None), run(jax.random.key(1)), run(jax.random.key(2))
        assert not np.allclose(one, calm)
        assert not np.allclose(one, two)
        np.testing.assert_array_equal(one, run(jax.random.key(1)))


@pytest.mark.parametrize(
    ("rngs", "trains"),
    [
        (lambda: nnx.Rngs(0, dropout=1), True),
        (lambda: nnx.Rngs(0), True),
        (lambda: nnx.Rngs(params=0, carry=1), False),
        (lambda: nnx.Rngs(dropout=1).dropout, True),
        (lambda: nnx.Rngs(0).carry, False),
    ],
)
def test_noise_is_drawn_where_flax_finds_the_stream_dropout(rngs, trains):
    model = ours_nnx.RNN(Zoneout(seqjax.Simple(H), 0.5), in_features=D, rngs=nnx.Rngs(0))
    xs = inputs(B, T, D, dtype="float32")
    one, two = model(xs, rngs=rngs()), model(xs, rngs=rngs())
    np.testing.assert_array_equal(one, two)
    assert np.array_equal(one, model(xs)) != trains
    both = nnx.Bidirectional(model, model)
    if isinstance(stream := rngs(), nnx.RngStream):
        assert np.array_equal(both(xs, rngs=stream), both(xs)) != trains


class Dropping(nnx.RNNCellBase):
    """An nnx cell that drops units of its carry."""

    num_feature_axes = 1

    def __init__(self, rngs):
        self.linear = nnx.Linear(D + H, H, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], H), jnp.float32)

    def __call__(self, carry, x):
        y = jnp.tanh(self.linear(jnp.concatenate([self.dropout(carry), x], -1)))
        return y, y


class LinenDropping(nn.RNNCellBase):
    """The same in linen."""

    deterministic: bool = False
    num_feature_axes = 1

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], H), jnp.float32)

    @nn.compact
    def __call__(self, carry, x):
        carry = nn.Dropout(0.5, deterministic=self.deterministic)(carry)
        y = jnp.tanh(nn.Dense(H)(jnp.concatenate([carry, x], -1)))
        return y, y


def test_a_flax_cell_keeps_its_own_noise():
    xs = inputs(B, T, D, dtype="float32")
    model = ours_nnx.RNN(Dropping(nnx.Rngs(0)))
    run = nnx.jit(lambda model: model(xs))
    assert not np.allclose(run(model), run(model))  # the stream goes on
    model.eval()
    np.testing.assert_array_equal(run(model), run(model))
    np.testing.assert_allclose(run(model), nnx.RNN(model.cell)(xs), atol=1e-6)

    noisy, calm = LinenDropping(), LinenDropping(deterministic=True)
    variables = {
        "params": {
            "cell": {"Dense_0": {"kernel": inputs(D + H, H, dtype="float32"), "bias": inputs(H, dtype="float32")}}
        }
    }
    apply = jax.jit(lambda key: ours_linen.RNN(noisy).apply(variables, xs, rngs={"dropout": key}))
    assert not np.allclose(apply(jax.random.key(0)), apply(jax.random.key(1)))
    actual, expected = (jax.jit(lambda rnn=rnn: rnn(calm).apply(variables, xs))() for rnn in (ours_linen.RNN, nn.RNN))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_what_means_nothing_to_an_engine_is_refused_by_name():
    xs = inputs(B, T, D)
    gru, tree = linen_cell("GRUCell")
    nnx_gru, _ = nnx_cell("GRUCell")
    variables = {"params": {"cell": tree}}
    cases = [
        (lambda: ours_linen.RNN(gru, variable_carry="state").apply(variables, xs), "variable_carry='state'"),
        (lambda: ours_linen.RNN(gru, unroll=2, engine=Checkpointed()).apply(variables, xs), r"Scan\(unroll=2\)"),
        (lambda: ours_linen.RNN(gru).apply(variables, xs, seq_lengths=jnp.ones(3, int)), r"batch's shape \(2,\)"),
        (lambda: ours_linen.RNN(gru).apply(variables, xs, seq_lengths=jnp.ones(2)), "lengths must be integers"),
        (lambda: ours_linen.RNN(gru).apply(variables, xs[0, 0]), "at least a time and a feature axis"),
        (lambda: ours_linen.RNN("GRU").apply(variables, xs), "a flax.linen cell or a seqjax Cell, got str"),
        (lambda: ours_nnx.RNN(nnx_gru, broadcast_rngs="dropout"), "broadcast_rngs='dropout'"),
        (lambda: ours_nnx.RNN(nnx_gru, in_features=D), "in_features is for a seqjax cell"),
        (lambda: ours_nnx.RNN(seqjax.GRU(H)), "give in_features and rngs"),
        (lambda: ours_nnx.RNN(gru), "a flax.nnx cell or a seqjax Cell, got GRUCell"),
    ]
    for call, match in cases:
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("option", [{"residual": True}, {"carry_init": nn.initializers.ones}])
def test_a_flax_cell_with_options_of_its_own_is_run_by_its_own_step(option):
    cell, tree = linen_cell("SimpleCell", **option)
    xs = inputs(B, T, D)
    expected, actual = (run_flax("linen", rnn, cell, tree, xs) for rnn in PAIRS["linen"])
    assert_close(actual, expected, 1e-12)
    plain = run_flax("linen", ours_linen.RNN, *linen_cell("SimpleCell"), xs)
    assert not np.allclose(actual, plain)


def test_an_nnx_subclass_is_run_by_its_own_step():
    class Scaled(nnx.GRUCell):
        def __call__(self, carry, inputs):
            carry, y = super().__call__(carry, inputs)
            return carry, 2 * y

    _, tree = nnx_cell("GRUCell")
    cell = with_params(nnx.eval_shape(lambda: Scaled(D, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))), tree)
    xs = inputs(B, T, D)
    expected, actual = (run_flax("nnx", rnn, cell, tree, xs) for rnn in PAIRS["nnx"])
    assert_close(actual, expected, 1e-12)
