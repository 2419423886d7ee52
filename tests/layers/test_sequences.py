# SPDX-License-Identifier: Apache-2.0
"""Masks, lengths, resets, streaming and refusals: what holds for every model."""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seqjax
from seqjax.testing import assert_close, jitter
from tests.common import F64

RANDOM = np.random.default_rng(0)


def gru(hidden=4):
    return seqjax.RNN(seqjax.GRU(hidden, dtypes=F64))


def dense(features):
    return seqjax.Dense(features, dtypes=F64)


def conv(features, **options):
    return seqjax.Conv1D(features, dtypes=F64, **options)


STREAMING = {
    "gru": gru(),
    "stack": seqjax.Serial(gru(), seqjax.RNN(seqjax.LSTM(3, proj_dim=2, dtypes=F64)), dense(2)),
    "residual": seqjax.Serial(dense(4), seqjax.Residual(gru(4)), seqjax.LayerNorm(dtypes=F64)),
    "causal-conv": seqjax.Serial(conv(3, width=3, padding="causal", dilation=2), gru()),
    "strided-conv": seqjax.Serial(conv(3, width=4, padding="causal", stride=2), gru()),
}
MODELS = STREAMING | {
    "bidirectional": seqjax.Serial(seqjax.Bidirectional(gru(3)), dense(2)),
    "valid-conv": seqjax.Serial(conv(3, width=3, stride=2, padding="valid"), gru(3)),
}


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, carry, xs, mask=None, resets=None):
    return model.apply(params, carry, xs, mask=mask, resets=resets)


def setup(model, T=12, batch=(3,), in_dim=2):
    xs = jnp.asarray(RANDOM.normal(size=(T, *batch, in_dim)))
    params = jitter(model.init(jax.random.key(0), xs), RANDOM)
    return params, model.initial_carry(params, batch), xs


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_sequence_gives_what_it_gives_alone(name):
    model = MODELS[name]
    lengths = np.array([12, 6, 8])
    params, carry, xs = setup(model)
    mask = seqjax.mask_from_lengths(jnp.asarray(lengths), 12)
    _, ys = run(model, params, carry, jnp.where(mask[..., None], xs, jnp.nan), mask=mask)
    out_mask, _ = model.time_map(mask, None, carry)
    for b, length in enumerate(lengths):
        alone_carry = model.initial_carry(params, ())
        _, alone = run(model, params, alone_carry, xs[:length, b])
        steps = alone.shape[0]
        np.testing.assert_allclose(ys[:steps, b], alone, atol=1e-12)
        assert int(out_mask[:, b].sum()) == steps
        assert not ys[steps:, b].any(), "padding gives zeros"


