# SPDX-License-Identifier: Apache-2.0
"""Last against NumPy: the last unmasked step, its mask, its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.layers.last import Last
from tests.common import F64

XS = np.random.default_rng(0).normal(size=(5, 4, 3))
MASK = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]], bool).T


def last(xs, mask=None, **flags):
    return Last().apply((), (), jnp.asarray(xs), mask=None if mask is None else jnp.asarray(mask), **flags)[1]


@pytest.mark.parametrize("batch", [(), (4,), (2, 2)])
def test_without_a_mask_it_is_the_last_step(batch):
    xs = XS.reshape(5, *batch, -1)
    assert np.array_equal(last(xs), xs[4:])


def test_with_a_mask_it_is_the_last_unmasked_step_and_zeros_for_padding_alone():
    expected = np.stack([XS[1, 0], XS[4, 1], np.zeros(3), XS[3, 3]])
    assert np.array_equal(last(XS, MASK), expected[None])


def test_two_batch_axes_keep_their_own_last_steps():
    ys = last(XS.reshape(5, 2, 2, 3), MASK.reshape(5, 2, 2))
    assert np.array_equal(ys[0, 1, 1], XS[3, 3])
    assert ys.shape == (1, 2, 2, 3)


def test_padding_with_nan_poisons_neither_value_nor_gradient():
    xs = np.where(MASK[..., None], XS, np.nan)
    value, gradient = jax.value_and_grad(lambda xs: (last(xs, MASK) ** 2).sum())(jnp.asarray(xs))
    expected = np.zeros_like(XS)
    for t, b in ((1, 0), (4, 1), (3, 3)):
        expected[t, b] = 2 * XS[t, b]
    assert float(value) == pytest.approx((expected**2).sum() / 4)
    np.testing.assert_allclose(gradient, expected)


def test_its_mask_says_which_sequences_have_a_step_and_its_reset_whether_one_began():
    resets = np.zeros_like(MASK)
    resets[2, 1] = True
    mask, out_resets = Last().time_map(jnp.asarray(MASK), jnp.asarray(resets))
    assert mask.tolist() == [[True, True, False, True]]
    assert out_resets.tolist() == [[False, True, False, False]]
    assert Last().time_map(None, None) == (None, None)


def test_a_dense_layer_follows_under_masks():
    model = seqjax.Serial(Last(), seqjax.Dense(2, dtypes=F64))
    params = model.init(jax.random.key(0), jnp.asarray(XS))
    _, ys = model.apply(params, model.initial_carry(params, (4,)), jnp.asarray(XS), mask=jnp.asarray(MASK))
    np.testing.assert_allclose(ys[0, 0], XS[1, 0] @ params[1].kernel + params[1].bias)
    assert not ys[0, 2].any(), "padding alone is masked in the layers that follow"


def test_each_direction_ends_at_its_own_last_step():
    cell = seqjax.Simple(2, dtypes=F64)
    rnn = seqjax.RNN(cell)
    forward, backward = (rnn.init(jax.random.key(k), jnp.asarray(XS)) for k in (0, 1))
    model = seqjax.layers.Bidirectional(seqjax.Serial(rnn, Last()))
    params = ((forward, ()), (backward, ()))
    _, ys = model.apply(params, model.initial_carry(params, (4,)), jnp.asarray(XS), mask=jnp.asarray(MASK))

    def by_hand(params, xs):
        h = np.zeros(2)
        for x in xs:
            h = np.tanh(x @ np.asarray(params.w_in) + h @ np.asarray(params.w_rec) + np.asarray(params.bias))
        return h

    for b in range(4):
        steps = XS[MASK[:, b], b]
        np.testing.assert_allclose(ys[0, b], np.concatenate([by_hand(forward, steps), by_hand(backward, steps[::-1])]))


def test_it_does_not_stream_and_takes_no_ids():
    assert not Last().streams
    with pytest.raises(ValueError, match="floating"):
        Last().init(jax.random.key(0), jnp.ones((3, 2), int))
