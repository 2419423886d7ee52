# SPDX-License-Identifier: Apache-2.0
"""Blocks of steps in the hand-written pass: lengths that the contract table does not reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import DTypes
from seqjax.engines import Associative, Checkpointed, Newton, Relaxed
from seqjax.engines.scan import Scan
from seqjax.engines.steps import blocks
from seqjax.engines.steps.blocks import block_size
from seqjax.engines.steps.residuals import recall, store
from seqjax.testing import assert_close, example, reference_loop, value_and_gradients
from seqjax.trees import tree_bytes
from tests.common import F64, assert_equals_loop, gradients

CELLS = {
    "lstm": seqjax.LSTM(3, dtypes=F64),
    "gru": seqjax.GRU(3, dtypes=F64),
    "simple": seqjax.Simple(3, dtypes=F64),
}


@pytest.mark.parametrize("flags", [(), ("mask",), ("resets",), ("mask", "resets")], ids=lambda flags: "+".join(flags))
@pytest.mark.parametrize(("T", "size"), [(74, 37), (67, 64)], ids=["two blocks", "a block and a rest"])
@pytest.mark.parametrize("name", CELLS)
def test_blocks_of_steps_equal_the_reference_loop(name, T, size, flags, monkeypatch):
    """From a carry of other than zeros; masks and resets decide which residuals are outputs."""
    monkeypatch.setattr(blocks, "WHOLE_BYTES", 0)  # as if this were long
    cell = CELLS[name]
    arguments = example(cell, T=T, batch_shape=(2,), masked="mask" in flags, with_resets="resets" in flags)
    params, carry, xs, *_ = arguments
    assert block_size(cell, params, xs) == size
    assert all(jnp.abs(leaf).min() > 0 for leaf in jax.tree.leaves(carry))
    assert_equals_loop(cell, Scan(), *arguments)


@dataclasses.dataclass(frozen=True, repr=False)
class Given(seqjax.Cell):
    """A cell with a hand-written reverse pass that leaves the transpose of `project` to autodiff."""

    cell: seqjax.Cell
    capabilities = frozenset({"adjoint"})

    def init(self, key, in_dim):
        return self.cell.init(key, in_dim)

    def initial_carry(self, params, batch_shape):
        return self.cell.initial_carry(params, batch_shape)

    def project(self, params, x):
        return self.cell.project(params, x)

    def step(self, params, carry, z, key=None):
        return self.cell.step(params, carry, z)

    def step_residuals(self, params, carry, z):
        return self.cell.step_residuals(params, carry, z)

    def step_transpose(self, params, residuals, d_carry, d_y):
        return self.cell.step_transpose(params, residuals, d_carry, d_y)

    def accumulate(self, params, residuals, d_zs, extras):
        return self.cell.accumulate(params, residuals, d_zs, extras)


def test_the_transpose_of_a_projection_may_be_left_to_autodiff():
    cell = Given(seqjax.PeepholeLSTM(3, dtypes=F64))  # whose projection is a tuple
    assert_equals_loop(cell, Scan(), *example(cell, T=5, batch_shape=(2,), masked=True, with_resets=True))


def test_a_sequence_that_the_cache_holds_is_one_block():
    cell = seqjax.GRU(64)
    params = cell.init(jax.random.key(0), 2)
    sizes = [block_size(cell, params, jax.ShapeDtypeStruct((T, 8, 2), "float32")) for T in (337, 341, 342, 3420)]
    assert sizes == [337, 341, 57, 60]  # 2 MiB are 341.3 steps of 8 x 192 numbers of 4 bytes


class Named(Given):
    def project(self, params, x):
        z = jnp.concatenate(self.cell.project(params, x), -1)
        return {"last": z[..., 2:], "pair": z[..., :2]}


def test_what_is_projected_may_be_any_pytree_of_arrays_of_any_width():
    cell = Named(CELLS["gru"])
    params, _, xs, *_ = example(cell, T=5)
    z, transpose = jax.vjp(cell.project, params, xs)
    d_z = jax.tree.map(lambda a: jnp.sin(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), z)
    side_by_side = jnp.concatenate([d_z["last"], d_z["pair"]], -1)
    assert_close(cell.project_transpose(params, xs, side_by_side), transpose(d_z), 1e-12)


@pytest.mark.parametrize(
    "engine",
    [Scan(), Checkpointed(), Newton(window=9), Newton(jacobian="diagonal"), Relaxed(9), Relaxed(9, "diagonal")],
    ids=repr,
)
def test_a_batch_of_no_sequences_runs(engine):
    cell = seqjax.GRU(3)
    params = cell.init(jax.random.key(0), 2)
    xs = jnp.ones((74, 0, 2), "float32")

    def total(params):
        return engine.run(cell, params, cell.initial_carry(params, (0,)), xs)[1].sum()

    assert engine.run(cell, params, cell.initial_carry(params, (0,)), xs)[1].shape == (74, 0, 3)
    assert float(jnp.abs(jax.grad(total)(params).w_rec).max()) == 0


def scans(jaxpr):
    """All `scan` equations in a jaxpr, those inside others included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from scans(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    ("cell", "engine"),
    [
        (seqjax.Simple(4), Scan()),
        (seqjax.GRU(4), Scan()),
        (seqjax.LSTM(4), Checkpointed(8)),
        (seqjax.MinGRU(4), Associative("scan")),
    ],
    ids=repr,
)
def test_no_loop_stacks_bfloat16(cell, engine):
    """XLA on CPU would convert the whole stack at every step, and T steps would take a time of T²."""
    cell = dataclasses.replace(cell, dtypes=DTypes("bfloat16", "bfloat16"))
    params = cell.init(jax.random.key(0), 3)
    carry, xs = cell.initial_carry(params, (2,)), jnp.ones((64, 2, 3), "bfloat16")

    def gradient(params):
        return jax.grad(lambda params: engine.run(cell, params, carry, xs)[1].astype("float32").sum())(params)

    found = list(scans(jax.make_jaxpr(gradient)(params).jaxpr))
    assert len(found) >= 2
    for equation in found:
        stacked = [v for v in equation.outvars if v.aval.shape[:1] in [(equation.params["length"],), xs.shape[:1]]]
        assert stacked
        assert all(v.aval.dtype != jnp.bfloat16 for v in stacked), equation