@pytest.mark.parametrize("name", ["gru", "stack", "causal-conv", "bidirectional"])
def test_packed_sequences_give_what_each_gives_alone(name):
    model = MODELS[name]
    params, carry, xs = setup(model, batch=())
    resets = jnp.zeros(12, bool).at[jnp.array([5, 9])].set(True)
    _, packed = run(model, params, carry, xs, resets=resets)
    pieces = [run(model, params, carry, piece)[1] for piece in (xs[:5], xs[5:9], xs[9:])]
    np.testing.assert_allclose(packed, jnp.concatenate(pieces), atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_padding_with_nan_poisons_no_gradient(name):
    model = MODELS[name]
    params, carry, xs = setup(model)
    mask = seqjax.mask_from_lengths(jnp.array([12, 6, 8]), 12)
    resets = jnp.asarray(RANDOM.random((12, 3)) < 0.2)

    def gradients(xs):
        def loss(params, carry, xs):
            return jnp.sum(jnp.sin(run(model, params, carry, xs, mask=mask, resets=resets)[1]))

        return jax.grad(loss, (0, 2))(params, carry, xs)

    gradients = jax.jit(gradients)
    d_params, d_xs = gradients(jnp.where(mask[..., None], xs, jnp.nan))
    expected, _ = gradients(jnp.where(mask[..., None], xs, 0.0))
    assert_close(d_params, expected, 1e-12)
    assert not d_xs[~np.asarray(mask)].any()


def test_length_zero_returns_the_initial_carry_and_zeros():
    model = seqjax.Serial(gru(), gru(3))
    params, _, xs = setup(model)
    carry = jitter(model.initial_carry(params, (3,)), RANDOM)
    mask = seqjax.mask_from_lengths(jnp.array([0, 12, 0]), 12)
    after, ys = run(model, params, carry, xs, mask=mask)
    for b in (0, 2):
        assert_close(*(jax.tree.map(operator.itemgetter(b), tree) for tree in (after, carry)), 0.0)
        assert not ys[:, b].any()


def test_a_reset_on_a_masked_step_still_resets():
    model = gru()
    params, _, xs = setup(model, T=4, batch=())
    carry = jitter(model.initial_carry(params, ()), RANDOM)
    mask, resets = jnp.array([True, False, True, True]), jnp.array([False, True, False, False])
    _, ys = run(model, params, carry, xs, mask=mask, resets=resets)
    _, alone = run(model, params, model.initial_carry(params, ()), xs[2:])
    np.testing.assert_allclose(ys[2:], alone, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_two_batch_axes_equal_one(name):
    model = MODELS[name]
    params, carry, xs = setup(model, batch=(2, 3))
    mask = seqjax.mask_from_lengths(jnp.array([[12, 6, 8], [0, 12, 4]]), 12)
    resets = jnp.asarray(RANDOM.random((12, 2, 3)) < 0.2)
    _, ys = run(model, params, carry, xs, mask=mask, resets=resets)
    flat = jax.tree.map(lambda a: a.reshape(12, 6, *a.shape[3:]), (xs, mask, resets))
    _, flat_ys = run(model, params, model.initial_carry(params, (6,)), flat[0], mask=flat[1], resets=flat[2])
    np.testing.assert_allclose(ys.reshape(flat_ys.shape), flat_ys, atol=1e-12)


@pytest.mark.parametrize("name", STREAMING)
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 5), max_size=3), seed=st.integers(0, 99))
def test_pieces_of_a_stream_equal_the_whole(name, cuts, seed):
    model = STREAMING[name]
    params, carry, xs = setup(model)
    random = np.random.default_rng(seed)
    mask, resets = (jnp.asarray(random.random((12, 3)) < rate) for rate in (0.8, 0.2))
    expected_carry, expected = run(model, params, carry, xs, mask=mask, resets=resets)
    outputs, bounds = [], [0, *(2 * cut for cut in sorted(cuts)), 12]
    for start, stop in itertools.pairwise(bounds):
        piece = slice(start, stop)
        carry, ys = run(model, params, carry, xs[piece], mask=mask[piece], resets=resets[piece])
        outputs.append(ys)
    np.testing.assert_allclose(jnp.concatenate(outputs), expected, atol=1e-12)
    assert_close(carry, expected_carry, 1e-12)


EMBED = seqjax.Embed(5, 2, table_init="normal", dtypes=F64)
IDS = jnp.asarray(RANDOM.integers(0, 5, (12, 3)))


@pytest.mark.parametrize(
    "model",
    [
        seqjax.Serial(EMBED, gru()),
        seqjax.Serial(seqjax.Serial(EMBED, gru()), dense(2)),
        seqjax.Bidirectional(seqjax.Serial(EMBED, gru())),
    ],
    ids=["serial", "nested", "bidirectional"],
)
def test_ids_have_no_feature_axis_in_any_composition(model):
    params = model.init(jax.random.key(0), IDS)
    mask = seqjax.mask_from_lengths(jnp.array([12, 6, 0]), 12)
    _, ys = run(model, params, model.initial_carry(params, (3,)), IDS, mask)
    swapped = seqjax.BatchMajor(model)
    _, swapped_ys = run(swapped, params, swapped.initial_carry(params, (3,)), IDS.T, mask.T)
    np.testing.assert_allclose(jnp.swapaxes(swapped_ys, 0, 1), ys, atol=1e-12)
    if model.streams:
        total = jnp.zeros(ys.shape[2:])
        carry = model.initial_carry(params, (3,))
        _, total = seqjax.fold(model, params, carry, IDS, lambda t, y: t + y.sum((0, 1)), total, segment=5, mask=mask)
        np.testing.assert_allclose(total, ys.sum((0, 1)), atol=1e-12)


def test_batch_major_swaps_the_first_two_axes():
    model = seqjax.Serial(gru(), dense(2))
    params, carry, xs = setup(model)
    mask = seqjax.mask_from_lengths(jnp.array([12, 6, 0]), 12)
    _, expected = run(model, params, carry, xs, mask=mask)
    swapped = seqjax.BatchMajor(model)
    _, ys = run(swapped, params, carry, jnp.swapaxes(xs, 0, 1), mask=mask.T)
    np.testing.assert_allclose(jnp.swapaxes(ys, 0, 1), expected, atol=1e-12)
    shapes = jax.eval_shape(lambda key: swapped.init(key, jnp.swapaxes(xs, 0, 1)), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)


