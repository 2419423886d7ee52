# SPDX-License-Identifier: Apache-2.0
"""What a run refuses, whatever the engine, and what of a user's own cell it takes as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import seqjax
from seqjax.base import Cell
from seqjax.cells import LambdaCell, MultiHead
from seqjax.engines import Associative, Auto, Checkpointed, Newton, Relaxed, Scan, Truncated

KEY = jax.random.key(0)
GRU = seqjax.GRU(4)
LENGTHS = {"short": 5, "long": 2000}


def run(engine, cell=GRU, params=None, carry=None, T=5, **options):
    params = cell.init(KEY, 3) if params is None else params
    carry = cell.initial_carry(params, (2,)) if carry is None else carry
    return engine.run(cell, params, carry, jnp.ones((T, 2, 3), jnp.float32), **options)


@pytest.mark.parametrize("T", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("engine", [Auto(), Scan(), Checkpointed()], ids=repr)
def test_a_wrong_run_is_refused_whatever_its_length(engine, T):
    params = GRU.init(KEY, 3)
    carry = GRU.initial_carry(params, (2,))
    cases = [
        (jnp.ones(T), carry, {}, "at least a time and a feature axis"),
        (jnp.float32(1), carry, {}, "at least a time and a feature axis"),
        (jnp.ones((T, 2, 3)), (), {}, "the carry does not fit"),
        (jnp.ones((T, 3, 3)), carry, {}, "the carry does not fit"),
        (jnp.ones((T, 2, 3)).tolist(), carry, {}, "xs must be an array, got list"),
        (jnp.ones((T, 2, 3)), carry, {"mask": [[True]]}, "mask must be an array, got list"),
        (jnp.ones((T, 2, 3)), carry, {"resets": 1.0}, "resets must be an array, got float"),
    ]
    for xs, start, options, message in cases:
        with pytest.raises(ValueError, match=message):
            engine.run(GRU, params, start, xs, **options)


@pytest.mark.parametrize(
    ("cell", "other", "message"),
    [
        (GRU, seqjax.LSTM(4), r"GRU\(4\) has params GRUParams, got LSTMParams"),
        (seqjax.LSTM(4), GRU, "has params LSTMParams, got GRUParams"),
        (GRU, seqjax.GRU(4, reset="after"), "has no bias_rec with these options, and the params have one"),
        (seqjax.GRU(4, reset="after"), GRU, "has bias_rec with these options, and the params have none"),
        (seqjax.GRU(4, normalize="layer"), GRU, "give the cell the options that the params were drawn with"),
        (seqjax.GRU(4, use_bias=False), GRU, "has no bias with these options"),
        (seqjax.LSTM(4), seqjax.PeepholeLSTM(4), "has no peephole"),
        (seqjax.GRU(8), GRU, r"has, for inputs of 3 features .*, w_in of shape \(3, 24\), got \(3, 12\)"),
        (MultiHead(GRU, 3), MultiHead(GRU, 2), r"w_in of shape \(3, 3, 12\), got \(2, 3, 12\)"),
    ],
    ids=repr,
)
def test_params_of_another_cell_are_refused(cell, other, message):
    params = other.init(KEY, 3)
    for engine in (Auto(), Scan(), Newton()):
        with pytest.raises(ValueError, match=message):
            run(engine, cell, params, cell.initial_carry(cell.init(KEY, 3), (2,)))


@pytest.mark.parametrize("given", [tuple, list, lambda params: params._asdict()])
def test_params_whose_names_are_lost_are_refused(given):
    carry = GRU.initial_carry(GRU.init(KEY, 3), (2,))
    with pytest.raises(ValueError, match=r"has params GRUParams, got (tuple|list|dict)"):
        run(Scan(), params=given(GRU.init(KEY, 3)), carry=carry)


def test_params_may_be_sparse():
    params = GRU.init(KEY, 3)
    scattered = params._replace(w_rec=sparse.BCOO.fromdense(params.w_rec))
    np.testing.assert_allclose(run(Scan(adjoint=False), params=scattered)[1], run(Scan())[1], rtol=1e-5)


def test_params_of_a_cell_that_draws_none_are_taken_as_they_are():
    def imported(key, in_dim):
        raise NotImplementedError("imported weights only")

    def step(params, h, x):
        return (h + x @ params.w_in,) * 2

    cell = LambdaCell(imported, step, lambda params, batch_shape: jnp.zeros((*batch_shape, 12), jnp.float32))
    assert run(Scan(), cell, GRU.init(KEY, 3), jnp.zeros((2, 12), jnp.float32))[1].shape == (5, 2, 12)


def test_inputs_of_another_size_are_refused():
    params = GRU.init(KEY, 2)
    with pytest.raises(ValueError, match=r"3 features \(axis -1 of xs\), w_in of shape \(3, 12\), got \(2, 12\)"):
        run(Auto(), params=params)


@dataclasses.dataclass(frozen=True, repr=False)
class Noisy(Cell):
    """An affine recurrence whose step draws noise."""

    capabilities = frozenset({"affine"})
    stochastic = True

    def init(self, key, in_dim):
        return {"w": jnp.ones((in_dim, 4), jnp.float32)}

    def initial_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, 4), jnp.float32)

    def step(self, params, h, x, key=None):
        noise = 0 if key is None else jax.random.normal(key, h.shape, jnp.float32)
        return (0.5 * h + x @ params["w"] + noise,) * 2

    def coefficients(self, params, z):
        return jnp.full(4, 0.5, jnp.float32), z @ params["w"]

    def readout(self, params, h, z):
        return h


def test_a_step_that_draws_noise_is_trained_by_default_whatever_else_the_cell_offers():
    _, ys = run(Auto(), Noisy(), key=KEY)
    np.testing.assert_array_equal(ys, run(Scan(), Noisy(), key=KEY)[1])
    np.testing.assert_allclose(run(Auto(), Noisy())[1], run(Associative(), Noisy())[1], rtol=1e-6)


def test_integer_features_may_be_masked_where_a_cast_was_asked_for():
    cell = seqjax.GRU(4, dtypes=seqjax.DTypes(compute="float32"))
    params = cell.init(KEY, 3)
    carry = cell.initial_carry(params, (2,))
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (7, 2, 3)), jnp.uint8)
    mask = jnp.ones((7, 2), bool).at[5:, 0].set(False)
    for engine in (Auto(), Scan(), Checkpointed(3), Truncated(3), Relaxed(3), Newton()):
        ys = engine.run(cell, params, carry, pixels, mask=mask)[1]
        expected = engine.run(cell, params, carry, pixels.astype(jnp.float32), mask=mask)[1]
        np.testing.assert_array_equal(ys, expected)


def counting(key_in_params=False):
    """A user's cell with a step count in its carry and a number, or a PRNG key, that is not differentiable."""
    return LambdaCell(
        lambda key, in_dim: {
            "w": jnp.full((in_dim, 4), 0.1),
            "n": jax.random.key(1) if key_in_params else jnp.array(3),
        },
        lambda params, carry, x: ((jnp.tanh(carry[0] + x @ params["w"]), carry[1] + 1), carry[0]),
        lambda params, batch_shape: (jnp.zeros((*batch_shape, 4)), jnp.zeros(batch_shape, int)),
    )


