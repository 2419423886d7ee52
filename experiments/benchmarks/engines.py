# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a training step against the length of the sequence, for each engine.

The step is the gradient of every parameter. It is taken in two ways: of a loss that is reduced on
the way (`reduced`: a sum of squares of the outputs), and with all outputs handed out and their
cotangent handed in (`outputs`). The peers are autodiff of one `lax.scan`, with the same cell.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import seqjax
from experiments.benchmarks import measure
from seqjax.base import Cell
from seqjax.engines import Checkpointed, Relaxed, Scan, Truncated
from seqjax.trees import tree_bytes

PEER = "autodiff of lax.scan"
RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    steps: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Lengths T, with batch size 8."""
    longest: int = 1_000_000
    """One more length, with batch size 1 and only what fits in memory."""
    hidden_dim: int = 64
    repeats: int = 5
    memory_limit: float = 6.0
    """GiB of temporaries; what needs more is compiled but not run."""


def reduced_peer(cell: Cell, params: Any, carry: Any, xs: jax.Array) -> jax.Array:
    """Σ y² inside one plain `lax.scan`."""

    def step(state: tuple, x: jax.Array) -> tuple[tuple, None]:
        carry, total = state
        carry, y = cell.step(params, carry, cell.project(params, x))
        return (carry, total + jnp.sum(y * y)), None

    return jax.lax.scan(step, (carry, jnp.zeros((), xs.dtype)), xs)[0][1]


def reduced_fold(cell: Cell, segment: int, params: Any, carry: Any, xs: jax.Array) -> jax.Array:
    """Σ y² by `fold`."""

    def add(total: jax.Array, ys: jax.Array) -> jax.Array:
        return total + jnp.sum(ys * ys)

    zero = jnp.zeros((), xs.dtype)
    return seqjax.fold(seqjax.RNN(cell, Scan()), params, carry, xs, add, zero, segment=segment)[1]


def programs(cell: Cell, T: int) -> dict[str, dict[str, Callable]]:
    """`{way: {engine: gradient}}`; the first of each way is the peer."""
    engines = {
        PEER: Scan(adjoint=False),
        "Scan": Scan(),
        "Checkpointed": Checkpointed(),
        "Checkpointed(levels=2)": Checkpointed(levels=2),
        "Truncated(256)": Truncated(256),
        "Relaxed": Relaxed(),
    }

    def outputs(engine: Any, params: Any, carry: Any, xs: jax.Array, d_ys: jax.Array) -> tuple:
        ys, transpose = jax.vjp(lambda params: engine.run(cell, params, carry, xs)[1], params)
        return ys, transpose(d_ys)

    segment = Checkpointed().sizes(T)[0]
    losses = {PEER: functools.partial(reduced_peer, cell), "fold": functools.partial(reduced_fold, cell, segment)}
    return {
        "reduced": {name: jax.grad(loss) for name, loss in losses.items()},
        "outputs": {name: functools.partial(outputs, engine) for name, engine in engines.items()},
    }


def run(cell: Cell, T: int, batch: int, config: Config) -> list[dict]:
    """One row for each way and engine."""
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.normal(size=(T, batch, config.hidden_dim)), jnp.float32)
    params = cell.init(jax.random.key(0), config.hidden_dim)
    carry = cell.initial_carry(params, (batch,))
    rows = []
    for way, gradients in programs(cell, T).items():
        arguments = (params, carry, xs) if way == "reduced" else (params, carry, xs, xs)
        compiled = {name: jax.jit(gradient).lower(*arguments).compile() for name, gradient in gradients.items()}
        memory = {name: measure.temporary_bytes(program) for name, program in compiled.items()}
        fits = {name: p for name, p in compiled.items() if memory[name] < config.memory_limit * 2**30}
        check_agreement({n: p for n, p in fits.items() if not n.startswith("Truncated")}, arguments)
        thunks = {name: functools.partial(program, *arguments) for name, program in fits.items()}
        seconds = measure.interleave(thunks, repeats=config.repeats)
        for name in compiled:
            row = {"cell": repr(cell), "T": T, "batch": batch, "way": way, "engine": name}
            row |= {"temporary_bytes": memory[name], "input_bytes": tree_bytes(arguments)}
            row["memory_ratio"] = memory[PEER] / max(memory[name], 1)
            if name in seconds:
                row["seconds"] = float(np.median(seconds[name]))
                if PEER in seconds:
                    row["speedup"] = measure.ratios(seconds[PEER], seconds[name])
            rows.append(row)
            print({key: value for key, value in row.items() if key != "input_bytes"}, flush=True)
    return rows


def check_agreement(compiled: dict[str, Any], arguments: tuple) -> None:
    """Raises `AssertionError` unless all programs give the same numbers to 1e-3 of the largest."""
    results = {name: jax.tree.leaves(program(*arguments)) for name, program in compiled.items()}
    expected = next(iter(results.values()))
    for name, leaves in results.items():
        for a, b in zip(leaves, expected, strict=True):
            scale = float(jnp.abs(b).max())
            np.testing.assert_allclose(a, b, atol=1e-3 * max(scale, 1e-6), rtol=0, err_msg=name)


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Time a step and temporaries against T, both ways, for each cell; squares are single sequences."""
    import matplotlib.pyplot as plt

    cells = sorted({row["cell"] for row in rows})
    figure, axes = plt.subplots(len(cells), 4, figsize=(17, 4 * len(cells)), squeeze=False, layout="constrained")
    for line, cell in zip(axes, cells, strict=True):
        panels = [(way, key) for way in ("outputs", "reduced") for key in ("seconds", "temporary_bytes")]
        for axis, (way, key) in zip(line, panels, strict=True):
            chosen = [r for r in rows if r["cell"] == cell and r["way"] == way and key in r]
            scale = 1 if key == "seconds" else 2**-20
            for index, engine in enumerate(dict.fromkeys(r["engine"] for r in chosen)):
                for batch, marker in ((8, "o-"), (1, "s")):
                    points = [(r["T"], scale * r[key]) for r in chosen if (r["engine"], r["batch"]) == (engine, batch)]
                    label = engine if batch == 8 else None
                    axis.loglog(*zip(*points, strict=True), marker, color=f"C{index}", label=label)
            what = "seconds a training step" if key == "seconds" else "MiB of temporaries"
            axis.set_title(f"{cell}, {'all outputs' if way == 'outputs' else 'loss reduced on the way'}", fontsize=10)
            axis.set_xlabel("T")
            axis.set_ylabel(what)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(config: Config) -> None:
    """Measures, writes `results/engines.jsonl` and `results/engines.png`."""
    measure.check_counts(
        steps=config.steps, longest=config.longest, hidden_dim=config.hidden_dim, repeats=config.repeats
    )
    rows = []
    path = measure.start(RESULTS / "engines.jsonl")
    for cell in (seqjax.GRU(config.hidden_dim), seqjax.LSTM(config.hidden_dim)):
        for T, batch in [*((T, 8) for T in config.steps), (config.longest, 1)]:
            for row in run(cell, T, batch, config):
                measure.record(path, row)
                rows.append(row)
    plot(rows, RESULTS / "engines.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