def test_flags_of_a_batch_major_model_are_refused_in_its_own_layout():
    model, xs = seqjax.BatchMajor(gru()), jnp.ones((8, 15, 4))
    params = model.init(jax.random.key(0), xs)
    carry = model.initial_carry(params, (8,))
    lengths = seqjax.mask_from_lengths(jnp.full(8, 7), 15)
    with pytest.raises(ValueError, match=r"mask \[B, T, ...\], \(8, 15\), got \(15, 8\); mask is time-major, swap"):
        model.apply(params, carry, xs, mask=lengths)
    with pytest.raises(ValueError, match=r"resets \[B, T, ...\], \(8, 15\), got \(8,\)\.$"):
        model.apply(params, carry, xs, resets=lengths[0])


def test_integer_features_take_masks_and_resets_in_every_container():
    def step(params, h, x):  # x [..., 5]: five ids
        h = jnp.tanh(0.5 * h + params[x].sum(-2))
        return h, h

    cell = seqjax.cells.LambdaCell(
        lambda key, in_dim: jax.random.normal(key, (9, 2)), step, lambda params, batch: jnp.zeros((*batch, 2))
    )
    layer = seqjax.RNN(cell)
    xs = jnp.asarray(RANDOM.integers(0, 9, (4, 3, 5)))
    mask, resets = (jnp.asarray(RANDOM.random((4, 3)) < 0.6) for _ in range(2))
    params = layer.init(jax.random.key(0), xs)
    carry = layer.initial_carry(params, (3,))
    _, expected = layer.apply(params, carry, xs, mask=mask, resets=resets)

    both = seqjax.Bidirectional(layer)
    _, ys = both.apply((params, params), (carry, carry), xs, mask=mask, resets=resets)
    assert_close(ys[..., :2], expected, 1e-12)
    _, total = seqjax.fold(
        layer, params, carry, xs, lambda total, ys: total + ys.sum(), jnp.zeros(()), segment=2, mask=mask, resets=resets
    )
    assert_close(total, expected.sum(), 1e-12)
    model = seqjax.Serial(layer, seqjax.BatchNorm(dtypes=F64))
    calibrated = seqjax.layers.calibrate(model, model.init(jax.random.key(0), xs), [(xs, mask)])
    _, hs = layer.apply(calibrated[0], carry, xs, mask=mask)
    assert_close(calibrated[1].mean, np.asarray(hs)[np.asarray(mask)].mean(0), 1e-5)


def test_a_list_of_layers_is_told_to_be_given_one_by_one():
    with pytest.raises(ValueError, match=r"Serial takes seqjax Layers, got \[Dense\(1\)\]; give them one by one"):
        seqjax.Serial([seqjax.Dense(1)])


@pytest.mark.parametrize("around", [seqjax.Residual, seqjax.Serial, seqjax.Bidirectional, seqjax.BatchMajor])
def test_batch_major_goes_around_the_whole_model(around):
    """Inside another layer the last step, or the other direction, would be one of the batch."""
    with pytest.raises(ValueError, match=f"{around.__name__} takes time-major layers, got BatchMajor"):
        around(seqjax.BatchMajor(gru(2)))


def test_integers_may_be_the_features_of_a_cell_in_any_composition():
    counter = seqjax.cells.LambdaCell(
        lambda key, in_dim: (),
        lambda params, total, x: (total + x, (total + x).astype("float64")),
        lambda params, batch_shape: jnp.zeros((*batch_shape, 2), int),
    )
    xs = jnp.asarray(RANDOM.integers(9, size=(5, 3, 2)))
    model = seqjax.Serial(seqjax.RNN(counter), seqjax.Residual(seqjax.LayerNorm(dtypes=F64)), dense(1))
    params = model.init(jax.random.key(0), xs)
    carry, ys = run(model, params, model.initial_carry(params, model.batch_shape(xs)), xs)
    assert ys.shape == (5, 3, 1)
    np.testing.assert_array_equal(carry[0], xs.sum(0))


