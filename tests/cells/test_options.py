# SPDX-License-Identifier: Apache-2.0
"""Initialization, dtypes, printing, equality and refusals of the cells."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import DTypes
from seqjax.engines import Scan

CELLS = [seqjax.Simple(8), seqjax.LSTM(8), seqjax.PeepholeLSTM(8), seqjax.GRU(8), seqjax.GRU(8, reset="after")]


def init(cell, in_dim=5):
    return cell.init(jax.random.key(0), in_dim)


def test_each_recurrent_matrix_is_orthogonal_and_each_input_matrix_glorot():
    params = init(seqjax.LSTM(8))
    for block in np.split(np.asarray(params.w_rec), 4, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (5 + 8))
    assert 0.8 * limit < np.abs(params.w_in).max() <= limit


def test_the_forget_gate_starts_open_and_all_other_biases_at_zero():
    for cell in (seqjax.LSTM(8), seqjax.PeepholeLSTM(8)):
        np.testing.assert_array_equal(init(cell).bias, np.repeat([0.0, 1.0, 0.0, 0.0], 8))
    assert not init(seqjax.GRU(8)).bias.any()


def test_chrono_spreads_memories_over_its_range():
    bias = np.split(np.asarray(init(seqjax.LSTM(500, bias_init=seqjax.initializers.Chrono(100))).bias), 4)
    np.testing.assert_array_equal(bias[0], -bias[1])
    memory = np.exp(bias[1])
    assert memory.min() >= 1
    assert memory.max() <= 99
    assert abs(memory.mean() - 50) < 5
    gru = np.split(np.asarray(init(seqjax.GRU(500, bias_init=seqjax.initializers.Chrono(100))).bias), 3)
    assert abs(np.exp(gru[0]).mean() - 50) < 5
    assert not gru[1].any()


def test_initializers_by_name_and_by_function():
    params = init(seqjax.GRU(8, w_in_init=jax.nn.initializers.ones, w_rec_init="zeros", bias_init="ones"))
    assert (params.w_in == 1).all()
    assert not params.w_rec.any()
    assert (params.bias == 1).all()


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_bfloat16_compute_stays_bfloat16_and_the_carry_is_what_was_asked(cell):
    cell = dataclasses.replace(cell, dtypes=seqjax.DTypes(compute="bfloat16", carry="float32"))
    params = init(cell)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    carry = cell.initial_carry(params, (3,))
    after, y = cell.step(params, carry, cell.project(params, jnp.ones((3, 5), jnp.float32)))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, after))} == {jnp.dtype("float32")}
    model = seqjax.RNN(cell)
    gradients = jax.grad(lambda p: model.apply(p, carry, jnp.ones((4, 3, 5), jnp.float32))[1].astype("float32").sum())(
        params
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_an_input_of_another_dtype_is_refused_not_cast():
    cell = seqjax.GRU(8)
    with pytest.raises(ValueError, match=r"computes in float32, got float64.*cast"):
        cell.project(init(cell), jnp.ones((3, 5), "float64"))


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_a_wrong_number_of_features_is_named(cell):
    with pytest.raises(ValueError, match=r"initialized for 5 features, got an input of shape .* with 6"):
        cell.project(init(cell), jnp.ones((3, 6), jnp.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: seqjax.LSTM(0), "hidden_dim must be a positive integer, got 0"),
        (lambda: seqjax.GRU(None), "hidden_dim must be a positive integer, got None"),
        (lambda: seqjax.LSTM(8, proj_dim=-1), "proj_dim must be a positive integer, got -1"),
        (lambda: seqjax.GRU(8, reset="later"), "reset must be one of .*'before', 'after'.*, got 'later'"),
        (lambda: seqjax.GRU(8, normalize="batch"), "normalize must be one of"),
        (lambda: seqjax.Simple(8, activation="tahn"), "Simple: activation: unknown activation 'tahn'"),
        (lambda: seqjax.GRU(8, recurrent_activation="tahn"), "GRU: recurrent_activation: unknown activation 'tahn'"),
        (lambda: seqjax.LSTM(8, use_bias="no"), "LSTM: use_bias must be True or False, got 'no'"),
        (lambda: Scan(adjoint=None), "Scan: adjoint must be True or False, got None"),
        (lambda: seqjax.LSTM(8, bias_init=np.zeros(8)), "LSTM: bias_init: unknown initializer array"),
        (lambda: seqjax.initializers.Ring("a"), "Ring: r_min must be a finite number, got 'a'"),
        (lambda: seqjax.Simple(8, w_in_init="glorot"), "Simple: w_in_init: unknown initializer 'glorot'"),
        (lambda: seqjax.LSTM(8, bias_init="constant"), "LSTM: bias_init: unknown initializer 'constant'.*'zeros'"),
        (lambda: seqjax.Dense(8, kernel_init="glorot"), "Dense: kernel_init: unknown initializer 'glorot'"),
        (lambda: init(seqjax.LSTM(8, bias_init=seqjax.initializers.KeepGate())), "an LSTM's is filled by ForgetGate"),
        (lambda: init(seqjax.MinGRU(8, bias_init=seqjax.initializers.KeepGate())), "a MinGRU's by WriteGate"),
        (lambda: init(seqjax.GRU(8, bias_init=seqjax.initializers.WriteGate())), "z of a GRU keeps the state"),
        (lambda: seqjax.cells.RecurrentDropout(seqjax.cells.MultiHead(seqjax.MinGRU(8), 2), 0.1), "offers 'seen'"),
        (lambda: seqjax.DTypes("int32"), "must be a floating dtype"),
        (lambda: seqjax.cells.Zoneout(seqjax.GRU(8), 1.0), "must be a probability"),
        (lambda: seqjax.cells.RecurrentDropout(seqjax.Simple(8, normalize="batch"), 0.1), "recurrent products"),
        (lambda: seqjax.cells.Zoneout(seqjax.GRU(8), None), "must be a probability"),
        (lambda: seqjax.cells.Zoneout(seqjax.Simple(8, normalize="batch"), 0.1), "no cell with batch normalization"),
        (lambda: seqjax.cells.RecurrentDropout(seqjax.GRU(8), "much"), "must be a probability"),
        (lambda: seqjax.GRU(8, dtypes="bfloat16"), "GRU: dtypes must be a seqjax.DTypes, .* got 'bfloat16'"),
        (lambda: seqjax.LRU(8, dtypes=jnp.bfloat16), "LRU: dtypes must be a seqjax.DTypes"),
        (lambda: seqjax.Dense(8, dtypes="bfloat16"), "Dense: dtypes must be a seqjax.DTypes"),
        (lambda: seqjax.DTypes(compute="narrow"), "must be a floating dtype such as 'float32', got 'narrow'"),
        (lambda: seqjax.GRU(8, activation=["tanh"]), "unknown activation"),
        (lambda: seqjax.LSTM(8, epsilon="small"), "epsilon must be positive and finite, got 'small'"),
        (lambda: seqjax.RGLRU(8, min_decay="slow"), "0 < min_decay < max_decay < 1, got min_decay='slow'"),
        (lambda: seqjax.engines.Relaxed(tol="tight"), "tol must be positive"),
        (lambda: seqjax.cells.LambdaCell(1, 2, 3), r"init_fn must be a function, called as init_fn\(.*got 1"),
        (lambda: init(seqjax.GRU(8, bias_init=seqjax.initializers.ForgetGate())), "KeepGate fills a bias"),
        (lambda: seqjax.initializers.Chrono(float("inf")), "Chrono: max_steps must be a finite number, got inf"),
        (lambda: seqjax.initializers.Uniform(-1, float("inf")), "Uniform: high must be a finite number, got inf"),
        (lambda: seqjax.initializers.Uniform(False, True), "Uniform: low must be a finite number, got False"),
        (lambda: seqjax.initializers.ForgetGate(True), "ForgetGate: value must be a finite number, got True"),
        (lambda: seqjax.initializers.ForgetGate(float("nan")), "ForgetGate: value must be a finite number, got nan"),
        (
            lambda: seqjax.layers.Wavefront("gru", 2, jax.make_mesh((1,), ("d",)), "d"),
            "Wavefront wraps a Cell, got 'gru'",
        ),
        (lambda: seqjax.engines.Scan(unroll=0), "unroll must be a positive integer"),
    ],
)
def test_unknown_options_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "model",
    [
        *CELLS,
        seqjax.LSTM(8, normalize="layer", bias_init=seqjax.initializers.Chrono(100)),
        seqjax.GRU(8, dtypes=seqjax.DTypes(compute=jnp.bfloat16)),
        seqjax.Serial(
            seqjax.Conv1D(20, width=4, stride=2, padding="valid"),
            seqjax.RNN(seqjax.GRU(20), seqjax.engines.Scan(unroll=2)),
            seqjax.Residual(seqjax.Bidirectional(seqjax.RNN(seqjax.LSTM(10)))),
            seqjax.Dense(10),
        ),
    ],
    ids=repr,
)
def test_a_model_prints_as_the_code_that_makes_it(model):
    names = vars(seqjax) | vars(seqjax.initializers) | vars(seqjax.engines)
    again = eval(repr(model), dict(names))
    assert again == model
    assert hash(again) == hash(model)


def test_a_field_that_takes_no_position_prints_with_its_name():
    @dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
    class Named(seqjax.base.Described):
        size: int
        rate: float = 0.5

    assert repr(Named(size=3)) == "Named(size=3)"


def test_zoneout_needs_the_output_in_the_carry():
    cell = seqjax.cells.Zoneout(seqjax.LRU(8), 0.1)
    params = init(cell)
    with pytest.raises(ValueError, match=r"has the output as `h`; that of LRU\(8\) does not"):
        Scan().run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((3, 2, 5), jnp.float32))


@pytest.mark.parametrize("number", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["zoneout", "dropout", "batch"])
def test_numbers_of_numpy_promote_nothing(kind, number):
    dtypes = seqjax.DTypes("bfloat16")
    cell = {
        "zoneout": seqjax.cells.Zoneout(seqjax.GRU(4, dtypes=dtypes), number(0.5)),
        "dropout": seqjax.cells.RecurrentDropout(seqjax.GRU(4, dtypes=dtypes), number(0.5)),
        "batch": seqjax.Simple(4, normalize="batch", epsilon=number(1e-3), dtypes=dtypes),
    }[kind]
    layer, xs = seqjax.Serial(seqjax.RNN(cell), seqjax.Dropout(number(0.5))), jnp.ones((3, 2, 5), "bfloat16")
    params = layer.init(jax.random.key(0), xs)
    for key in (None, jax.random.key(1)):
        assert layer.apply(params, layer.initial_carry(params, (2,)), xs, key=key)[1].dtype == "bfloat16"


def test_replace_changes_one_option():
    cell = dataclasses.replace(seqjax.LSTM(8), normalize="layer")
    assert cell == seqjax.LSTM(8, normalize="layer")
    assert cell != seqjax.LSTM(8)
    model = seqjax.Serial(seqjax.RNN(cell), seqjax.Dense(1))
    assert dataclasses.replace(model, layers=model.layers[:1]) == seqjax.Serial(seqjax.RNN(cell))


def test_the_core_imports_neither_optional_nor_heavy_packages():
    import subprocess
    import sys

    code = "import seqjax, sys; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"orbax", "rich", "matplotlib", "tyro", "chex", "pandas", "pvlib", "keras", "torch"} & set(loaded)


@pytest.mark.parametrize("make", [seqjax.LSTM, functools.partial(seqjax.GRU, reset="after"), seqjax.Simple])
def test_gradients_of_biases_are_summed_in_float32_where_the_computation_is_bfloat16(make):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(100, 64, 1)), jnp.float32)
    params = make(8).init(jax.random.key(0), 1)

    def gradient(dtypes):
        cell = make(8, dtypes=dtypes)
        carry = cell.initial_carry(params, (64,))
        return jax.grad(lambda p: jnp.sum(Scan().run(cell, p, carry, xs)[1].astype(jnp.float32)))(params).bias

    exact, rough = gradient(DTypes()), gradient(DTypes(compute="bfloat16", carry="float32"))
    np.testing.assert_allclose(rough, exact, atol=0.03 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("name", ["Simple", "LSTM", "PeepholeLSTM", "GRU", "MinGRU", "IndRNN", "DiagonalGRU", "RGLRU"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_params_are_those_of_float32_rounded(name, dtype):
    def params(dtype):
        return getattr(seqjax, name)(4, dtypes=DTypes(params=dtype)).init(jax.random.key(0), 3)

    for narrow, wide in zip(jax.tree.leaves(params(dtype)), jax.tree.leaves(params("float32")), strict=True):
        assert narrow.dtype == dtype
        np.testing.assert_allclose(narrow.astype("float32"), wide, rtol=2**-7, atol=1e-3)


def test_a_gru_step_knows_before_and_after_alone():
    cell = seqjax.GRU(4)
    params = init(cell)
    z = jnp.zeros((2, 12), jnp.float32)
    with pytest.raises(ValueError, match="gru_step: reset must be"):
        seqjax.cells.gru_step(params, cell.initial_carry(params, (2,)), z, reset="foo")


GATED = [seqjax.LSTM, seqjax.PeepholeLSTM, seqjax.GRU, seqjax.DiagonalGRU, seqjax.DiagonalLSTM]


@pytest.mark.parametrize("kind", GATED)
def test_a_gate_function_that_is_given_is_used_as_it_is(kind):
    cell = kind(4, recurrent_activation=jax.nn.sigmoid)
    params = jax.tree.map(jnp.zeros_like, init(cell))
    params = params._replace(bias=jnp.full_like(params.bias, -30.0))  # where σ through tanh has no correct digit
    z = cell.project(params, jnp.zeros((2, 5), jnp.float32))
    _, _, kept = cell.step_residuals(params, cell.initial_carry(params, (2,)), z)
    for gate in (kept.z, kept.r) if hasattr(kept, "r") else (kept.f, kept.o):
        np.testing.assert_array_equal(gate, jax.nn.sigmoid(jnp.full((2, 4), -30.0, gate.dtype)))
