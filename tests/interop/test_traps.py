# SPDX-License-Identifier: Apache-2.0
"""Traps in other libraries, and that seqjax does not fall in: one test a trap.

Where it costs little a test shows the trap in the other library, too; if that library is mended the
test warns and still passes. The traps of solvers that are parallel in time have their tests elsewhere:

- a gradient through the diagonal of the Jacobian alone (elk), NaN taken for 0 (deer):
  `tests/engines/test_newton.py`: `test_newton_equals_the_reference_loop`,
  `test_a_nan_input_is_reported_and_stays_in_its_sequence`, `test_states_that_overflow_are_reported`;
- no sign of a solve that did not converge: there `test_an_expanding_recurrence_is_flagged_...`, `test_raise_...`,
  `test_nan_answers_nan_...`, and the same in `tests/engines/test_relaxed.py`.

Other wishes: the state across pieces, `vmap`, gradients of gradients and resets in every engine are laws in
`tests/contracts/test_laws.py`; checkpointed scans in `tests/engines/test_segments.py`; projection, layer
normalization, recurrent dropout and zoneout in `tests/cells/test_equations.py`.
"""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqjax
from seqjax import engines
from seqjax.interop.flax import from_flax, to_flax
from seqjax.interop.flax import linen as ours_linen
from seqjax.interop.flax import nnx as ours_nnx
from tests.common import F64, sigmoid
from tests.interop.flax_models import B, D, H, T, drawn, flax_cell, inputs, linen_cell, nnx_cell, run_flax

RNNS = {"linen": (nn.RNN, ours_linen.RNN), "nnx": (nnx.RNN, ours_nnx.RNN)}
LENGTHS = jnp.array([4, 0])


def demonstrate(trap, falls_in):
    """Warns where another library does not fall into a trap any more; that is no failure of ours."""
    if not falls_in:
        warnings.warn(f"this trap is gone, and its test can lose its other half: {trap}", stacklevel=2)


def test_flax_starts_lstm_forget_gates_half_closed_and_seqjax_open():
    bias = jax.jit(lambda key: seqjax.LSTM(H).init(key, D).bias)(jax.random.key(0))
    assert bias.tolist() == [0] * H + [1] * H + [0] * 2 * H
    cell, tree = linen_cell("LSTMCell")
    _, imported = from_flax(cell, tree)
    np.testing.assert_array_equal(imported.bias[H : 2 * H], tree["hf"]["bias"])  # as it was, not 1 more
    demonstrate("flax: forget bias 0", not cell.bias_init(jax.random.key(0), (H,)).any())


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_flax_keeps_every_carry_to_return_the_last_and_seqjax_one(api):
    steps, batch = 20_000, 4  # the inputs of a shorter sequence are projected at once, up to 2 MiB
    cell, tree = flax_cell(api, "LSTMCell", "float32")
    xs = jax.ShapeDtypeStruct((batch, steps, D), jnp.float32)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def scratch(rnn):
        """Bytes that the compiled program needs beside its inputs and outputs."""

        def last_carry(tree, xs, lengths):
            return run_flax(api, rnn, cell, tree, xs, seq_lengths=lengths, return_carry=True)[0]

        compiled = jax.jit(last_carry).lower(tree, xs, lengths).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    every_carry = 2 * steps * batch * H * 4
    theirs, ours = map(scratch, RNNS[api])
    assert ours < every_carry
    demonstrate("flax: seq_lengths and return_carry keep all carries", theirs > every_carry)


@pytest.mark.parametrize(("api", "name"), [("linen", "LSTMCell"), ("nnx", "GRUCell")])
def test_length_zero_returns_the_initial_carry(api, name):
    cell, tree = flax_cell(api, name)
    xs, h = inputs(B, T, D), inputs(B, H, seed=2)
    start = (2 * h, h) if name == "LSTMCell" else h

    def last(rnn):
        return run_flax(api, rnn, cell, tree, xs, initial_carry=start, seq_lengths=LENGTHS, return_carry=True)[0]

    theirs, ours = map(last, RNNS[api])
    for after, before in zip(jax.tree.leaves(ours), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(after[1], before[1])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-12)  # where there are steps, the same
    demonstrate("flax: length 0 is not the initial carry", not np.allclose(jax.tree.leaves(theirs)[-1][1], h[1]))


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_two_batch_axes_with_lengths_equal_one(api):
    cell, tree = flax_cell(api, "GRUCell")
    xs, lengths = inputs(2, 3, T, D), jnp.array([[1, 4, 0], [6, 2, 3]])

    def run(rnn, xs, lengths):
        return run_flax(api, rnn, cell, tree, xs, seq_lengths=lengths, return_carry=True)

    carry, ys = run(RNNS[api][1], xs, lengths)
    flat_carry, flat_ys = run(RNNS[api][1], xs.reshape(6, T, D), lengths.reshape(6))
    np.testing.assert_allclose(carry.reshape(6, H), flat_carry, atol=1e-12)
    np.testing.assert_allclose(ys.reshape(6, T, H), flat_ys, atol=1e-12)
    try:
        shape = jax.eval_shape(functools.partial(run, RNNS[api][0]), xs, lengths)[0].shape
    except (TypeError, ValueError):
        shape = None
    demonstrate("flax: lengths with two batch axes give a wrong shape", shape != carry.shape)


