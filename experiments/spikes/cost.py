# SPDX-License-Identifier: Apache-2.0
"""What one gradient over a whole recording costs: memory and time of the engines, side by side."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

import seqjax
from experiments.benchmarks.measure import interleave, ratios, temporary_bytes
from experiments.spikes.likelihood import Surprise
from experiments.spikes.task import model
from seqjax.base import Array, Engine, Layer, Params
from seqjax.engines import Checkpointed, Scan, Truncated

LOSS = Surprise(-5.0)
SEGMENT = 400
REPEATS = 5
Total = Callable[[Params, Array, Array], Array]


def cost(bins: int, hidden_dim: int, repeats: int = REPEATS) -> rich.table.Table:
    """Temporary memory and seconds of the gradient of one sequence of `bins` steps.

    Args:
      bins: steps, an even number.
      hidden_dim: units of the GRU.
      repeats: turns; a ratio is the median over turns of that to the first row, plain autodiff of a scan.
    """
    draw = np.random.default_rng(0)
    xs = jnp.asarray(draw.normal(size=(bins, 1, 1)).astype(np.float32))
    ys = jnp.asarray((draw.uniform(size=xs.shape) < 0.005).astype(np.float32))
    params = _model(Scan(), hidden_dim).init(jax.random.key(0), xs)
    programs = {
        name: jax.jit(jax.grad(loss)).lower(params, xs, ys).compile() for name, loss in losses(hidden_dim).items()
    }
    seconds = interleave({name: functools.partial(run, params, xs, ys) for name, run in programs.items()}, repeats)
    first = next(iter(seconds.values()))
    made = rich.table.Table(title=f"one gradient over {bins:,} bins, GRU({hidden_dim})")
    for heading in ("", "temporary MiB", "seconds", "time, ratio"):
        made.add_column(heading, justify="right" if heading else "left")
    for name, run in programs.items():
        made.add_row(
            name,
            f"{temporary_bytes(run) / 2**20:.1f}",
            f"{np.median(seconds[name]):.2f}",
            f"{ratios(seconds[name], first)['median']:.2f}",
        )
    return made


def losses(hidden_dim: int) -> dict[str, Total]:
    """The loss by each engine: all the same number, and the same gradient but for the truncated ones."""
    engines: dict[str, Engine] = {
        "Scan(adjoint=False)": Scan(adjoint=False),
        "Scan()": Scan(),
        "Checkpointed()": Checkpointed(),
        "Truncated(1000)": Truncated(1000),
        "Truncated(100)": Truncated(100),
    }
    found = {name: _whole(_model(engine, hidden_dim)) for name, engine in engines.items()}
    return found | {f"fold, segments of {SEGMENT}": _folded(_model(Scan(), hidden_dim))}


def _model(engine: Engine, hidden_dim: int) -> Layer:
    return model(seqjax.GRU(hidden_dim, reset="after"), engine)


def _whole(model: Layer) -> Total:
    def loss(params: Params, xs: Array, ys: Array) -> Array:
        return LOSS(model.apply(params, model.initial_carry(params, xs.shape[1:-1]), xs)[1], ys)

    return loss


def _folded(model: Layer) -> Total:
    def add(total: Array, outputs: Array, ys: Array) -> Array:
        return total + LOSS(outputs, ys) * len(ys)

    def loss(params: Params, xs: Array, ys: Array) -> Array:
        carry = model.initial_carry(params, xs.shape[1:-1])
        start = jnp.zeros((), jnp.float32)
        return seqjax.fold(model, params, carry, xs, add, start, segment=SEGMENT, extras=ys)[1] / len(xs)

    return loss
