# SPDX-License-Identifier: Apache-2.0
"""How many sweeps `Relaxed` and how many iterations `Newton` need, at initialization and after training.

Against T, the gain of the recurrent weights and the initialization, float32. An answer is compared
with the loop's, and whether the solver gave up and fell back is shown. Depth is the number of steps
that wait for each other: L a sweep for relaxation (L steps a chunk), and L for its diagonals; log₂ T an
iteration for Newton. A solver that gave up has up to T more, those of the loop.
"""

import dataclasses
import functools
import math
import pathlib
import tempfile
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import seqjax
from experiments.benchmarks import measure
from experiments.forecast import data as forecast_data
from experiments.forecast.config import Config as ForecastConfig
from experiments.forecast.run import variants
from experiments.study import runner
from seqjax.base import Cell, Engine
from seqjax.engines import Newton, Relaxed, Scan, newton_solve, relaxed_solve
from seqjax.initializers import Chrono

RESULTS = pathlib.Path(__file__).parent / "results"
DENSE_LIMIT = 2**28
"""Elements of all Jacobians together, above which the dense Newton iteration is left out."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    steps: tuple[int, ...] = (1_000, 10_000, 100_000)
    hidden_dim: int = 32
    gains: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    tol: float = 1e-6
    epochs: int = 4
    """Of training, before the trained cells are measured."""


def solvers(config: Config) -> dict[str, Engine]:
    """The engines, all with one tolerance."""
    return {
        "Relaxed": Relaxed(chunk=100, tol=config.tol, max_sweeps=100),
        "Relaxed, diagonal": Relaxed(chunk=100, coupling="diagonal", tol=config.tol, max_sweeps=100),
        "Newton": Newton(tol=config.tol, max_iterations=100),
        "Newton, diagonal": Newton(jacobian="diagonal", tol=config.tol, max_iterations=100),
    }


def initialized(config: Config) -> dict[str, tuple[Cell, Any]]:
    """Cells and params: gains of the recurrent weights, and memories of the bias."""
    H = config.hidden_dim
    cells: dict[str, tuple[Cell, Any]] = {}
    gru = seqjax.GRU(H)
    for gain in config.gains:
        params = gru.init(jax.random.key(0), H)
        cells[f"GRU, gain {gain:g}"] = gru, params._replace(w_rec=gain * params.w_rec)
    others: dict[str, Cell] = {
        "LSTM, forget bias 1": seqjax.LSTM(H),
        "LSTM, chrono 1000": seqjax.LSTM(H, bias_init=Chrono(1000)),
        "DiagonalGRU": seqjax.DiagonalGRU(H),
        "DiagonalLSTM": seqjax.DiagonalLSTM(H),
        "IndRNN": seqjax.IndRNN(H),
    }
    for name, cell in others.items():
        cells[name] = cell, cell.init(jax.random.key(0), H)
    return cells


def trained(config: Config) -> tuple[dict[str, tuple[Cell, Any]], jax.Array]:
    """First layers of the forecast experiment's models after training, and the year they were trained on."""
    options = ForecastConfig(model="simple,lstm,gru", epochs=config.epochs)
    task = forecast_data.load_task("weather", None, "greensboro", options.steps_seen)
    series = forecast_data.load_series("weather")
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        runner.run(variants(options, task), [0], pathlib.Path(folder), config={})
        for name in options.names:
            loaded = seqjax.training.load(pathlib.Path(folder) / name / "0")
            first = cast(seqjax.Serial, loaded.model).layers[0]
            cells[f"{name}, trained"] = cast(seqjax.RNN, first).cell, loaded.params[0]
    return cells, jnp.asarray(task.scaler.scale(series.values)[:, None], jnp.float32)


def measure_cell(name: str, cell: Cell, params: Any, xs: jax.Array, config: Config) -> list[dict]:
    """One row for each solver."""
    T, carry = xs.shape[0], cell.initial_carry(params, ())
    _, expected = jax.jit(functools.partial(Scan().run, cell))(params, carry, xs)
    size = sum(leaf.size for leaf in jax.tree.leaves(carry))
    rows = []
    for label, engine in solvers(config).items():
        dense = label == "Newton" and cell.jacobian_structure == "dense"
        if dense and T * size * size > DENSE_LIMIT:
            continue
        solve: Any = newton_solve if isinstance(engine, Newton) else relaxed_solve
        solution = jax.jit(functools.partial(solve, cell, engine=engine))(params, carry, xs)
        iterations = int(solution.iterations)
        depth = iterations * math.ceil(math.log2(T))
        if isinstance(engine, Relaxed):
            depth = (iterations + (engine.coupling == "diagonal")) * engine.size(T)
        row = {
            "cell": name,
            "T": T,
            "solver": label,
            "iterations": iterations,
            "residual": float(solution.residual),
            "converged": bool(solution.converged),
            "fell_back": bool(solution.fell_back),
            "error": float(jnp.abs(solution.ys - expected).max()),
            "depth": depth + T if solution.fell_back else depth,
            "depth_of_the_loop": T,
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Iterations, depth and error against T: a column a solver, a line a cell, hollow where it gave up."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["solver"] for row in rows))
    cells = dict.fromkeys(row["cell"] for row in rows)
    measures = {
        "sweeps or iterations": lambda row: max(row["iterations"], 1),
        "depth, of the loop's": lambda row: row["depth"] / row["depth_of_the_loop"],
        "largest error": lambda row: max(row["error"], 1e-8),
    }
    size = (4.2 * len(names), 3.2 * len(measures))
    figure, axes = plt.subplots(
        len(measures), len(names), figsize=size, sharex=True, sharey="row", layout="constrained", squeeze=False
    )
    for line, (what, value) in zip(axes, measures.items(), strict=True):
        line[0].set_ylabel(what)
        for axis, solver in zip(line, names, strict=True):
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
            for index, cell in enumerate(cells):
                points = [row for row in rows if row["solver"] == solver and row["cell"] == cell]
                colour, dash = f"C{index % 10}", "-" if index < 10 else "--"
                axis.plot([r["T"] for r in points], [value(r) for r in points], dash, color=colour, label=cell)
                for r in points:
                    face = colour if r["converged"] else "white"
                    axis.plot(r["T"], value(r), "o", markeredgecolor=colour, markerfacecolor=face)
    for top, bottom, solver in zip(axes[0], axes[-1], names, strict=True):
        top.set_title(solver)
        bottom.set_xlabel("T (hollow: gave up)")
    axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


def main(config: Config) -> None:
    """Measures, writes `results/parallel.jsonl` and `results/parallel.png`."""
    measure.check_counts(steps=config.steps, hidden_dim=config.hidden_dim, epochs=config.epochs)
    path = measure.start(RESULTS / "parallel.jsonl")
    random = np.random.default_rng(0)
    rows = []
    inputs = {T: jnp.asarray(random.normal(size=(T, config.hidden_dim)), jnp.float32) for T in config.steps}
    work = [(name, *pair, inputs[T]) for T in config.steps for name, pair in initialized(config).items()]
    cells, year = trained(config)
    work += [(name, *pair, year) for name, pair in cells.items()]
    for name, cell, params, xs in work:
        for row in measure_cell(name, cell, params, xs, config):
            rows.append(row)
            measure.record(path, row)
    plot(rows, RESULTS / "parallel.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
