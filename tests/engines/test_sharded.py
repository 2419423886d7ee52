# SPDX-License-Identifier: Apache-2.0
"""`Sharded` and `Wavefront`: what one device shows here, and the laws on eight in processes of their own."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seqjax import GRU, RNN, MinGRU
from seqjax.cells import Zoneout
from seqjax.engines import Associative, Auto, Checkpointed, Relaxed, Scan, Truncated
from seqjax.engines.sharded import Sharded
from seqjax.kernels.triton.launch import missing
from seqjax.layers.wavefront import Wavefront
from seqjax.testing import example

TESTS = pathlib.Path(__file__).parents[1]
MESH = jax.make_mesh((1, 1), ("time", "batch"))


@pytest.mark.parametrize(
    "laws",
    [
        ["engines/eight_devices_sharded.py"],
        ["layers/eight_devices_wavefront.py", "layers/eight_devices_explicit.py"],
    ],
    ids=["engine", "layers"],
)
def test_the_laws_hold_on_eight_devices(laws):
    # the number of devices is fixed once JAX has started, as it has here
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # nearly all of the time is compilation
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(str(TESTS / file) for file in laws)],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_it_prints_compares_and_hashes_by_its_axes():
    engine = Sharded(MESH, "time", Scan(), batch_axis="batch")
    assert repr(engine) == "Sharded(Mesh(time=1, batch=1), 'time', inner=Scan(), batch_axis='batch')"
    again = Sharded(jax.make_mesh((1, 1), ("time", "batch")), "time", Scan(), "batch")
    assert again == engine
    assert hash(again) == hash(engine)
    assert dataclasses.replace(engine, inner=Auto()) != engine
    assert repr(Wavefront(GRU(3), 2, MESH, "time")) == "Wavefront(GRU(3), 2, Mesh(time=1, batch=1), 'time')"


def test_an_axis_that_the_mesh_has_not_is_refused():
    with pytest.raises(ValueError, match=r"Sharded: axis must be one of the mesh's axes \['time', 'batch'\], got 'T'"):
        Sharded(MESH, "T")
    with pytest.raises(ValueError, match=r"batch_axis must be one of the mesh's axes .* got 'B'"):
        Sharded(MESH, "time", batch_axis="B")
    with pytest.raises(ValueError, match="both are 'time'"):
        Sharded(MESH, "time", batch_axis="time")
    with pytest.raises(ValueError, match="Wavefront: axis must be one of the mesh's axes"):
        Wavefront(GRU(3), 1, MESH, "layer")
    with pytest.raises(ValueError, match=r"mesh must be a jax\.sharding\.Mesh"):
        Sharded(8, "time")


@pytest.mark.parametrize("model", [RNN(MinGRU(3), Sharded(MESH, "time")), Wavefront(GRU(3), 1, MESH, "time")])
def test_it_runs_inside_its_own_mesh_and_another_one_with_explicit_axes_is_refused(model):
    xs = jnp.ones((5, 2, 3), "float32")
    params = model.init(jax.random.key(0), xs)
    carry = model.initial_carry(params, (2,))
    other = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    for apply in (model.apply, jax.jit(model.apply)):
        with pytest.raises(ValueError, match=r"another mesh with explicit axes, {'data': 1}, from its inputs"):
            apply(params, carry, jax.device_put(xs, NamedSharding(other, PartitionSpec())))
    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(Mesh(MESH.devices, MESH.axis_names, axis_types=(kind,) * 2)):  # its own
            model.apply(params, carry, xs)


@pytest.mark.parametrize("inner", [Truncated(4), Sharded(MESH, "time"), Associative(segment=8), GRU(3)])
def test_an_inner_engine_without_the_gradient_of_the_loop_is_refused(inner):
    with pytest.raises(ValueError, match="inner must be an engine that runs a whole piece"):
        Sharded(MESH, "time", inner)


def test_a_cell_that_the_inner_engine_cannot_run_is_refused():
    params, carry, xs, *_ = example(GRU(3))
    with pytest.raises(ValueError, match="needs a cell that offers 'affine'"):
        Sharded(MESH, "time", Associative()).run(GRU(3), params, carry, xs)
    with pytest.raises(ValueError, match="keys are drawn already; use Scan or Checkpointed"):
        Sharded(MESH, "time", Relaxed()).run(Zoneout(GRU(3), 0.1), params, carry, xs, key=jax.random.key(0))


@pytest.mark.skipif(missing() is None, reason="the kernel runs here")
def test_a_method_that_the_machine_cannot_run_is_refused_and_not_replaced():
    params, carry, xs, *_ = example(MinGRU(3))
    engine = Sharded(MESH, "time", Associative("kernel"))
    for use in (engine.run, engine.plan):
        with pytest.raises(ValueError, match="method 'kernel' needs an NVIDIA GPU"):
            use(MinGRU(3), params, carry, xs)


def test_a_tolerance_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"tol must be positive, .* got 0"):
        Sharded(MESH, "time", tol=0.0)


def test_a_stack_whose_outputs_are_not_like_its_inputs_is_refused():
    with pytest.raises(ValueError, match=r"hands outputs on as inputs.*Dense\(3\) before it"):
        Wavefront(GRU(3), 2, MESH, "time").init(jax.random.key(0), jax.ShapeDtypeStruct((5, 2), jnp.float32))


def test_a_plan_counts_two_local_runs():
    xs = jax.ShapeDtypeStruct((10_000, 2, 3), jnp.float32)
    for cell, inner in ((GRU(4), Scan()), (GRU(512), Checkpointed()), (MinGRU(4), Associative())):
        model = RNN(cell, Sharded(MESH, "time"))
        (plan,) = model.plan(jax.eval_shape(model.init, jax.random.key(0), xs), xs)
        assert plan.depth == 2 * 10_000
        assert f"1 pieces of 10000 steps by {inner!r}" in plan.why
