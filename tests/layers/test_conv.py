# SPDX-License-Identifier: Apache-2.0
"""Conv1D against an explicit loop and XLA's convolution, and its laws of sequences and streams."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from seqjax.dtypes import DTypes
from seqjax.layers.conv import Conv1D, ConvCarry, ConvParams
from tests.common import F64

conv = functools.partial(Conv1D, dtypes=F64)


def reference(layer, params, xs, mask=None, resets=None):
    """Outputs, their mask and their resets of one sequence `xs [T, D]`, by loops."""
    T, kernel = len(xs), np.asarray(params.kernel)
    mask = np.ones(T, bool) if mask is None else mask
    resets = np.zeros(T, bool) if resets is None else resets
    reach = (layer.width - 1) * layer.dilation
    count = (T - reach - 1) // layer.stride + 1 if layer.padding == "valid" else math.ceil(T / layer.stride)
    total = max((math.ceil(T / layer.stride) - 1) * layer.stride + reach + 1 - T, 0)
    left = {"valid": 0, "causal": reach, "same": total // 2}[layer.padding]
    ys, out_mask, out_resets, before = np.zeros((count, layer.features)), [], [], -1
    for o in range(count):
        anchor = o * layer.stride + (reach if layer.padding == "valid" else 0)
        whole = True
        for k in range(layer.width):
            tap = o * layer.stride + k * layer.dilation - left
            near, far = min(tap, anchor), max(tap, anchor)
            if 0 <= tap < T and mask[tap] and not resets[max(near + 1, 0) : far + 1].any():
                ys[o] += xs[tap] @ kernel[k]
            else:
                whole = False
        out_mask.append(whole if layer.padding == "valid" else mask[anchor])
        out_resets.append(resets[before + 1 : anchor + 1].any())
        before = anchor
        if params.bias is not None:
            ys[o] += params.bias
        ys[o] *= out_mask[-1]
    return ys, np.array(out_mask), np.array(out_resets)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def flags(seed, share, *shape):
    return np.random.default_rng(seed).uniform(size=shape) < share


def init(layer, xs):
    return layer.init(jax.random.key(0), xs)._replace(bias=jnp.linspace(0.5, 1.0, layer.features))


@functools.partial(jax.jit, static_argnums=0)
def run(layer, params, xs, mask=None, resets=None):
    return layer.apply(params, layer.initial_carry(params, xs.shape[1:-1]), xs, mask=mask, resets=resets)[1]


# -- values --------------------------------------------------------------------------------------


def test_causal_by_hand():
    params = ConvParams(jnp.array([[[10.0]], [[1.0]]]), jnp.array([0.5]))
    ys = run(conv(1, 2), params, jnp.array([[1.0], [2.0], [3.0]]))
    assert ys.ravel().tolist() == [1.5, 12.5, 23.5]


def test_masked_and_reset_steps_by_hand():
    params, xs = ConvParams(jnp.array([[[10.0]], [[1.0]]]), None), jnp.arange(1.0, 7.0)[:, None]
    mask, resets = jnp.array([1, 1, 0, 1, 1, 1], bool), jnp.array([0, 0, 0, 0, 1, 0], bool)
    expected = {"causal": [1, 12, 0, 4, 5, 56], "same": [12, 20, 0, 40, 56, 60], "valid": [12, 0, 0, 0, 56]}
    for padding, ys in expected.items():
        layer = conv(1, 2, padding=padding, use_bias=False)
        assert run(layer, params, xs, mask=mask, resets=resets).ravel().tolist() == ys


SIZES = [(1, 2, 1), (2, 1, 3), (3, 1, 1), (3, 2, 1), (4, 2, 2), (4, 3, 1)]
GRID = [
    conv(2, width, stride, padding, dilation)
    for width, stride, dilation in SIZES
    for padding in ("causal", "same", "valid")
]


@pytest.mark.parametrize("layer", GRID, ids=repr)
def test_conv_equals_the_loop_under_mask_and_resets(layer):
    xs, mask = random(1, 11, 4, 3), ~flags(2, 0.2, 11, 4)
    resets = flags(3, 0.2, 11, 4)
    resets[:, 3], mask[:, 2:] = False, True  # one sequence with resets alone, one with neither
    params = init(layer, xs)
    ys, (out_mask, out_resets) = jax.jit(
        lambda xs, mask, resets: (run(layer, params, xs, mask, resets), layer.time_map(mask, resets))
    )(xs, mask, resets)
    assert len(ys) == len(out_mask) == len(out_resets)
    for b in range(4):
        expected, expected_mask, expected_resets = reference(layer, params, xs[:, b], mask[:, b], resets[:, b])
        np.testing.assert_array_equal(out_mask[:, b], expected_mask)
        np.testing.assert_array_equal(out_resets[:, b], expected_resets)
        np.testing.assert_allclose(ys[:, b], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", GRID[::2], ids=repr)
def test_conv_equals_xla_without_mask_and_resets(layer):
    xs = random(1, 10, 2, 3)
    params = init(layer, xs)
    reach = (layer.width - 1) * layer.dilation
    padding = {"causal": [(reach, 0)], "same": "SAME", "valid": "VALID"}[layer.padding]

    @jax.jit
    def both(xs):
        axes = ("WNC", "WIO", "WNC")
        expected = jax.lax.conv_general_dilated(
            xs, params.kernel, (layer.stride,), padding, rhs_dilation=(layer.dilation,), dimension_numbers=axes
        )
        return run(layer, params, xs), expected + params.bias

    np.testing.assert_allclose(*both(xs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", ["causal", "same", "valid"])
@pytest.mark.parametrize("T", [3, 4, 5, 6, 7])
def test_lengths_are_those_of_tensorflow(padding, T):
    layer = conv(1, 2, stride=3, padding=padding, dilation=2)
    xs = random(0, T, 1)
    expected, *_ = reference(layer, params := init(layer, xs), xs)
    assert len(expected) == (math.ceil((T - 2) / 3) if padding == "valid" else math.ceil(T / 3))
    np.testing.assert_allclose(run(layer, params, xs), expected, rtol=1e-12)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_number_of_batch_axes(batch):
    layer = conv(4, 3, stride=2, activation="tanh")
    xs, mask, resets = random(1, 6, *batch, 2), ~flags(2, 0.2, 6, *batch), flags(3, 0.3, 6, *batch)
    params = init(layer, xs)
    ys = run(layer, params, xs, mask, resets)
    assert ys.shape == (3, *batch, 4)
    for i in np.ndindex(*batch):
        at = (slice(None), *i)
        linear, valid, _ = reference(layer, params, xs[at], mask[at], resets[at])
        np.testing.assert_allclose(ys[at], np.tanh(linear) * valid[:, None], rtol=1e-12, atol=1e-12)


def test_fans_of_the_kernel_count_its_width():
    kernel = Conv1D(100, 5).init(jax.random.key(0), jnp.ones((5, 40))).kernel
    limit = math.sqrt(6 / (5 * 40 + 5 * 100))
    assert np.abs(kernel).max() <= limit
    assert np.std(kernel) == pytest.approx(limit / math.sqrt(3), rel=0.02)


# -- masks and resets ----------------------------------------------------------------------------


def test_without_mask_and_resets_the_next_layer_sees_none():
    for padding in ("causal", "same", "valid"):
        layer = conv(1, 3, stride=2, padding=padding)
        assert layer.time_map(None, None) == (None, None)


def test_time_map_gives_a_mask_where_valid_windows_hold_a_reset():
    resets = jnp.array([0, 0, 0, 1, 0, 0], bool)
    mask, out_resets = conv(1, 3, padding="valid").time_map(None, resets)
    assert mask.tolist() == [True, False, False, True]
    assert out_resets.tolist() == [False, True, False, False]
    mask, out_resets = conv(1, 3, stride=2).time_map(None, resets)
    assert mask is None
    assert out_resets.tolist() == [False, False, True]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_padded_sequence_gives_what_it_gives_alone(stride):
    layer, lengths = conv(3, 3, stride=stride, dilation=2), [9, 4, 1]
    xs = random(0, 9, 3, 2)
    params, mask = init(layer, xs), jnp.arange(9)[:, None] < jnp.array(lengths)
    ys = run(layer, params, xs, mask=mask)
    out_mask, _ = layer.time_map(mask, None)
    for b, length in enumerate(lengths):
        alone = run(layer, params, xs[:length, b])
        np.testing.assert_allclose(ys[: len(alone), b], alone, rtol=1e-13)
        assert not ys[len(alone) :, b].any()
        assert out_mask[:, b].sum() == len(alone)


@pytest.mark.parametrize("padding", ["causal", "same", "valid"])
def test_a_packed_sequence_gives_what_its_pieces_give_alone(padding):
    layer, lengths = conv(2, 3, padding=padding), [3, 5, 4]
    xs = random(0, sum(lengths), 2, 3)
    params, starts = init(layer, xs), np.cumsum([0, *lengths[:-1]])
    resets = jnp.zeros(xs.shape[:2], bool).at[starts].set(True)
    ys = run(layer, params, xs, resets=resets)
    out_mask, _ = layer.time_map(None, resets)
    pieces = jnp.concatenate([run(layer, params, xs[a : a + n]) for a, n in zip(starts.tolist(), lengths, strict=True)])
    valid = ys if out_mask is None else ys[out_mask[:, 0]]
    np.testing.assert_allclose(valid, pieces, rtol=1e-12, atol=1e-12)


def test_nothing_of_a_sequence_reaches_the_next_not_even_nan():
    layer = conv(2, 3)
    xs = random(0, 6, 2)
    params, resets = init(layer, xs), np.array([0, 0, 0, 1, 0, 0], bool)
    poisoned = np.where(np.arange(6)[:, None] < 3, np.nan, xs)
    ys = run(layer, params, poisoned, resets=resets)
    assert np.isnan(ys[:3]).all()
    np.testing.assert_allclose(ys[3:], run(layer, params, xs[3:]), rtol=1e-13)
    gradient = jax.grad(lambda xs: run(layer, params, xs, resets=resets)[3:].sum())(poisoned)
    assert not gradient[:3].any()
    assert gradient[3:].all()


@pytest.mark.parametrize("padding", ["causal", "same", "valid"])
def test_padding_with_nan_poisons_no_value_and_no_gradient(padding):
    layer = conv(2, 2, padding=padding, activation="softplus")
    xs, mask = random(0, 5, 2, 3), np.ones((5, 2), bool)
    mask[3:, 0] = mask[2, 1] = False
    params = init(layer, xs)

    def loss(params, xs):
        ys = run(layer, params, xs, mask)
        return jnp.sum(jnp.arange(1.0, 1 + ys.size).reshape(ys.shape) * ys)

    clean = jax.value_and_grad(loss, (0, 1))(params, np.where(mask[..., None], xs, 7.0))
    poisoned = jax.value_and_grad(loss, (0, 1))(params, np.where(mask[..., None], xs, np.nan))
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
    assert not poisoned[1][1][~mask].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(poisoned))


# -- streams -------------------------------------------------------------------------------------


@functools.cache
def streaming(layer):
    """One compilation a shape, shared by all examples."""
    return jax.jit(
        lambda params, carry, xs, mask, resets: (
            *layer.apply(params, carry, xs, mask=mask, resets=resets),
            *layer.time_map(mask, resets, carry),
        )
    )


STREAMED = [conv(2, 3, dilation=2), conv(2, 1, stride=2), conv(2, 4, stride=2), conv(1, 2, stride=3, dilation=2)]


@settings(max_examples=20, deadline=None)
@given(layer=st.sampled_from(STREAMED), seed=st.integers(0, 2**16), data=st.data())
def test_chunks_equal_the_whole_under_mask_and_resets(layer, seed, data):
    T, batch = 8, 2
    mask, resets = ~flags(seed, 0.2, T, batch), flags(seed + 1, 0.3, T, batch)
    xs = random(seed + 2, T, batch, 3)
    steps = range(layer.stride, T, layer.stride)
    cuts = sorted(data.draw(st.sets(st.sampled_from(steps), max_size=4)))
    params = init(layer, xs)
    start = layer.initial_carry(params, (batch,))
    carry, *whole = streaming(layer)(params, start, xs, mask, resets)
    pieces, at = [], start
    for a, b in itertools.pairwise([0, *cuts, T]):
        at, *piece = streaming(layer)(params, at, xs[a:b], mask[a:b], resets[a:b])
        pieces.append(piece)
    joined = [jnp.concatenate(parts) for parts in zip(*pieces, strict=True)]
    np.testing.assert_allclose(joined[0], whole[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(joined[1], whole[1])
    np.testing.assert_array_equal(joined[2], whole[2])
    jax.tree.map(np.testing.assert_array_equal, at, carry)


def test_step_by_step_equals_the_whole_without_mask_and_resets():
    layer = conv(2, 3, dilation=2)
    xs = random(0, 7, 2, 3)
    params = init(layer, xs)
    step, carry, ys = jax.jit(layer.apply), layer.initial_carry(params, (2,)), []
    for x in xs:
        carry, y = step(params, carry, x[None])
        ys.append(y[0])
    np.testing.assert_allclose(jnp.stack(ys), run(layer, params, xs), rtol=1e-12)
    np.testing.assert_array_equal(carry.window, np.moveaxis(xs[-4:], 0, -2))


def test_the_last_chunk_may_have_any_length():
    layer = conv(2, 2, stride=3)
    xs = random(0, 8, 3)
    params = init(layer, xs)
    carry, first = layer.apply(params, layer.initial_carry(params, ()), xs[:6])
    _, last = layer.apply(params, carry, xs[6:])
    np.testing.assert_allclose(jnp.concatenate([first, last]), run(layer, params, xs), rtol=1e-13)


def test_a_reset_after_the_last_output_of_a_chunk_waits_for_the_next():
    layer = conv(1, 1, stride=2)
    xs, resets = random(0, 4, 2, 1), jnp.zeros((4, 2), bool).at[3, 1].set(True)
    params = init(layer, xs)
    carry, _ = layer.apply(params, layer.initial_carry(params, (2,)), xs, resets=resets)
    assert carry.pending.tolist() == [False, True]
    for later in (jnp.zeros((4, 2), bool), None):
        mask, out_resets = layer.time_map(jnp.ones((4, 2), bool), later, carry)
        assert mask.shape == (2, 2)
        assert out_resets.tolist() == [[False, True], [False, False]]
        after, _ = layer.apply(params, carry, xs, resets=later)
        assert not after.pending.any()


def test_only_causal_padding_streams():
    params = conv(1, 3).init(jax.random.key(0), jnp.ones((4, 2)))
    for padding, streams in {"causal": True, "same": False, "valid": False}.items():
        layer = conv(1, 3, padding=padding)
        assert layer.streams is streams
        assert (layer.initial_carry(params, (2,)) == ()) is not streams
    assert (conv(1, 3).stride, conv(1, 3, stride=4).stride) == (1, 4)
    assert conv(1, 1).initial_carry(params, (2,)) == ConvCarry(None, None)


# -- transformations, dtypes ---------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["causal", "same", "valid"])
def test_gradients_match_finite_differences(padding):
    layer = conv(2, 3, stride=2, padding=padding, activation="tanh")
    xs = jnp.array(random(0, 7, 2, 2))
    mask, resets = ~flags(1, 0.2, 7, 2), flags(2, 0.2, 7, 2)
    params = init(layer, xs)
    pending = layer.initial_carry(params, (2,))
    window = jnp.array(random(3, 2, 2, 2)) if padding == "causal" else jnp.zeros(0)

    @jax.jit
    def outputs(params, window, xs):
        carry = pending._replace(window=window) if padding == "causal" else ()
        carry, ys = layer.apply(params, carry, xs, mask=mask, resets=resets)
        return ys if padding != "causal" else (ys, carry.window)

    check_grads(outputs, (params, window, xs), 1, rtol=1e-6, atol=1e-6, eps=1e-5)


def test_vmap_equals_the_batched_call():
    layer = conv(2, 3, stride=2)
    xs, mask, resets = random(0, 6, 4, 3), jnp.array(~flags(1, 0.2, 6, 4)), jnp.array(flags(2, 0.2, 6, 4))
    params = init(layer, xs)
    carry = layer.initial_carry(params, (4,))

    def batched(carry, xs, mask, resets):
        return layer.apply(params, carry, xs, mask=mask, resets=resets)

    mapped = jax.jit(jax.vmap(batched, in_axes=(0, 1, 1, 1), out_axes=(0, 1)))(carry, xs, mask, resets)
    expected = jax.jit(batched)(carry, xs, mask, resets)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), mapped, expected)


def test_jit_traces_once_a_shape_for_equal_layers():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def apply(layer, params, carry, xs):
        traces.append(xs.shape)
        return layer.apply(params, carry, xs)

    xs = random(0, 6, 2, 3)
    params = init(conv(2, 3), xs)
    for _ in range(2):
        layer = conv(2, 3)
        carry, _ = apply(layer, params, layer.initial_carry(params, (2,)), xs)
        apply(layer, params, carry, xs)
    assert traces == [(6, 2, 3)]


def test_init_works_on_shapes_alone_and_float32_stays_float32():
    layer, like = Conv1D(20, 4, stride=2, padding="valid"), jax.ShapeDtypeStruct((50, 32, 1), "float32")
    params = jax.eval_shape(layer.init, jax.random.key(0), like)
    assert (params.kernel.shape, params.bias.shape, params.kernel.dtype) == ((4, 1, 20), (20,), jnp.float32)
    _, ys = jax.eval_shape(layer.apply, params, (), like)
    assert (ys.shape, ys.dtype) == ((24, 32, 20), jnp.float32)
    assert Conv1D(3, 2, use_bias=False).init(jax.random.key(0), like).bias is None


def test_bfloat16_computation_stays_bfloat16():
    layer = Conv1D(4, 3, stride=2, dtypes=DTypes(compute="bfloat16"))
    xs = jnp.array(random(0, 6, 2, 3), "float32")
    params = layer.init(jax.random.key(0), xs)
    carry, ys = jax.jit(layer.apply)(params, layer.initial_carry(params, (2,)), xs)
    assert (params.kernel.dtype, ys.dtype, carry.window.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    exact = run(Conv1D(4, 3, stride=2), params, xs)
    assert np.abs(ys.astype("float32") - exact).max() <= 2**-6 * np.abs(exact).max()
    wide = Conv1D(4, 3, dtypes=DTypes(compute="bfloat16", carry="float32"))
    carry, ys = jax.jit(wide.apply)(params, wide.initial_carry(params, (2,)), xs)
    assert (ys.dtype, carry.window.dtype) == (jnp.bfloat16, jnp.float32)


def test_layers_print_as_their_code_and_equal_ones_hash_alike():
    layer = Conv1D(20, 4, stride=2, padding="valid")
    assert repr(layer) == "Conv1D(20, 4, stride=2, padding='valid')"
    assert eval(repr(layer)) == layer
    assert hash(eval(repr(layer))) == hash(layer)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be a positive integer, got 0"),
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"width": 2.5}, "width must be a positive integer, got 2.5"),
        ({"stride": -1}, "stride must be a positive integer, got -1"),
        ({"dilation": 0}, "dilation must be a positive integer, got 0"),
        ({"padding": "full"}, r"padding must be one of \['causal', 'same', 'valid'\], got 'full'"),
        ({"activation": "tanhh"}, "unknown activation 'tanhh'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Conv1D(**({"features": 2, "width": 3} | options))


def test_inputs_that_do_not_fit_are_refused():
    layer, xs = Conv1D(2, 3), jnp.ones((4, 2, 3), "float32")
    params = layer.init(jax.random.key(0), xs)
    carry = layer.initial_carry(params, (2,))
    with pytest.raises(ValueError, match=r"initialized for 3 features.*with 5"):
        layer.apply(params, carry, jnp.ones((4, 2, 5), "float32"))
    with pytest.raises(ValueError, match="computes in float32, got int32"):
        layer.apply(params, carry, jnp.ones((4, 2, 3), "int32"))
    with pytest.raises(ValueError, match="no steps"):
        layer.apply(params, carry, xs[:0])
    with pytest.raises(ValueError, match="resets must be bool, got int32"):
        layer.apply(params, carry, xs, resets=jnp.ones((4, 2), "int32"))
    with pytest.raises(ValueError, match="at least a time and a feature axis"):
        layer.init(jax.random.key(0), jnp.ones(4, "float32"))


def test_a_sequence_too_short_for_one_valid_window_is_refused():
    layer, xs = Conv1D(2, 3, padding="valid", dilation=2), jnp.ones((4, 2, 3), "float32")
    params = layer.init(jax.random.key(0), xs)
    with pytest.raises(ValueError, match="needs at least 5 steps for one output, got 4"):
        layer.apply(params, (), xs)
    assert run(layer, params, jnp.ones((5, 2, 3), "float32")).shape == (1, 2, 2)


def test_a_carry_of_another_batch_is_refused():
    layer, xs = Conv1D(2, 3), jnp.ones((4, 2, 3), "float32")
    params = layer.init(jax.random.key(0), xs)
    for carry in ((), layer.initial_carry(params, (5,)), ConvCarry(None, None)):
        with pytest.raises(ValueError, match=r"expected ConvCarry\(window=\(\(2, 2, 3\).*initial_carry\(params, batch"):
            layer.apply(params, carry, xs)
