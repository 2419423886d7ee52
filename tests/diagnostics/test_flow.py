# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import engines
from seqjax.cells import LambdaCell
from seqjax.diagnostics import gradient_flow, memory_profile, trajectories
from seqjax.diagnostics.trajectory import with_probes
from seqjax.engines.fused import Fused
from seqjax.layers import Wavefront
from seqjax.testing import assert_close
from seqjax.training import AtLastStep, mean_squared_error
from tests.common import F64, sigmoid
from tests.diagnostics.by_hand import LEAKY, leaky, lstm_step, random_params

A, T = 0.7, 9


def last(ys, mask):
    return ys[-1].sum()


def flow(model, params, xs, loss=last, **flags):
    run = jax.jit(lambda params, xs, flags: gradient_flow(model, params, xs, loss, **flags)[-1].norms)
    return jax.tree.map(np.asarray, run(params, xs, flags))


@pytest.mark.parametrize(
    "engine",
    [
        engines.Scan(unroll=2),
        engines.Checkpointed(segment=4),
        engines.Newton(),  # parallel: replaced by one that gives the same numbers
    ],
)
def test_gradient_of_a_linear_recurrence_decays_by_its_factor_under_every_engine(engine):
    norms = flow(seqjax.RNN(LEAKY, engine), leaky(A), np.ones((T, 2, 1)))
    np.testing.assert_allclose(norms["h"], np.tile(A ** np.arange(T)[::-1, None], (1, 2)), rtol=1e-12)


@pytest.mark.parametrize("engine", [Fused(), engines.Associative(), engines.Relaxed(), engines.Auto()])
def test_engines_that_probes_cannot_run_under_are_replaced(engine):
    assert with_probes(seqjax.RNN(seqjax.GRU(2), engine)).layer == seqjax.RNN(seqjax.GRU(2), engines.Auto())
    inside = engines.Checkpointed(3, inner=Fused())
    assert with_probes(seqjax.RNN(seqjax.GRU(2), inside)).layer.engine == engines.Checkpointed(3)
    kept = engines.Truncated(3)
    assert with_probes(seqjax.Residual(seqjax.RNN(seqjax.GRU(2), kept))).layer.layer.engine == kept


def test_integer_features_take_a_mask():
    cell = LambdaCell(
        lambda key, in_dim: jax.random.normal(key, (9, 2)),
        lambda params, h, x: (jnp.tanh(h + params[x].sum(-2)),) * 2,
        lambda params, batch_shape: jnp.zeros((*batch_shape, 2)),
    )
    layer, ids, mask = seqjax.RNN(cell), jnp.ones((4, 3, 5), int), jnp.ones((4, 3), bool)
    params = layer.init(jax.random.key(0), ids)
    (plain,), (masked,) = (
        gradient_flow(layer, params, ids, lambda ys, mask: ys.sum(), mask=given) for given in (None, mask)
    )
    assert_close(masked.total, plain.total, 1e-12)


def test_loss_over_the_whole_sequence_sums_the_paths():
    norms = flow(seqjax.RNN(LEAKY), leaky(A), np.ones((T, 1)), lambda ys, mask: ys.sum())
    np.testing.assert_allclose(norms["h"], [sum(A**k for k in range(T - t)) for t in range(T)], rtol=1e-12)


def test_what_truncation_cuts_is_seen_to_be_cut():
    norms = flow(seqjax.RNN(LEAKY, engines.Truncated(4)), leaky(A), np.ones((8, 1)))
    np.testing.assert_allclose(norms["h"], [0, 0, 0, 0, A**3, A**2, A, 1], rtol=1e-12)


def test_masked_steps_have_no_gradient_and_do_not_count_and_resets_cut_it():
    mask = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]], bool).T
    resets = np.array([[0] * 6, [0, 0, 1, 0, 0, 0]], bool).T
    xs = np.where(mask[..., None], 1.0, np.nan)
    norms = flow(
        seqjax.RNN(LEAKY), leaky(A), xs, lambda ys, mask: ys[4].sum(), mask=jnp.array(mask), resets=jnp.array(resets)
    )
    np.testing.assert_allclose(norms["h"][:, 0], [A**3, A**2, A, 0, 1, 0], rtol=1e-12)
    np.testing.assert_allclose(norms["h"][:, 1], [0, 0, A**2, A, 1, 0], rtol=1e-12)


