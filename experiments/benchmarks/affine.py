# SPDX-License-Identifier: Apache-2.0
"""Affine cells: how near to the speed of memory, and how far from `lax.associative_scan`?

Two levels. `recurrence`: the diagonal linear recurrence alone, against one elementwise product over
the same arrays (which no recurrence can beat) and against `lax.scan` and `lax.associative_scan`,
forward and gradient. `cell`: whole cells, with their matmuls and gates, under `Associative` and
under `Scan`, and with everything vectorized over all steps around one `lax.associative_scan`.

At 25 MB an array the product's time depends on whether the allocator hands out pages that are
mapped already: on one machine it was 3 to 5 ms or 17 to 21 ms, the recurrence 11 to 19 ms. So read
`times_product` with its quartiles; the batch of 8 is the steadier row.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import measure
from seqjax.base import Cell
from seqjax.cells.lru import LRU
from seqjax.cells.minimal import MinGRU
from seqjax.cells.rg_lru import RGLRU
from seqjax.engines import Scan
from seqjax.engines.associative import Associative
from seqjax.engines.linear import linear_recurrence

RESULTS = pathlib.Path(__file__).parent / "results"
PRODUCT, PEER, OURS = "a * b", "lax.associative_scan", "linear_recurrence"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    steps: int = 100_000
    """T with batch size 1; a fifth of it with batch size 8."""
    hidden_dim: int = 64
    repeats: int = 11
    clock: Literal["wall", "cpu"] = "wall"
    """Processor time is the steadier one where other programs run beside."""


def by_scan(decay: jax.Array, drive: jax.Array) -> jax.Array:
    """The recurrence by `lax.scan`, differentiated by JAX."""

    def step(state: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        state = inputs[0] * state + inputs[1]
        return state, state

    return jax.lax.scan(step, jnp.zeros_like(drive[0]), (decay, drive))[1]


def by_associative_scan(decay: jax.Array, drive: jax.Array) -> jax.Array:
    """The recurrence by `lax.associative_scan`, differentiated by JAX."""

    def compose(first: tuple, second: tuple) -> tuple:
        return second[0] * first[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(compose, (decay, drive))[1]


def recurrence(T: int, batch: int, dtype: str, config: Config) -> list[dict]:
    """Rows for the recurrence alone; the gradient is that of both arrays, from a cotangent handed in."""
    random = np.random.default_rng(0)
    shape = (T, batch, config.hidden_dim) if batch > 1 else (T, config.hidden_dim)
    decay = random.uniform(0.9, 1, shape).astype(dtype)
    if np.dtype(dtype).kind == "c":
        decay *= np.exp(1j * random.uniform(0, 1, shape)).astype(dtype)
    drive, cotangent = (random.normal(size=shape).astype(dtype) for _ in range(2))
    ways: dict[str, Callable] = {
        PRODUCT: jnp.multiply,
        OURS: linear_recurrence,
        "lax.scan": by_scan,
        PEER: by_associative_scan,
    }

    def gradient(way: Callable, decay: jax.Array, drive: jax.Array, cotangent: jax.Array) -> tuple:
        return jax.vjp(way, decay, drive)[1](cotangent)

    arrays = tuple(map(jnp.asarray, (decay, drive, cotangent)))
    rows = []
    for kind in ("forward", "gradient"):
        programs = {
            name: compiled(way, *arrays[:2])
            if kind == "forward"
            else compiled(functools.partial(gradient, way), *arrays)
            for name, way in ways.items()
        }
        labels = {"level": "recurrence", "dtype": dtype, "T": T, "batch": batch, "H": config.hidden_dim, "pass": kind}
        rows += compare(programs, arrays if kind == "gradient" else arrays[:2], labels, config)
    return rows


def vectorized(cell: Cell, params: Any, carry: Any, xs: jax.Array) -> jax.Array:
    """A cell over all steps at once around one `lax.associative_scan`, as it is usually written."""
    z = cell.project(params, xs)
    decay, drive = cell.coefficients(params, z)
    decay = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), decay, drive)
    return cell.readout(params, jax.tree.map(by_associative_scan, decay, drive), z)


def whole_cell(cell: Cell, T: int, batch: int, config: Config) -> list[dict]:
    """Rows for a cell from inputs to outputs; the gradient is that of params and inputs."""
    random = np.random.default_rng(0)
    xs, cotangent = (jnp.asarray(random.normal(size=(T, batch, config.hidden_dim)), jnp.float32) for _ in range(2))
    params = cell.init(jax.random.key(0), config.hidden_dim)
    carry = cell.initial_carry(params, (batch,))

    def outputs(engine: Any, params: Any, carry: Any, xs: jax.Array) -> jax.Array:
        return engine.run(cell, params, carry, xs)[1]

    ways = {
        "Associative()": functools.partial(outputs, Associative()),
        "Scan()": functools.partial(outputs, Scan()),
        PEER: functools.partial(vectorized, cell),
    }

    def gradient(way: Callable, params: Any, carry: Any, xs: jax.Array, cotangent: jax.Array) -> tuple:
        return jax.vjp(lambda params, xs: way(params, carry, xs), params, xs)[1](cotangent)

    rows = []
    for kind in ("forward", "gradient"):
        arguments = (params, carry, xs) if kind == "forward" else (params, carry, xs, cotangent)
        programs = {
            name: compiled(way if kind == "forward" else functools.partial(gradient, way), *arguments)
            for name, way in ways.items()
        }
        labels = {"level": "cell", "cell": repr(cell), "T": T, "batch": batch, "H": config.hidden_dim, "pass": kind}
        rows += compare(programs, arguments, labels, config)
    return rows


def compiled(fn: Callable, *arguments: Any) -> Any:
    return jax.jit(fn).lower(*arguments).compile()


def compare(programs: dict[str, Any], arguments: tuple, labels: dict, config: Config) -> list[dict]:
    """One row for each program: seconds, ratios to the product and to the peer, temporary memory.

    Raises:
      AssertionError: programs that should agree do not, to 1e-3 of the largest number.
    """
    results = {name: program(*arguments) for name, program in programs.items() if name != PRODUCT}
    for name, result in results.items():
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(results[PEER]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * float(jnp.abs(b).max()), err_msg=name)
    del results
    thunks = {name: functools.partial(program, *arguments) for name, program in programs.items()}
    seconds = measure.interleave(thunks, config.repeats, clock=CLOCKS[config.clock])
    rows = []
    for name, program in programs.items():
        row = {**labels, "name": name, "clock": config.clock, "seconds": float(np.median(seconds[name]))}
        row["temporary_bytes"] = measure.temporary_bytes(program)
        row["speedup_over_peer"] = measure.ratios(seconds[PEER], seconds[name])
        if PRODUCT in programs:
            row["times_product"] = measure.ratios(seconds[name], seconds[PRODUCT])
        rows.append(row)
        print(row, flush=True)
    return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Milliseconds of every way, forward and gradient, one panel for each question."""
    import matplotlib.pyplot as plt

    panels: dict[str, list[dict]] = {}
    for row in rows:
        what = row.get("cell", f"recurrence, {row.get('dtype')}")
        panels.setdefault(f"{what}\nT={row['T']:,}, batch {row['batch']}, H={row['H']}", []).append(row)
    columns = -(-len(panels) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(4.2 * columns, 7), layout="constrained", squeeze=False)
    for axis, (title, chosen) in zip(axes.ravel(), panels.items(), strict=False):
        names = list(dict.fromkeys(row["name"] for row in chosen))
        for offset, kind in ((-0.2, "forward"), (0.2, "gradient")):
            heights = [1e3 * row["seconds"] for row in chosen if row["pass"] == kind]
            bars = axis.bar(np.arange(len(names)) + offset, heights, 0.4, label=kind)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel(f"milliseconds ({chosen[0]['clock']})", fontsize=8)
        axis.legend(fontsize=7)
    for axis in axes.ravel()[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


def main(config: Config) -> None:
    """Measures, writes `results/affine.jsonl` and `results/affine.png`."""
    measure.check_counts(steps=config.steps, hidden_dim=config.hidden_dim, repeats=config.repeats)
    path = measure.start(RESULTS / "affine.jsonl")
    rows = []
    sizes = ((config.steps, 1), (max(1, config.steps // 5), 8))
    jobs: list[Callable[[], list[dict]]] = [
        functools.partial(recurrence, T, batch, dtype, config)
        for (T, batch), dtype in ((sizes[0], "float32"), (sizes[1], "float32"), (sizes[0], "complex64"))
    ]
    H = config.hidden_dim
    jobs += [functools.partial(whole_cell, cell, *sizes[0], config) for cell in (MinGRU(H), RGLRU(H), LRU(H))]
    for job in jobs:
        for row in job():
            measure.record(path, row)
            rows.append(row)
    plot(rows, RESULTS / "affine.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
