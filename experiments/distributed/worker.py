# SPDX-License-Identifier: Apache-2.0
"""What each process does: its part of every sequence, compared with a loop that it runs alone."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.distributed.config import Config
from seqjax import GRU, LRU, LSTM, RNN, DTypes, MinGRU, Serial
from seqjax.base import Layer
from seqjax.engines.scan import Scan
from seqjax.engines.sharded import Sharded, sharded_solve
from seqjax.layers.wavefront import Wavefront

AXIS = "devices"


class Case(NamedTuple):
    """A model over all devices, and the one of this process that must give the same numbers."""

    name: str
    split: Callable[..., tuple[Any, Any, Any]]
    """`(params, carry, xs, mask, resets) -> (carry, ys, sweeps)`; sweeps are 0 where nothing is relaxed."""
    alone: Layer
    time: str | None
    """The mesh axis that inputs are split over."""


def main(config: Config, index: int, address: str) -> None:
    """Joins the others, and prints a JSON line for each model: what this process found in its part."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", config.devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(address, num_processes=config.processes, process_id=index)
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    for model in config.models:
        print(json.dumps(compare(config, make_case(config, model, mesh), mesh)), flush=True)
    jax.distributed.shutdown()


def make_case(config: Config, model: str, mesh: Mesh) -> Case:
    """The case that `model` names."""
    dtypes = DTypes("float64")
    if model == "wavefront":
        cell = GRU(config.hidden_dim, dtypes=dtypes)
        stack = Wavefront(cell, mesh.size, mesh, AXIS)

        def pipelined(params, carry, xs, mask, resets):
            return *stack.apply(params, carry, xs, mask=mask, resets=resets), 0

        return Case(f"{mesh.size} x GRU, wavefront", pipelined, Serial(*[RNN(cell, Scan())] * mesh.size), None)
    kind = {"gru": GRU, "lstm": LSTM, "min-gru": MinGRU, "lru": LRU}[model]
    cell, engine = kind(config.hidden_dim, dtypes=dtypes), Sharded(mesh, AXIS)

    def sharded(params, carry, xs, mask, resets):
        solution = sharded_solve(cell, params, carry, xs, engine=engine, mask=mask, resets=resets)
        return solution.carry, solution.ys, solution.iterations

    time = AXIS if config.steps % mesh.size == 0 else None  # an array cannot be split unevenly
    return Case(f"{kind.__name__}, time split", sharded, RNN(cell, Scan()), time)


def compare(config: Config, case: Case, mesh: Mesh) -> dict[str, Any]:
    """The largest differences in this process's part of the outputs and of the gradients."""
    random = np.random.default_rng(config.seed)
    T, B, H = config.steps, config.batch_size, config.hidden_dim
    xs, weights = random.normal(size=(T, B, H)), random.normal(size=(T, B, H))
    mask = np.arange(T)[:, None] < random.integers(1, T + 1, B)
    arrays = xs, mask, random.random((T, B)) < 1 / T, weights
    params = jax.jit(case.alone.init)(jax.random.key(config.seed), xs)
    start = jax.tree.map(np.asarray, (params, case.alone.initial_carry(params, (B,))))

    def loss(run, params, carry, xs, mask, resets, weights):
        carry, ys, sweeps = run(params, carry, xs, mask, resets)
        return (weights * ys).sum(), (carry, ys, sweeps)

    def alone(params, carry, xs, mask, resets):
        return *case.alone.apply(params, carry, xs, mask=mask, resets=resets), 0

    def step(run):
        return jax.jit(jax.value_and_grad(functools.partial(loss, run), (0, 1, 2), has_aux=True))

    placed = [spread(mesh, PartitionSpec(case.time), array) for array in arrays]
    (_, (*outputs, sweeps)), gradients = step(case.split)(*start, *placed)
    (_, (*expected, _)), expected_gradients = step(alone)(*start, *arrays)
    return {
        "model": case.name,
        "sweeps": int(np.asarray(sweeps.addressable_data(0))),
        "values": difference(outputs, expected),
        "gradients": difference(gradients, expected_gradients),
    }


def spread(mesh: Mesh, spec: PartitionSpec, array: np.ndarray) -> jax.Array:
    """A global array of which each process holds its part alone."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def difference(actual: Any, expected: Any) -> float:
    """The largest difference in what this process holds, relative to the leaf's largest number if that is above 1."""
    worst = [0.0]
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b)
        scale = max(1.0, float(np.abs(b).max(initial=0.0)))
        for shard in a.addressable_shards:
            worst.append(float(np.abs(np.asarray(shard.data) - b[shard.index]).max(initial=0.0)) / scale)
    return float(np.max(worst))  # NaN wins


if __name__ == "__main__":
    main(Config.from_json(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