def test_lower_layer_sums_the_paths_through_the_upper_one():
    model = seqjax.Serial(seqjax.RNN(LEAKY), seqjax.Residual(seqjax.RNN(LEAKY)))
    lower, upper = jax.jit(lambda xs: gradient_flow(model, (leaky(0.9), leaky(0.5)), xs, last))(np.ones((T, 1)))
    assert (lower.name[:2], upper.name[:2]) == ("0 ", "1 ")
    paths = [sum(0.5 ** (T - 1 - s) * 0.9 ** (s - t) for s in range(t, T)) + 0.9 ** (T - 1 - t) for t in range(T)]
    np.testing.assert_allclose(lower.norms["h"], paths, rtol=1e-12)
    np.testing.assert_allclose(upper.norms["h"], 0.5 ** np.arange(T)[::-1], rtol=1e-12)
    np.testing.assert_allclose(lower.total, paths, rtol=1e-12)


def test_directions_of_time_and_wavefronts_are_looked_into():
    both = seqjax.Serial(seqjax.Bidirectional(seqjax.RNN(LEAKY)))
    params = ((leaky(0.9), leaky(0.5)),)
    ahead, behind = jax.jit(lambda xs: gradient_flow(both, params, xs, last))(np.ones((T, 1)))
    assert (ahead.name[:4], behind.name[:4]) == ("0.0 ", "0.1 ")
    np.testing.assert_allclose(ahead.norms["h"], 0.9 ** np.arange(T)[::-1], rtol=1e-12)
    np.testing.assert_allclose(behind.norms["h"], [1] + [0] * (T - 1))  # its first step is the last
    wavefront = Wavefront(LEAKY, 2, jax.make_mesh((1,), ("layer",)), "layer")
    norms = flow(wavefront, (leaky(0.9), leaky(0.5)), np.ones((T, 1)))
    np.testing.assert_allclose(norms["h"], 0.5 ** np.arange(T)[::-1], rtol=1e-12)


def test_batch_major_is_taken_as_it_is():
    norms = flow(seqjax.BatchMajor(seqjax.RNN(LEAKY)), leaky(A), np.ones((2, T, 1)))
    np.testing.assert_allclose(norms["h"], np.tile(A ** np.arange(T)[::-1, None], (1, 2)), rtol=1e-12)


def test_memory_cell_of_an_lstm_has_the_path_through_its_output():
    cell, steps = seqjax.LSTM(2, dtypes=F64), 4
    params = random_params(cell, 1)
    xs = np.random.default_rng(1).normal(size=(steps, 1))

    def loss(at, which, unit, size):
        h = c = np.zeros(2)
        for t in range(steps):
            delta = size * np.eye(2)[unit]
            h, c = lstm_step(params, h, c, xs[t], delta if (t, which) == (at, "c") else 0)
            h = h + (delta if (t, which) == (at, "h") else 0)
        return (h**2).sum()

    norms = flow(seqjax.RNN(cell), params, xs, lambda ys, mask: (ys[-1] ** 2).sum())
    for which in ("h", "c"):
        slopes = [
            [(loss(t, which, unit, 1e-6) - loss(t, which, unit, -1e-6)) / 2e-6 for unit in (0, 1)] for t in range(steps)
        ]
        np.testing.assert_allclose(norms[which], np.linalg.norm(slopes, axis=-1), rtol=1e-7, atol=1e-12)


def test_complex_state_counts_both_parts():
    cell = seqjax.LRU(1, state_dim=1, dtypes=F64)
    params = random_params(cell, 1)
    modulus = np.exp(-np.exp(params.nu_log[0]))
    norms = flow(seqjax.RNN(cell), params, np.ones((T, 1)))
    expected = np.hypot(params.c_re[0, 0], params.c_im[0, 0]) * modulus ** np.arange(T)[::-1]
    np.testing.assert_allclose(norms["h"], expected, rtol=1e-10)


def test_output_made_of_the_state_sees_it():
    cell = seqjax.DiagonalLSTM(1, dtypes=F64)
    params = random_params(cell, 1)
    w_o = params.w_rec[2, 0]
    f, g, o = (params.w_in + params.bias)[0]  # of one step from c = 0 with x = 1
    c = (1 - sigmoid(f)) * np.tanh(g)
    gate = sigmoid(o + w_o * c)
    slope = gate * (1 - gate) * w_o * np.tanh(c) + gate * (1 - np.tanh(c) ** 2)
    np.testing.assert_allclose(flow(seqjax.RNN(cell), params, np.ones((1, 1)))["c"], [abs(slope)], rtol=1e-10)


def two(params, h, x, step):
    h = jnp.tanh(params * h + x)
    return h, jax.nn.relu(h * step)