@pytest.mark.parametrize(("api", "name"), [("linen", "GRUCell"), ("nnx", "OptimizedLSTMCell"), ("linen", "MGUCell")])
def test_nan_in_padding_poisons_neither_value_nor_gradient(api, name):
    cell, tree = flax_cell(api, name)
    valid = (jnp.arange(T) < LENGTHS[:, None])[..., None]
    xs = inputs(B, T, D)

    def gradients(rnn):
        def loss(tree, xs):
            carry, ys = run_flax(api, rnn, cell, tree, xs, seq_lengths=LENGTHS, return_carry=True)
            return jnp.sum(jnp.where(valid, ys, 0) ** 2) + jnp.sum(jax.tree.leaves(carry)[0] ** 2)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    def finite(tree):
        return jax.tree.all(jax.tree.map(lambda a: bool(np.isfinite(a).all()), tree))

    theirs, ours = (gradients(rnn) for rnn in RNNS[api])
    poisoned, harmless = (jnp.where(valid, xs, padding) for padding in (jnp.nan, 7.0))
    jax.tree.map(np.testing.assert_array_equal, ours(tree, poisoned), ours(tree, harmless))
    assert finite(ours(tree, poisoned))
    demonstrate("flax: NaN in padding poisons", not finite(theirs(tree, poisoned)))


@pytest.mark.parametrize(("api", "name"), [("linen", "LSTMCell"), ("nnx", "GRUCell")])
def test_bfloat16_computation_returns_bfloat16(api, name):
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes inside its step
        cell, tree = flax_cell(api, name, "float32", dtype=jnp.bfloat16)
        xs = inputs(B, T, D, dtype="float32")
        (_, theirs), (carry, ours) = (run_flax(api, rnn, cell, tree, xs, return_carry=True) for rnn in RNNS[api])
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=0.05)
        demonstrate("flax: dtype=bfloat16 returns float32", theirs.dtype == jnp.float32)
    assert ours.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype("float32")}  # as asked for, by param_dtype


def test_the_second_bias_of_pytorch_is_representable():
    """PyTorch's equations: n = tanh(W_in x + b_in + r ⊗ (W_hn h + b_hn)), h = (1 - z) ⊗ n + z ⊗ h."""
    cell = seqjax.GRU(H, reset="after", dtypes=F64)
    params = drawn(cell)
    x, h = inputs(B, D), inputs(B, H, seed=2)
    a, b = np.array(x @ params.w_in + params.bias), np.array(h @ params.w_rec + params.bias_rec)
    (z_x, r_x, n_x), (z_h, r_h, n_h) = np.split(a, 3, -1), np.split(b, 3, -1)
    z, n = sigmoid(z_x + z_h), np.tanh(n_x + sigmoid(r_x + r_h) * n_h)
    _, y = cell.step(params, seqjax.cells.GRUCarry(h), cell.project(params, x))
    np.testing.assert_allclose(y, (1 - z) * n + z * np.array(h), atol=1e-12)
    with pytest.raises(ValueError, match="flax#5594"):
        to_flax(cell, params, api="nnx")
    _, tree = nnx_cell("GRUCell")
    demonstrate("flax: nnx.GRUCell has no second bias", "bias" not in tree["dense_h"])