@pytest.mark.parametrize("engine", [Checkpointed(4), Checkpointed(3), Checkpointed(2, levels=2)], ids=repr)
@pytest.mark.parametrize("key_in_params", [False, True], ids=["number", "key"])
@pytest.mark.parametrize("with_resets", [False, True], ids=["plain", "resets"])
def test_what_is_not_differentiable_does_not_stop_a_gradient_in_segments(engine, key_in_params, with_resets):
    cell = counting(key_in_params)
    params = cell.init(KEY, 3)
    carry = cell.initial_carry(params, (2,))
    xs = jax.random.normal(KEY, (8, 2, 3))
    resets = jnp.zeros((8, 2), bool).at[3].set(True) if with_resets else None

    def gradients(engine):
        def loss(w, xs):
            return jnp.sum(engine.run(cell, params | {"w": w}, carry, xs, resets=resets)[1] ** 2)

        return jax.grad(loss, argnums=(0, 1))(params["w"], xs)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradients(engine), gradients(Scan()))


@pytest.mark.parametrize("cell", [GRU, seqjax.LSTM(4), seqjax.Simple(4), seqjax.MinGRU(4)], ids=repr)
def test_a_model_is_exported_with_a_symbolic_batch_and_length(cell):
    layer = seqjax.RNN(cell)
    params = layer.init(KEY, jnp.ones((5, 2, 3), jnp.float32))

    def outputs(xs):
        return layer.apply(params, layer.initial_carry(params, xs.shape[1:-1]), xs)[1]

    xs = jax.random.normal(KEY, (6, 7, 3), jnp.float32)
    for shape in ("6, b, 3", "t, 7, 3", "t, b, 3"):
        like = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
        exported = jax.export.export(jax.jit(outputs))(like)
        np.testing.assert_allclose(exported.call(xs), outputs(xs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", [Checkpointed(4), Truncated(4)], ids=repr)
def test_a_symbolic_length_is_refused_by_engines_that_cut_it(engine):
    layer = seqjax.RNN(GRU, engine)
    params = layer.init(KEY, jnp.ones((5, 2, 3), jnp.float32))

    def outputs(xs):
        return layer.apply(params, layer.initial_carry(params, (2,)), xs)[1]

    like = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 2, 3"), jnp.float32)
    with pytest.raises(ValueError, match=r"whose length it knows, got T = t; export with Scan\(\)"):
        jax.export.export(jax.jit(outputs))(like)


def test_a_padded_start_divides_nothing_by_zero():
    mask = jnp.ones((9, 2), bool).at[:3].set(False)
    with jax.debug_nans(True):
        ys = run(Newton(), T=9, mask=mask)[1]
    np.testing.assert_allclose(ys, run(Scan(), T=9, mask=mask)[1], atol=1e-5)


def test_a_cell_without_a_carry_is_refused_where_carries_are_solved_for():
    cell = LambdaCell(lambda key, in_dim: {}, lambda params, carry, x: (carry, x), lambda params, batch_shape: ())
    assert run(Scan(), cell, {}, ())[1].shape == (5, 2, 3)
    for engine in (Newton(), Relaxed(2)):
        with pytest.raises(ValueError, match=r"iterates on a carry, and .* has none; use Scan or Checkpointed"):
            run(engine, cell, {}, ())