@pytest.mark.parametrize("jitted", [False, True])
def test_step_of_the_user_is_entered_jitted_or_not(jitted):
    step = functools.partial(two, step=3.0)
    cell = LambdaCell(
        lambda key, in_dim: jnp.ones(()), jax.jit(step) if jitted else step, lambda p, b: jnp.zeros((*b, 1))
    )
    xs = np.array([[0.3], [0.4]])
    h = np.tanh(0.3)
    norms = flow(seqjax.RNN(cell), np.array(0.5), xs)
    np.testing.assert_allclose(norms["carry"], [3 * (1 - np.tanh(0.5 * h + 0.4) ** 2) * 0.5, 3], rtol=1e-10)


def test_state_kept_in_a_wider_dtype_than_the_output():
    cell = seqjax.IndRNN(1, activation="identity", dtypes=seqjax.DTypes("float32", compute="bfloat16", carry="float32"))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), leaky(0.5))
    norms = flow(seqjax.RNN(cell), params, np.ones((4, 1), jnp.bfloat16))
    np.testing.assert_allclose(norms["h"], [0.125, 0.25, 0.5, 1])  # exact in bfloat16


def test_model_without_recurrence_is_refused():
    model = seqjax.Dense(1)
    xs = jnp.ones((3, 1), jnp.float32)
    with pytest.raises(ValueError, match="no recurrent layer"):
        gradient_flow(model, model.init(jax.random.key(0), xs), xs, last)


def test_what_is_no_model_is_named():
    for look in (gradient_flow, memory_profile, trajectories):
        with pytest.raises(ValueError, match=rf"{look.__name__} takes seqjax Layers, got float32\[3, 1\]"):
            look(jnp.ones((3, 1), jnp.float32), seqjax.RNN(seqjax.GRU(1)), None, *[last] * (look is gradient_flow))


def test_a_loss_of_training_is_refused_as_it_takes_targets():
    for loss in (mean_squared_error, AtLastStep(mean_squared_error), functools.partial(mean_squared_error, targets=0)):
        with pytest.raises(ValueError, match=r"loss is called as loss\(ys, mask\), without targets, got .*bind them"):
            gradient_flow(seqjax.RNN(LEAKY), leaky(0.5), jnp.ones((3, 1)), loss)
    with pytest.raises(ValueError, match=r"loss must be a function, called as loss\(ys, mask\)"):
        gradient_flow(seqjax.RNN(LEAKY), leaky(0.5), jnp.ones((3, 1)), "mse")


def test_inputs_and_params_that_are_none_are_named():
    model = seqjax.RNN(LEAKY)
    more = {gradient_flow: (last,), memory_profile: (), trajectories: ()}
    for look in more:
        for layer in (model, seqjax.BatchMajor(model)):
            with pytest.raises(ValueError, match="xs must be an array, got NoneType"):
                look(layer, leaky(0.5), None, *more[look])
    for look in (gradient_flow, trajectories):
        for layer, wrong in ((model, (1, 2)), (seqjax.Serial(model), ((1, 2),)), (seqjax.Serial(model), leaky(0.5))):
            with pytest.raises(ValueError, match=r"IndRNN\(1, .*params"):
                look(layer, wrong, jnp.ones((3, 1)), *more[look])


@pytest.mark.parametrize("loss", [lambda ys, mask: ys[-1], lambda ys, mask: (ys.sum(), 1), lambda ys, mask: None])
def test_a_loss_must_be_one_number(loss):
    with pytest.raises(ValueError, match=r"gradient_flow: loss must return one real number, got .*; reduce it"):
        gradient_flow(seqjax.RNN(LEAKY), leaky(0.5), jnp.ones((3, 1)), loss)


def test_a_gradient_that_explodes_has_a_norm_up_to_the_dtypes_largest_number():
    model = seqjax.RNN(seqjax.IndRNN(1, activation="identity"))
    params = jax.tree.map(lambda a: a.astype(np.float32), leaky(1e10))
    (found,) = gradient_flow(model, params, jnp.zeros((5, 2, 1), jnp.float32), last)
    assert found.norms["h"].dtype == jnp.float32
    np.testing.assert_allclose(found.norms["h"][1:, 0], [1e30, 1e20, 1e10, 1], rtol=1e-5)
    np.testing.assert_allclose(found.total[1:], np.sqrt(2) * np.array([1e30, 1e20, 1e10, 1]), rtol=1e-5)
    assert np.isposinf(found.norms["h"][0]).all()
