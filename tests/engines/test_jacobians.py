# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.cells import GRU, LSTM
from seqjax.cells.diagonal import DiagonalGRU
from seqjax.engines.solving.jacobians import (
    Packing,
    packed_jacobians,
    recurrence_loop,
    recurrence_tree,
    solve_recurrence,
)
from seqjax.engines.steps.pieces import split_steps
from seqjax.engines.steps.stepping import Steps, masked_step, prepare
from seqjax.testing import example
from tests.common import F64


@pytest.mark.parametrize("solve", [recurrence_loop, recurrence_tree, solve_recurrence])
@pytest.mark.parametrize("blocks", [False, True])
def test_linear_recurrences_are_those_of_a_loop(solve, blocks):
    random = np.random.default_rng(0)
    drives = random.normal(size=(13, 2, 3, 4))
    matrices = random.normal(size=(13, 2, 3, 4, 4) if blocks else drives.shape)
    state, expected = np.zeros((2, 3, 4)), []
    for matrix, drive in zip(matrices, drives, strict=True):
        state = (np.einsum("...ij,...j->...i", matrix, state) if blocks else matrix * state) + drive
        expected.append(state)
    np.testing.assert_allclose(jax.jit(solve)(matrices, drives), expected, rtol=1e-9)


def dense(cell, params, initial, carry, step):
    """The Jacobian of one masked step of an unbatched carry, by autodiff of the whole."""
    leaves, treedef = jax.tree.flatten(carry)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def function(flat):
        parts = [part.reshape(leaf.shape) for part, leaf in zip(jnp.split(flat, ends), leaves, strict=True)]
        after, _ = masked_step(cell, params, initial, jax.tree.unflatten(treedef, parts), step)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(after)])

    return jax.jacfwd(function)(jnp.concatenate([leaf.ravel() for leaf in leaves]))


@pytest.mark.parametrize(
    ("cell", "structure"),
    [
        (LSTM(3, dtypes=F64), "dense"),
        (GRU(20, dtypes=F64), "diagonal"),  # more columns than are taken at a time
        (DiagonalGRU(3, dtypes=F64), "diagonal"),  # closed form
        (DiagonalGRU(3, activation=jnp.sin, dtypes=F64), "diagonal"),  # one product
    ],
)
def test_step_jacobians_are_those_of_autodiff_with_masks_and_resets(cell, structure):
    params, carry, xs, *_ = example(cell, T=4, batch_shape=())
    mask, resets = jnp.array([True, False, True, False]), jnp.array([False, False, True, True])
    params, initial, carry, steps = prepare(cell, params, carry, xs.at[1].set(jnp.nan), mask, resets, None)
    carries = jax.tree.map(lambda a: jnp.stack([a, 2 * a, 3 * a, -a]), carry)
    packing = Packing.of(carry, 0, structure)
    got = jax.jit(lambda params, carries: packed_jacobians(packing, cell, params, initial, carries, steps))(
        params, carries
    )
    at = jax.jit(lambda carry, step: dense(cell, params, initial, carry, step))
    expected = [at(*jax.tree.map(lambda a, t=t: a[t], (carries, steps))) for t in range(4)]
    full = got[:, 0] if structure == "dense" else [np.diag(diagonal) for diagonal in got]
    eye = np.eye(expected[0].shape[0])
    wanted = expected if structure == "dense" else [eye * matrix for matrix in expected]
    np.testing.assert_allclose(full, wanted, atol=1e-13)
    np.testing.assert_array_equal(full[1], eye)  # masked: kept
    np.testing.assert_array_equal(full[3], 0 * eye)  # masked and reset: forgotten


@pytest.mark.parametrize("structure", ["dense", "block", "diagonal"])
def test_packing_is_undone_by_unpacking(structure):
    random = np.random.default_rng(0)
    carry = tuple(random.normal(size=(2, 3, 4)).astype(dtype) for dtype in ("float32", "float64"))
    packing = Packing.of(carry, 2, structure)
    packed = packing.pack(carry)
    assert packed.shape == {"dense": (2, 3, 1, 8), "block": (2, 3, 4, 2), "diagonal": (2, 3, 8)}[structure]
    for got, given in zip(packing.unpack(packed), carry, strict=True):
        assert got.dtype == given.dtype
        np.testing.assert_array_equal(got, given)


def test_blocks_need_leaves_of_one_shape():
    with pytest.raises(ValueError, match="leaves of one shape"):
        Packing.of((np.zeros((2, 3)), np.zeros((2, 4))), 1, "block")


def test_the_steps_that_fill_up_the_last_piece_are_masked():
    steps = Steps(jnp.arange(10.0).reshape(5, 2), None, jnp.ones(5, bool), None)
    pieces = split_steps(steps, 3)
    assert pieces.x.shape == (2, 3, 2)
    assert pieces.mask.tolist() == [[True, True, True], [True, True, False]]
    assert pieces.reset.tolist() == [[True, True, True], [True, True, False]]
    assert split_steps(steps, 5).mask is None