@pytest.mark.parametrize("reset", ["before", "after"])
def test_both_conventions_of_reset_are_there(reset):
    cell = seqjax.GRU(H, reset=reset, use_bias=False, dtypes=F64)
    params = seqjax.cells.GRUParams(inputs(D, 3 * H), inputs(H, 3 * H, seed=2), None)
    x, h = np.array(inputs(B, D)), np.array(inputs(B, H, seed=3))
    w_in, w_rec = np.array(params.w_in), np.array(params.w_rec)
    z, r = (sigmoid(x @ w_in[:, k * H : (k + 1) * H] + h @ w_rec[:, k * H : (k + 1) * H]) for k in (0, 1))
    product = (r * h) @ w_rec[:, 2 * H :] if reset == "before" else r * (h @ w_rec[:, 2 * H :])
    g = np.tanh(x @ w_in[:, 2 * H :] + product)
    _, y = cell.step(params, seqjax.cells.GRUCarry(jnp.asarray(h)), cell.project(params, jnp.asarray(x)))
    np.testing.assert_allclose(y, z * h + (1 - z) * g, atol=1e-12)


def test_a_mask_does_not_turn_the_fast_path_off():
    """Keras leaves cuDNN when there is a mask; here the hand-written reverse pass runs with and without."""
    model = seqjax.RNN(seqjax.GRU(H))
    params = jax.eval_shape(
        lambda key: model.init(key, jax.ShapeDtypeStruct((T, B, D), jnp.float32)), jax.random.key(0)
    )

    def rules(mask):
        def apply(params, xs, mask):
            return model.apply(params, model.initial_carry(params, (B,)), xs, mask=mask)

        program = jax.make_jaxpr(apply)(params, jax.ShapeDtypeStruct((T, B, D), jnp.float32), mask)
        return str(program).count("custom_vjp_call")

    assert rules(None) == rules(jax.ShapeDtypeStruct((T, B), bool)) == 1


@pytest.mark.parametrize(
    ("cell", "engine"),
    [
        (seqjax.GRU(H), engines.Scan()),
        (seqjax.LSTM(H), engines.Checkpointed(2)),
        (seqjax.Simple(H), engines.Truncated(2)),
        (seqjax.MinGRU(H), engines.Associative()),
        (seqjax.GRU(H), engines.Relaxed(2)),
    ],
    ids=repr,
)
def test_a_reset_ends_a_nan_for_it_selects_and_does_not_multiply(cell, engine):
    """A reset as `carry * (1 - reset)` (memax) would leave 0 x NaN."""
    params = drawn(cell)
    xs = inputs(T, B, D, dtype="float32").at[1].set(jnp.nan)
    resets = (jnp.arange(T) == 3)[:, None] & jnp.ones((T, B), bool)

    @jax.jit
    def run(xs, resets):
        return engine.run(cell, params, cell.initial_carry(params, (B,)), xs, resets=resets)

    _, ys = run(xs, resets)
    assert bool(jnp.isnan(ys[2]).any())
    _, fresh = run(jnp.roll(xs, -3, 0), jnp.zeros_like(resets))
    np.testing.assert_allclose(ys[3:], fresh[: T - 3], atol=1e-6)


@pytest.mark.parametrize(("cell", "engine"), [(seqjax.GRU(H), engines.Scan()), (seqjax.LRU(H), engines.Associative())])
def test_a_mask_selects_and_does_not_multiply(cell, engine):
    params = drawn(cell)
    mask = jnp.arange(T)[:, None] < LENGTHS
    xs = jnp.where(mask[..., None], inputs(T, B, D, dtype="float32"), jnp.inf)

    @jax.jit
    def run(params, xs):
        def loss(params):
            carry, ys = engine.run(cell, params, cell.initial_carry(params, (B,)), xs, mask=mask)
            return jnp.sum(ys**2), (carry, ys)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (carry, ys) = run(params, xs)
    assert jax.tree.all(jax.tree.map(lambda a: bool(jnp.isfinite(a).all()), (gradients, carry, ys)))
    assert not ys[4:].any()
    assert not ys[:, 1].any()


def test_weights_of_another_library_are_converted_and_not_retrained():
    """Gate orders and names differ (r, z, n; i, f, g, o): a GRU copied as it lies would give other numbers."""
    cell, tree = linen_cell("GRUCell")
    model, params = from_flax(cell, tree)
    assert params.w_in[:, :H].tolist() == tree["iz"]["kernel"].tolist()
    assert params.w_in[:, H : 2 * H].tolist() == tree["ir"]["kernel"].tolist()
    assert params.bias_rec[2 * H :].tolist() == tree["hn"]["bias"].tolist()
    assert model.reset == "after"
