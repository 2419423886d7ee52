# SPDX-License-Identifier: Apache-2.0
"""Engines that cut the sequence: `Checkpointed` by memory, `Truncated` by gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seqjax
from seqjax.cells import RGLRU, DiagonalLSTM, IndRNN, MinLSTM
from seqjax.engines import Associative, Auto, Checkpointed, Newton, Relaxed, Scan, Truncated, auto
from seqjax.testing import assert_close, example, reference_loop, value_and_gradients
from tests.common import F64, assert_equals_loop, gradients, runs

LSTM = seqjax.LSTM(3, dtypes=F64)


@settings(max_examples=4, deadline=None)
@given(options=runs(30), segment=st.none() | st.integers(1, 12), levels=st.integers(1, 3), adjoint=st.booleans())
def test_segments_of_any_size_give_the_numbers_of_the_loop(options, segment, levels, adjoint):
    assert_equals_loop(LSTM, Checkpointed(segment, levels, Scan(adjoint=adjoint)), *example(LSTM, **options))


def detached_loop(cell, params, carry, xs, *, window, **flags):
    """The reference loop that detaches the carry before steps window, 2 window, ..."""
    outputs = []
    for start in range(0, xs.shape[0], window):
        carry = jax.lax.stop_gradient(carry) if start else carry
        piece = {name: None if flag is None else flag[start : start + window] for name, flag in flags.items()}
        carry, ys = reference_loop(cell, params, carry, xs[start : start + window], **piece)
        outputs.append(ys)
    return carry, jnp.concatenate(outputs)


@settings(max_examples=5, deadline=None)
@given(options=runs(20), window=st.integers(1, 24), adjoint=st.booleans())
def test_truncated_gradients_are_those_of_a_detached_loop(options, window, adjoint):
    params, carry, xs, mask, resets = example(LSTM, **options)
    flags = {"mask": mask, "resets": resets}
    engine = Truncated(window, Scan(adjoint=adjoint))
    expected = value_and_gradients(functools.partial(detached_loop, window=window), LSTM, params, carry, xs, **flags)
    assert_close(gradients(engine, LSTM, params, carry, xs, **flags), expected, 1e-10)


@pytest.mark.parametrize("cut", [Checkpointed, Truncated])
def test_hessian_vector_products_pass_through_segments_inside_segments(cut):
    params, carry, xs, *_ = example(LSTM, T=13)

    def product(engine):
        def loss(xs):
            return jnp.sum(jnp.sin(engine.run(LSTM, params, carry, xs)[1]))

        return jax.jit(lambda xs: jax.jvp(jax.grad(loss), (xs,), (jnp.cos(xs),))[1])(xs)

    assert_close(product(cut(6, inner=Checkpointed(2))), product(cut(6, inner=Scan(adjoint=False))), 1e-10)


def temporaries(engine, T, cell=None, reduce=False):
    """Bytes of temporaries of a compiled gradient of the sum of all outputs."""
    cell = cell or seqjax.GRU(32)
    params = jax.eval_shape(lambda key: cell.init(key, 8), jax.random.key(0))
    carry = jax.eval_shape(lambda p: cell.initial_carry(p, (4,)), params)
    xs = jax.ShapeDtypeStruct((T, 4, 8), jnp.float32)

    def loss(params, carry, xs):
        return engine.run(cell, params, carry, xs)[1].sum()

    return jax.jit(jax.grad(loss)).lower(params, carry, xs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("engine", [Checkpointed(), Truncated(150)], ids=repr)
@pytest.mark.parametrize("T", [20_000, 20_011])  # a prime
def test_segments_keep_an_order_of_magnitude_less_than_the_whole(engine, T):
    outputs = T * 4 * 32 * 4
    whole, cut = (temporaries(engine, T) for engine in (Scan(), engine))
    assert cut < whole / 5
    assert cut < 2.5 * outputs  # the outputs and their cotangent themselves, and little more


@pytest.mark.parametrize(
    ("engine", "cell", "T"),
    [
        (Scan(), seqjax.GRU(64), 5000),
        (Scan(adjoint=False), seqjax.LSTM(64), 5000),
        (Checkpointed(), seqjax.LSTM(64), 100_000),
        (Checkpointed(levels=2), seqjax.GRU(64), 100_000),
        (Truncated(150), seqjax.GRU(64), 100_000),
        (Associative("scan"), RGLRU(64), 100_000),
        (Associative("tree"), MinLSTM(64), 2000),
        (Relaxed(), seqjax.Simple(64), 5000),
        (Relaxed(), seqjax.LSTM(64), 5000),
        (Newton(), seqjax.GRU(16), 1000),
        (Newton(), DiagonalLSTM(64), 1000),
        (Newton(jacobian="diagonal"), seqjax.LSTM(64), 1000),
        (Newton(window=250), IndRNN(64), 1000),
    ],
    ids=repr,
)
def test_the_plan_foretells_what_a_gradient_needs(engine, cell, T):
    params = jax.eval_shape(lambda key: cell.init(key, 64), jax.random.key(0))
    carry = jax.eval_shape(lambda p: cell.initial_carry(p, (8,)), params)
    xs = jax.ShapeDtypeStruct((T, 8, 64), jnp.float32)
    ys = jax.eval_shape(lambda *arrays: engine.run(cell, *arrays)[1], params, carry, xs)

    def gradient(params, carry, xs, d_ys):
        ys, pull = jax.vjp(lambda params: engine.run(cell, params, carry, xs)[1], params)
        return ys, pull(d_ys)

    needed = jax.jit(gradient).lower(params, carry, xs, ys).compile().memory_analysis().temp_size_in_bytes
    assert 0.5 < engine.plan(cell, params, carry, xs).memory / needed < 2


@pytest.mark.parametrize("most", [0, 2**26])
@pytest.mark.parametrize(("cell", "T"), [(LSTM, 5), (LSTM, 1500), (seqjax.LRU(3, dtypes=F64), 5)], ids=repr)
def test_auto_gives_the_numbers_of_the_loop(cell, T, most, monkeypatch):
    monkeypatch.setattr(auto, "KEPT", most)
    params, carry, xs, mask, resets = example(cell, T=T, batch_shape=(), masked=True, with_resets=True)
    flags = {"mask": mask, "resets": resets}
    expected = value_and_gradients(
        reference_loop if T == 5 else Scan(adjoint=False).run, cell, params, carry, xs, **flags
    )
    assert_close(gradients(Auto(), cell, params, carry, xs, **flags), expected, 1e-10)


def test_auto_runs_what_explain_says(capsys):
    model = seqjax.Serial(
        seqjax.Conv1D(4, width=4, stride=4, padding="valid"),
        seqjax.RNN(seqjax.GRU(8)),
        seqjax.Bidirectional(seqjax.RNN(seqjax.LSTM(8), Scan())),
        seqjax.Dense(1),
    )
    rows = seqjax.explain(model, jax.ShapeDtypeStruct((4_000_000, 2, 3), np.float32))
    assert [row.engine for row in rows] == ["", "Checkpointed()", "Scan()", "Scan()", ""]
    assert [row.depth for row in rows] == [1, 1_000_000, 1_000_000, 1_000_000, 1]
    assert "T >= 1024" in rows[1].why
    assert capsys.readouterr().out.count("LSTM(8)") == 2


@pytest.mark.parametrize(
    ("T", "B", "expected"),
    [
        (1023, 10_000, Scan()),  # short, whatever it keeps
        (65536, 1, Scan()),  # z, r and g of 64 units take 768 bytes: 48 MiB
        (65536, 2, Checkpointed()),
        (87381, 1, Scan()),  # 64 MiB less 256 bytes
        (87382, 1, Checkpointed()),
    ],
)
def test_auto_recomputes_only_what_is_long_and_large(T, B, expected):
    cell = seqjax.GRU(64)
    params = jax.eval_shape(lambda key: cell.init(key, 64), jax.random.key(0))
    carry = jax.eval_shape(lambda params: cell.initial_carry(params, (B,)), params)
    assert Auto().choose(cell, params, carry, jax.ShapeDtypeStruct((T, B, 64), np.float32))[0] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checkpointed(0), "segment must be a positive integer, got 0"),
        (lambda: Checkpointed(levels=0), "levels must be a positive integer"),
        (lambda: Truncated(0), "window must be a positive integer"),
        (lambda: Checkpointed(inner=Auto()), r"inner must take steps in order, like Scan and Fused, got Auto\(\)"),
        (lambda: Truncated(2, True), "inner must take steps in order, like Scan and Fused, got True"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