@pytest.mark.parametrize(("merge", "reduce"), [("sum", np.add), ("mul", np.multiply), ("concat", None)])
def test_bidirectional_merges_both_directions(merge, reduce):
    model = seqjax.Bidirectional(gru(), gru(4), merge=merge)
    params, carry, xs = setup(model)
    _, ys = run(model, params, carry, xs)
    ahead = run(model.forward, params[0], carry[0], xs)[1]
    behind = run(model.backward, params[1], carry[1], xs[::-1])[1][::-1]
    expected = np.concatenate([ahead, behind], -1) if reduce is None else reduce(ahead, behind)
    np.testing.assert_allclose(ys, expected, atol=1e-12)


@pytest.mark.parametrize("units", [1, 2])
def test_a_merge_by_element_needs_as_many_features_in_both_directions(units):
    model = seqjax.Bidirectional(gru(), gru(units), merge="sum")
    with pytest.raises(ValueError, match=rf"merge='sum' needs as many features in both directions, got \(4, {units}\)"):
        model.init(jax.random.key(0), jnp.ones((5, 2, 2)))


def test_each_layer_draws_its_own_dropout():
    model = seqjax.Serial(seqjax.Dropout(0.5), seqjax.Dropout(0.5))
    _, ys = model.apply(((), ()), ((), ()), jnp.ones((100, 100)), key=jax.random.key(0))
    kept = float((ys != 0).mean())
    assert abs(kept - 0.25) < 0.02
    np.testing.assert_array_equal(ys[ys != 0], 4.0)


def test_calibrate_sets_the_statistics_that_evaluation_uses():
    cell = seqjax.Simple(4, normalize="batch", dtypes=F64)
    model = seqjax.Serial(seqjax.RNN(cell), seqjax.BatchNorm(dtypes=F64), dense(1))
    params, _, xs = setup(model, T=20, batch=(64,))
    calibrated = seqjax.layers.calibrate(model, params, [xs[:, :32], xs[:, 32:]])
    # with as many sequences, statistics at one step are near those over all steps
    pre = np.empty((20, 64, 4))
    h = np.zeros((64, 4))
    p = params[0]
    for t in range(20):
        pre[t] = xs[t] @ p.w_in + h @ p.w_rec + p.bias
        unit = (pre[t] - pre[t].mean(0)) / np.sqrt(pre[t].var(0) + 1e-5)
        h = np.tanh(p.scale * unit + p.offset)
    np.testing.assert_allclose(calibrated[0].mean, pre.reshape(-1, 4).mean(0), atol=1e-12)
    np.testing.assert_allclose(calibrated[0].var, pre.reshape(-1, 4).var(0), atol=1e-12)
    carry = model.initial_carry(calibrated, (64,))
    hidden = run(model.layers[0], calibrated[0], carry[0], xs)[1]
    np.testing.assert_allclose(calibrated[1].mean, hidden.reshape(-1, 4).mean(0), atol=1e-12)


