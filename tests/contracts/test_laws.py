# SPDX-License-Identifier: Apache-2.0
"""The laws: every cell under every engine, against the Python reference loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.base import Cell
from seqjax.engines import Newton, Relaxed
from seqjax.testing import assert_close, check_step, example, reference_loop, value_and_gradients
from tests.common import gradients
from tests.contracts.table import ENGINES, cells, refusal

# T, batch, masked, with resets: T is 1, 2, a prime, a power of two
CASES = {
    "T1": (1, (3,), False, False),
    "T2-reset": (2, (), False, True),
    "T13-two-batch-axes-masked-resets": (13, (2, 3), True, True),
    "T8-masked": (8, (3,), True, False),
}
RICH = "T13-two-batch-axes-masked-resets"
CELLS = {dtype: cells(dtype) for dtype in ("float64", "float32")}
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def is_scan(name: str, cell: Cell, engine: str) -> bool:
    """Whether a pair is the very program of the cell under `scan`, and is not compiled twice."""
    if engine == "truncated":  # no window is shorter than the sequences here
        return name not in ("lstm", "lambda")
    return engine == "scan-generic" and "adjoint" not in cell.capabilities


PAIRS = [
    (name, engine)
    for name, cell in CELLS["float64"].items()
    for engine in ENGINES
    if refusal(name, cell, ENGINES[engine]) is None and not is_scan(name, cell, engine)
]


@functools.cache
def reference(name: str, dtype: str, case: str, training: bool):
    """The expected values and gradients, computed once for all engines."""
    T, batch, masked, with_resets = CASES[case]
    cell = CELLS[dtype][name]
    params, carry, xs, mask, resets = example(cell, T=T, batch_shape=batch, masked=masked, with_resets=with_resets)
    flags = {"mask": mask, "resets": resets, "key": jax.random.key(7) if training else None}
    expected = value_and_gradients(reference_loop, cell, params, carry, xs, **flags)
    return (params, carry, xs), flags, expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_every_engine_equals_the_reference_loop(name, engine, case):
    cell = CELLS["float64"][name]
    arguments, flags, expected = reference(name, "float64", case, training=False)
    assert_close(gradients(ENGINES[engine], cell, *arguments, **flags), expected, TOLERANCE["float64"])


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_every_engine_equals_the_reference_loop_in_float32(name, engine):
    cell = CELLS["float32"][name]
    arguments, flags, expected = reference(name, "float32", RICH, training=False)
    assert_close(gradients(ENGINES[engine], cell, *arguments, **flags), expected, TOLERANCE["float32"])


NOISY = [
    (name, engine)
    for name, engine in PAIRS
    if CELLS["float64"][name].stochastic and engine not in ("scan-generic", "truncated")  # the loop of scan
]


@pytest.mark.parametrize(("name", "engine"), NOISY)
def test_a_stochastic_cell_draws_the_same_noise_under_every_engine(name, engine):
    cell = CELLS["float64"][name]
    case = "T1" if cell.couples_batch else RICH
    arguments, flags, expected = reference(name, "float64", case, training=True)
    if cell.couples_batch and isinstance(ENGINES[engine], Relaxed | Newton):
        with pytest.raises(ValueError, match="Scan"):
            ENGINES[engine].run(cell, *arguments, **flags)
        return
    actual = jax.jit(functools.partial(ENGINES[engine].run, cell))(*arguments, **flags)
    assert_close(actual, expected[0], TOLERANCE["float64"])
    evaluated = reference(name, "float64", case, training=False)[2][0]
    assert float(jnp.abs(actual[1] - evaluated[1]).max()) > 1e-3, "training draws noise"


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_two_pieces_equal_the_whole(name, engine):
    cell = CELLS["float64"][name]
    (params, carry, xs), flags, expected = reference(name, "float64", RICH, False)
    run = jax.jit(functools.partial(ENGINES[engine].run, cell, params))
    outputs = []
    for piece in (slice(0, 1), slice(1, 13)):  # a step alone is streaming
        carry, ys = run(carry, xs[piece], mask=flags["mask"][piece], resets=flags["resets"][piece])
        outputs.append(ys)
    assert_close((carry, jnp.concatenate(outputs)), expected[0], TOLERANCE["float64"])


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_vmap_equals_batched(name, engine):
    cell = CELLS["float64"][name]
    (params, carry, xs), flags, expected = reference(name, "float64", "T8-masked", False)
    run = jax.vmap(lambda c, x, m: ENGINES[engine].run(cell, params, c, x, mask=m), (0, 1, 1), (0, 1))
    assert_close(jax.jit(run)(carry, xs, flags["mask"]), expected[0], TOLERANCE["float64"])


@pytest.mark.parametrize("engine", ENGINES)
def test_pairs_that_cannot_are_refused_by_name(engine):
    for name, cell in CELLS["float64"].items():
        message = refusal(name, cell, ENGINES[engine])
        if message is not None:
            params, carry, xs, _, _ = example(cell, T=1)
            with pytest.raises(ValueError, match=message):
                ENGINES[engine].run(cell, params, carry, xs)


@pytest.mark.parametrize("name", CELLS["float64"])
def test_a_step_keeps_the_carry(name):
    (params, carry, xs), _, _ = reference(name, "float64", "T1", False)
    check_step(CELLS["float64"][name], params, carry, xs[0])


@pytest.mark.parametrize("name", CELLS["float64"])
def test_init_works_under_eval_shape(name):
    cell = CELLS["float64"][name]
    shapes = jax.eval_shape(lambda key: cell.init(key, 2), jax.random.key(0))
    params = cell.init(jax.random.key(0), 2)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)


@pytest.mark.parametrize("engine", [name for name in ENGINES if not name.startswith("associative")])
def test_one_trace_per_shape(engine):
    traces = []
    cell = CELLS["float64"]["gru-before"]
    (params, carry, xs), _, _ = reference("gru-before", "float64", "T8-masked", False)

    @functools.partial(jax.jit, static_argnums=0)
    def run(cell, xs):
        traces.append(xs.shape)
        return ENGINES[engine].run(cell, params, carry, xs)

    run(cell, xs)
    run(cells("float64")["gru-before"], xs + 1)  # an equal cell, made anew
    run(cell, xs[:4])
    assert traces == [(8, 3, 2), (4, 3, 2)]


@pytest.mark.parametrize("engine", ["scan", "scan-generic", "checkpointed"])
@pytest.mark.parametrize("name", ["simple-layer", "lstm", "gru-after"])
def test_gradients_are_right_against_finite_differences(name, engine):
    cell = CELLS["float64"][name]
    (params, carry, xs), _, _ = reference(name, "float64", "T2-reset", False)

    def loss(inputs):
        carry, ys = ENGINES[engine].run(cell, *inputs)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((carry, ys)))

    random = np.random.default_rng(3)
    inputs = (params, carry, xs)
    direction = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape)), inputs)
    loss = jax.jit(loss)

    def along(step):
        return float(loss(jax.tree.map(lambda a, d: a + step * d, inputs, direction)))

    slope = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(jax.tree.leaves(jax.grad(loss)(inputs)), jax.tree.leaves(direction), strict=True)
    )
    h = 1e-5
    numeric = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)  # five-point stencil
    np.testing.assert_allclose(slope, numeric, rtol=1e-8, atol=1e-9)


SECOND = [
    *(("scan", name) for name in ("simple-layer", "lstm", "gru-before")),
    *(("checkpointed", name) for name in ("gru-before", "min-gru")),
    ("truncated", "lstm"),
    ("associative", "rg-lru"),
]


@pytest.mark.parametrize(("engine", "name"), SECOND)
def test_derivatives_of_gradients_are_those_of_the_generic_loop(engine, name):
    """The gradient of a gradient, and a Hessian-vector product by forward mode through the gradient."""
    cell = CELLS["float64"][name]
    (params, carry, xs), flags, _ = reference(name, "float64", "T8-masked", False)
    along = jnp.cos(jnp.arange(xs.size, dtype=xs.dtype)).reshape(xs.shape)

    def second(engine, xs):
        def energy(xs):
            return jnp.sum(jnp.sin(engine.run(cell, params, carry, xs, mask=flags["mask"])[1]))

        penalty = jax.grad(lambda xs: jnp.sum(jax.grad(energy)(xs) ** 2))
        return penalty(xs), jax.jvp(jax.grad(energy), (xs,), (along,))[1]

    actual, expected = (jax.jit(functools.partial(second, ENGINES[e]))(xs) for e in (engine, "scan-generic"))
    assert all(float(jnp.nanmax(jnp.abs(found))) > 1e-3 for found in expected)
    assert_close(actual, expected, TOLERANCE["float64"])


def test_forward_mode_works_generically_and_is_refused_by_the_hand_written_rule():
    cell = CELLS["float64"]["gru-before"]
    (params, carry, xs), _, _ = reference("gru-before", "float64", "T1", False)

    def outputs(engine, xs):
        return engine.run(cell, params, carry, xs)[1]

    forward = jax.jacfwd(functools.partial(outputs, ENGINES["scan-generic"]))(xs)
    reverse = jax.jacrev(functools.partial(outputs, ENGINES["scan"]))(xs)
    assert_close(forward, reverse, TOLERANCE["float64"])
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(functools.partial(outputs, ENGINES["scan"]), (xs,), (xs,))
