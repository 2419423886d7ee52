# SPDX-License-Identifier: Apache-2.0
"""Do the kernels compile to machine code for an H100, and what do loops launch there? Asked on a machine without a GPU.

Needs the packages of `jax[cuda13]` and `ptxas`, but no device: XLA compiles for a described one.
It says which kernels exceed the chip's shared memory; times are those of the compiler. Of the gradient by `Scan()`
it counts the operations of a step, each of them a launch. With
`MOSAIC_GPU_DUMP_PTXAS=1 MOSAIC_GPU_DUMP_TO=folder` the code of the kernels for a Hopper is left there, for
`ptxas -v -arch=sm_90a` to tell of registers and spills.
`JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m experiments.benchmarks.gpu_compile`: there is no driver to ask for
its version.
"""

import functools
import re
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import seqjax
from seqjax.engines import Scan
from seqjax.kernels import equations, operands
from seqjax.kernels.hopper import recurrence as hopper
from seqjax.kernels.hopper import tiles
from seqjax.kernels.triton import linear, recurrence

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

DESCRIBED = jax.sharding.AbstractMesh(
    (1,),
    ("device",),
    axis_types=(jax.sharding.AxisType.Auto,),
    abstract_device=jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu"),
)
"""What Pallas' Triton backend asks for where there is no device, from jax 0.11 on."""


def compiled(sharding: NamedSharding, fn: Callable[..., Any], *arguments: Any) -> Any:
    """`fn` compiled for the described device."""
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    with jax.sharding.use_abstract_mesh(DESCRIBED):
        return jax.jit(fn).trace(*placed).lower(lowering_platforms=("cuda",)).compile()


def compile_for(sharding: NamedSharding, name: str, fn: Callable[..., Any], *arguments: Any) -> Any:
    """Compiles `fn` for the described device and prints what came of it; the shapes of its results."""
    start = time.perf_counter()
    try:
        compiled(sharding, fn, *arguments)
        outcome = "compiles"
    except RuntimeError as problem:
        outcome = f"fails: {str(problem)[:120]}"
    print(f"{name}: {outcome} ({time.perf_counter() - start:.1f} s)", flush=True)
    return jax.eval_shape(fn, *arguments)


def operations(program: str) -> list[int]:
    """How much the body of each innermost loop launches, read off a compiled program."""
    launch = re.compile(r" (?:fusion|custom-call|dot|copy|concatenate|dynamic-update-slice)\(")
    texts = dict(re.findall(r"^(%[\w.\-]+) [^\n]*\{$(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    bodies = [texts[name] for name in re.findall(r"body=(%[\w.\-]+)", program)]
    return [len(launch.findall(body)) for body in bodies if " while(" not in body]


def count_operations(sharding: NamedSharding) -> None:
    """Prints the operations of a step of each cell's loops, forward and in reverse, in a gradient by `Scan()`."""
    B, T, H = 64, 100, 512
    cells = seqjax.Simple(H), seqjax.LSTM(H), seqjax.GRU(H), seqjax.GRU(H, reset="after")
    for cell in cells:
        params = jax.eval_shape(lambda key, cell=cell: cell.init(key, H), jax.random.key(0))

        def gradient(params: Any, xs: jax.Array, cell: Any = cell) -> Any:
            def loss(params: Any) -> jax.Array:
                return (Scan().run(cell, params, cell.initial_carry(params, (B,)), xs)[1] ** 2).sum()

            return jax.grad(loss)(params)

        xs = jax.ShapeDtypeStruct((T, B, H), jnp.float32)
        with mock.patch.object(jax, "default_backend", return_value="gpu"):
            program = compiled(sharding, gradient, params, xs)
        print(f"{cell!r}, operations of a step in each loop: {operations(program.as_text())}", flush=True)


def main() -> None:
    """Every recurrence in both dtypes at H from 64 to 320 where it fits, the linear recurrence, the loops."""
    topology = topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1")
    sharding = NamedSharding(
        Mesh(np.array(topology.devices), ("device",), axis_types=(jax.sharding.AxisType.Auto,)), PartitionSpec()
    )
    T, B = 1024, 32
    of = equations.Functions()
    for kind in (equations.SIMPLE, equations.LSTM, equations.GRU_AFTER, equations.GRU_BEFORE):
        for dtype in ("float32", "bfloat16"):
            for H in (64, 128, 256, 320):
                weights: Any = jax.ShapeDtypeStruct((H, kind.gates * H), jnp.float32)
                states: Any = (jax.ShapeDtypeStruct((B, H), jnp.float32),) * kind.states
                given = operands.Given(weights, None, states, None, None)
                z = jax.ShapeDtypeStruct((T, B, kind.gates * H), jnp.dtype(dtype))
                ways: dict[str, list[Any]] = {}
                if recurrence.fits(kind.gates, H, dtype):
                    passes = recurrence.forward, recurrence.reverse
                    ways["any GPU"] = [functools.partial(f, kind, of) for f in passes]
                if tiles.fits(kind, H, dtype):
                    ways["Hopper"] = [functools.partial(f, kind, of) for f in (hopper.forward, hopper.reverse)]
                for way, (forward, reverse) in ways.items():
                    name = f"{kind.name}, {dtype}, H={H}, {way}"
                    left = compile_for(sharding, f"{name}, forward", forward, z, given)
                    compile_for(sharding, f"{name}, reverse", reverse, given, left, left.sequences[0], left.last)
    for dtype in ("float32", "bfloat16", "complex64"):
        array = jax.ShapeDtypeStruct((2**20, 64), jnp.dtype(dtype))
        for backwards in (False, True):
            solve = functools.partial(linear.solve, reverse=backwards)
            compile_for(sharding, f"linear, {dtype}, reverse={backwards}", solve, array, array)
    count_operations(sharding)


if __name__ == "__main__":
    main()