REFUSALS = {
    "rank": (lambda m, p, c, xs: m.apply(p, c, xs[:, 0, 0]), r"xs must be \[T, ..., D\].*got shape \(12,\)"),
    "no steps": (lambda m, p, c, xs: m.apply(p, c, xs[:0]), "no steps"),
    "features": (
        lambda m, p, c, xs: m.apply(p, c, xs[..., :1]),
        r"inputs of 1 features \(axis -1 of xs\), w_in of shape \(1, 12\), got \(2, 12\)",
    ),
    "mask shape": (lambda m, p, c, xs: m.apply(p, c, xs, mask=jnp.ones((3, 12), bool)), r"mask must have the shape"),
    "mask dtype": (lambda m, p, c, xs: m.apply(p, c, xs, mask=jnp.ones((12, 3))), "mask must be bool"),
    "resets shape": (lambda m, p, c, xs: m.apply(p, c, xs, resets=jnp.ones(12, bool)), "resets must have the shape"),
    "carry": (lambda m, p, c, xs: m.apply(p, m.initial_carry(p, (2,)), xs), "carry does not fit"),
    "no carry": (
        lambda m, p, c, xs: seqjax.Serial(m, m).apply((p, p), (), xs),
        "carry in a tuple of 2, got tuple",
    ),
    "too few params": (lambda m, p, c, xs: seqjax.Serial(m, m).apply((p,), (c, c), xs), "params in a tuple of 2"),
    "batch size": (lambda m, p, c, xs: m.initial_carry(p, 3), r"batch_shape must be a tuple, e.g. \(32,\)"),
    "a shape": (
        lambda m, p, c, xs: m.init(jax.random.key(0), (7, 3, 5)),
        "got tuple; .*ShapeDtypeStruct",
    ),
    "explained shape": (lambda m, p, c, xs: seqjax.explain(m, (7, 3, 5)), "must be an array, got tuple"),
    "explained cell": (lambda m, p, c, xs: seqjax.explain(m.cell, xs), r"takes seqjax Layers, got GRU"),
    "a cell": (lambda m, p, c, xs: seqjax.Serial(seqjax.GRU(3)), r"a Cell becomes one as RNN\(cell\)"),
    "no layers": (lambda m, p, c, xs: seqjax.Serial(), "at least one layer"),
    "no engine": (lambda m, p, c, xs: seqjax.RNN(seqjax.GRU(3), "scan"), "engine must be a seqjax Engine"),
    "merge": (lambda m, p, c, xs: seqjax.Bidirectional(m, merge="add"), "merge must be one of"),
    "residual": (lambda m, p, c, xs: seqjax.Residual(m).init(jax.random.key(0), xs), "keeps shape and dtype"),
    "residual at one step": (
        lambda m, p, c, xs: seqjax.Residual(seqjax.Last()).apply((), (), xs),
        "keeps shape and dtype; Last",
    ),
    "lengths": (lambda m, p, c, xs: seqjax.mask_from_lengths(jnp.ones(3), 4), "lengths must be integers"),
}


def test_bidirectional_around_last_takes_the_step_that_each_direction_reaches_last():
    rnn = seqjax.RNN(seqjax.Simple(2, dtypes=F64))
    ends = seqjax.Serial(rnn, seqjax.Last())
    model = seqjax.Serial(seqjax.Bidirectional(ends), dense(3))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 2)))
    mask = jnp.asarray(np.arange(5)[:, None] < np.array([5, 3, 0]))
    params = model.init(jax.random.key(0), xs)
    _, ys = model.apply(params, model.initial_carry(params, (3,)), xs, mask=mask)

    (ahead, _), (behind, _) = params[0]
    for b, length in enumerate([5, 3]):
        h = {"ahead": np.zeros(2), "behind": np.zeros(2)}
        for name, weights, times in (("ahead", ahead, range(length)), ("behind", behind, reversed(range(length)))):
            for t in times:
                h[name] = np.tanh(xs[t, b] @ weights.w_in + h[name] @ weights.w_rec + weights.bias)
        expected = np.concatenate([h["ahead"], h["behind"]]) @ params[1].kernel + params[1].bias
        np.testing.assert_allclose(ys[0, b], expected, atol=1e-12)
    np.testing.assert_array_equal(ys[0, 2], 0)  # padding alone


@pytest.mark.parametrize("what", REFUSALS)
def test_bad_input_is_refused_with_what_to_do(what):
    act, message = REFUSALS[what]
    model = gru()
    with pytest.raises(ValueError, match=message):
        act(model, *setup(model))


def test_a_training_mask_is_refused_where_a_step_mixes_the_batch():
    model = seqjax.RNN(seqjax.Simple(4, normalize="batch", dtypes=F64))
    params, carry, xs = setup(model)
    with pytest.raises(ValueError, match="batch statistics of a step would mix in its padding"):
        model.apply(params, carry, xs, mask=jnp.ones((12, 3), bool), key=jax.random.key(0))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_lengths_of_any_integer_width_make_a_mask(dtype):
    for T in (3, np.int64(3)):
        mask = seqjax.mask_from_lengths(jnp.asarray([0, 2, 3], dtype), T)
        np.testing.assert_array_equal(mask.T, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_a_mask_is_made_for_a_symbolic_number_of_steps():
    def steps(xs):
        return seqjax.mask_from_lengths(jnp.array([0, 2]), xs.shape[0])

    like = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 1"), jnp.float32)
    made = jax.export.export(jax.jit(steps))(like).call(jnp.zeros((3, 1), jnp.float32))
    np.testing.assert_array_equal(made.T, [[0, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize("T", [-3, 2.5, np.float64(3), True, None, "5"])
def test_what_is_no_number_of_steps_is_refused(T):
    with pytest.raises(ValueError, match="T must be a number of steps, got"):
        seqjax.mask_from_lengths(jnp.array([0, 2]), T)