def test_outputs_of_a_bfloat16_loop_are_bfloat16():
    cell = seqjax.GRU(4, dtypes=seqjax.DTypes(compute="bfloat16", carry="float32"))
    params = cell.init(jax.random.key(0), 3)
    carry, ys = Scan().run(cell, params, cell.initial_carry(params, (2,)), jnp.ones((5, 2, 3)))
    expected_carry, expected = reference_loop(cell, params, cell.initial_carry(params, (2,)), jnp.ones((5, 2, 3)))
    assert (ys.dtype, carry.h.dtype) == (expected.dtype, expected_carry.h.dtype) == ("bfloat16", "float32")
    np.testing.assert_allclose(ys.astype("float32"), expected.astype("float32"), atol=2**-7)


def test_off_the_cpu_blocks_are_large(monkeypatch):
    """A step of 256 sequences projects to 256 x 1,024 x 4 bytes, 1 MiB: 256 steps, where a CPU takes one or two."""
    cell = seqjax.LSTM(256)
    params = jax.eval_shape(lambda key: cell.init(key, 8), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((512, 256, 8), jnp.float32)
    assert block_size(cell, params, xs) <= 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert block_size(cell, params, xs) == 256


@pytest.mark.parametrize(("T", "size"), [(67, 67), (74, 37)], ids=["whole", "two blocks"])
@pytest.mark.parametrize(
    "cell",
    [
        seqjax.Simple(3, normalize="layer", dtypes=F64),
        seqjax.LSTM(3, dtypes=F64),
        seqjax.PeepholeLSTM(3, normalize="layer", proj_dim=2, dtypes=F64),
        seqjax.GRU(3, reset="after", normalize="layer", dtypes=F64),
        seqjax.IndRNN(3, dtypes=F64),
        seqjax.DiagonalLSTM(3, dtypes=F64),
    ],
    ids=repr,
)
def test_residuals_that_lie_side_by_side_give_the_numbers_of_the_reference_loop(cell, T, size, monkeypatch):
    params, carry, xs, mask, resets = example(cell, T=T, batch_shape=(2,), masked=True, with_resets=True)
    flags = {"mask": mask, "resets": resets}
    expected = value_and_gradients(reference_loop, cell, params, carry, xs, **flags)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    if size < T:
        monkeypatch.setattr(blocks, "LARGE_BYTES", size * tree_bytes(cell.project(params, xs[0])))
    assert block_size(cell, params, xs) == size
    assert_close(gradients(Scan(), cell, params, carry, xs, **flags), expected, 1e-10)


def test_residuals_are_stored_in_one_array_where_each_is_a_launch(monkeypatch):
    cell = seqjax.LSTM(3)
    params, carry, xs, _, _ = example(cell, T=8, batch_shape=(2,))
    z = cell.project(params, xs[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    after, y, residuals = cell.step_residuals(params, carry, z)
    stored = store(residuals, carry, after, y)
    assert [array.shape for array in stored.arrays] == [(2, 15)]  # i, f, g, o and c; h is the output before
    jax.tree.map(np.testing.assert_array_equal, recall(stored, y, carry.h), residuals)


@pytest.mark.parametrize(
    ("cell", "plain", "masked", "with_resets"),
    [
        (seqjax.Simple(4), 1, 3, 2),  # y; h before, h and y; with resets h before is not the output before
        (seqjax.GRU(4), 4, 5, 5),  # z, r, g and y; h before
        (seqjax.LSTM(4), 6, 7, 7),  # i, f, g, o, c before and y; h before
        (seqjax.LSTM(4, proj_dim=2), 7, 8, 8),  # and what is projected
    ],
    ids=repr,
)
def test_a_loop_stores_no_residual_that_is_an_output(cell, plain, masked, with_resets):
    params, carry, xs, mask, resets = example(cell, T=8, batch_shape=(2,), masked=True, with_resets=True)

    def stacked(**flags):
        def forward(params):
            return jax.vjp(lambda params: Scan().run(cell, params, carry, xs, **flags)[1], params)[0]

        def gradient(params):
            return jax.vjp(lambda params: Scan().run(cell, params, carry, xs, **flags)[1], params)[1](forward(params))

        loops = list(scans(jax.make_jaxpr(gradient)(params).jaxpr))
        return max(sum(v.aval.shape[:1] == (8,) for v in loop.outvars) for loop in loops if not loop.params["reverse"])

    assert (stacked(), stacked(mask=mask), stacked(resets=resets)) == (plain, masked, with_resets)


@pytest.mark.parametrize("make", [seqjax.LSTM, seqjax.PeepholeLSTM, seqjax.GRU, seqjax.DiagonalLSTM])
def test_autodiff_keeps_of_a_step_no_more_than_with_the_plain_functions(make):
    def kept(cell):
        params, carry, xs, _, _ = example(cell, T=4, batch_shape=(2,))
        return Scan(adjoint=False).step_bytes(cell, params, carry, xs)

    plain = {"activation": lambda x: jnp.tanh(x), "recurrent_activation": lambda x: jax.nn.sigmoid(x)}
    assert kept(make(8)) <= kept(make(8, **plain))


@pytest.mark.parametrize("cell", [seqjax.Simple, seqjax.LSTM, seqjax.GRU])
def test_a_normalization_of_no_variance_has_a_gradient_in_half_precision(cell):
    """1 / sqrt(epsilon), in padding that is normalized too, leaves float16."""
    cell = cell(3, normalize="layer", epsilon=1e-12, use_bias=False, dtypes=seqjax.DTypes(compute="float16"))
    xs, mask = jnp.ones((4, 2, 2), jnp.float32), seqjax.mask_from_lengths(jnp.array([4, 3]), 4)[::-1]
    params = cell.init(jax.random.key(0), 2)

    def loss(engine, params):
        ys = engine.run(cell, params, cell.initial_carry(params, (2,)), xs, mask=mask)[1]
        return (ys.astype(jnp.float32) ** 2).sum()

    found, expected = (jax.grad(loss, 1)(Scan(adjoint=adjoint), params) for adjoint in (True, False))
    assert_close(found, expected, 0.02)
