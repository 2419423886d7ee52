# SPDX-License-Identifier: Apache-2.0
"""Everything about GPUs in one run: are the kernels right, how fast are they, and against whom?

1. `check`: each kernel against the loop with exact products, with masks and resets, held to the error of the loop.
2. `train`: a training step (gradient of every parameter) of LSTM, GRU, heads of LSTM and simple cells: `Fused`, also
   in segments, `Scan`, `lax.scan` differentiated by JAX, cuDNN through JAX and through PyTorch. Ways are checked to
   agree before.
3. `length`: affine cells under `Associative` and a diagonal cell under `Newton` against the loop, up to T = 2^20.

Jobs are in order, and none begins after `minutes`; `--only` chooses. Needs `jax[cuda13]`; PyTorch if it is
there. `--dry` runs all of it on a CPU, tiny and in the interpreter: its times mean nothing.
"""

import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import seqjax
from experiments.benchmarks import gpu_ways, measure
from seqjax.base import Cell, Engine
from seqjax.engines import Associative, Newton, Scan
from seqjax.engines.fused import Fused

RESULTS = pathlib.Path(__file__).parent / "results"
SIZES = ((32, 1024, 128), (8, 16384, 128), (256, 512, 256), (64, 1024, 512))
LENGTHS = (2**10, 2**14, 2**17, 2**20)
AGREEMENT = 3e-2
"""Of the largest number: what TF32 and bfloat16 leave of it over thousands of steps."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    dry: bool = False
    """Tiny sizes, the kernels in the interpreter: shows on any machine that the script runs."""
    minutes: float = 7.0
    """After so many no new measurement begins."""
    repeats: int = 5
    only: tuple[Literal["check", "length", "train"], ...] = ("check", "length", "train")
    """The jobs to do."""
    out: pathlib.Path = RESULTS


def kernels(H: int, dtype: str) -> dict[str, Cell]:
    """The cells that have kernels."""
    dtypes = seqjax.DTypes(compute=dtype, carry="float32")
    return {
        "simple": seqjax.Simple(H, dtypes=dtypes),
        "lstm": seqjax.LSTM(H, dtypes=dtypes),
        "gru-before": seqjax.GRU(H, dtypes=dtypes),
        "gru-after": seqjax.GRU(H, reset="after", dtypes=dtypes),
        "two heads of lstm": seqjax.cells.MultiHead(seqjax.LSTM(H, dtypes=dtypes), 2),
    }


def trained(kind: str, H: int, dtype: str) -> Cell:
    """The cell of `H` units in all that a training step is timed of; heads of 128 units fit on the chip."""
    if kind == "heads of lstm":
        heads = max(1, H // 128)
        return seqjax.cells.MultiHead(kernels(H // heads, dtype)["lstm"], heads)
    return kernels(H, dtype)["gru-after" if kind == "gru" else kind]


def loss_and_gradients(
    engine: Engine, cell: Cell, params: Any, carry: Any, xs: jax.Array, flags: dict[str, Any]
) -> Any:
    """The loss, the carry and the outputs, and its gradients by params, carry and inputs."""

    def loss(params: Any, carry: Any, xs: jax.Array) -> tuple[jax.Array, Any]:
        carry, ys = engine.run(cell, params, carry, xs, **flags)
        return jnp.sum(jnp.sin(ys.astype(jnp.float32))) + jnp.sum(carry[-1]), (carry, ys)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, carry, xs)


@functools.cache
def exactly(name: str, T: int, B: int, H: int) -> tuple[tuple, Any]:
    """Arguments of `loss_and_gradients` after the cell, and what exact products make of them."""
    cell = kernels(H, "float32")[name]
    params, carry, xs, mask, resets = seqjax.testing.example(
        cell, T=T, batch_shape=(B,), in_dim=H, masked=True, with_resets=True
    )
    # states must contract, as chaos magnifies rounding until any answer passes; and no bias may be zero
    params = jax.tree.map(lambda a, b: a / 2 + b / 10, cell.init(jax.random.key(0), H), params)
    arguments = params, carry, xs, {"mask": mask, "resets": resets}
    with jax.default_matmul_precision("highest"):
        return arguments, loss_and_gradients(Scan(adjoint=False), cell, *arguments)


def check(name: str, dtype: str, config: Config) -> list[dict]:
    """One row: the largest error of outputs and gradients, of the largest number of each array.

    It is right if it is no larger than `AGREEMENT`, and than three times that of the loop, computed in the same dtype
    at the precision that JAX has by default, whose products are those of TF32 or bfloat16.
    """
    T, B, H = (3, 2, 3) if config.dry else (61, 21, 100)
    cell = kernels(H, dtype)[name]
    arguments, expected = exactly(name, T, B, H)

    def error(engine: Engine) -> float:
        worst, actual = 0.0, loss_and_gradients(engine, cell, *arguments)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
        return worst

    fused, loop = error(Fused(interpret=config.dry)), error(Scan())
    row = {"job": "check", "cell": name, "dtype": dtype, "T": T, "batch": B, "H": H}
    return [row | {"error": fused, "error of the loop": loop, "passed": bool(fused < min(3 * loop + 1e-5, AGREEMENT))}]


def check_linear(dtype: str, config: Config) -> list[dict]:
    """One row: the linear recurrence's kernel and its transpose against the loop."""
    T, N = (19, 3) if config.dry else (5000, 96)
    random = np.random.default_rng(0)
    decay = random.uniform(0.5, 1, (T, N)).astype(dtype)
    if np.dtype(dtype).kind == "c":
        decay *= np.exp(1j * random.uniform(0, 1, (T, N))).astype(dtype)
    drive, cotangent = (random.normal(size=(T, N)).astype(dtype) for _ in range(2))

    def results(method: str, *arrays: jax.Array) -> Any:
        decay, drive, cotangent = arrays
        states, transpose = jax.vjp(functools.partial(seqjax.engines.linear_recurrence, method=method), decay, drive)
        return states, transpose(cotangent)

    methods = "interpreter" if config.dry else "kernel", "scan"
    actual, expected = (jax.jit(functools.partial(results, m))(decay, drive, cotangent) for m in methods)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    error = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)
    return [{"job": "check", "cell": "linear", "dtype": dtype, "T": T, "N": N, "error": error, "passed": error < 1e-4}]


def train(kind: str, dtype: str, size: tuple[int, int, int], config: Config) -> list[dict]:
    """A row for each way: seconds of a training step, and the speed over the loop's turn by turn."""
    B, T, H = size
    cell = trained(kind, H, dtype)
    work = gpu_ways.Work(cell, dtype, B, T, H)
    labels = {"job": "train", "cell": kind, "dtype": dtype, "batch": B, "T": T, "H": H}
    thunks: dict[str, Callable[[], Any]] = {}
    rows, expected = [], None
    for name, prepare in gpu_ways.ways(work, dry=config.dry):
        try:
            thunk = prepare()
            got = gpu_ways.as_recurrent_gradient(thunk(), cell)
        except (ImportError, RuntimeError, ValueError) as problem:  # also what a compiler or a GPU says of a kernel
            rows.append(labels | {"name": name, "skipped": str(problem)[:300]})
            continue
        expected = got if expected is None else expected
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not error < AGREEMENT:
            rows.append(labels | {"name": name, "skipped": "disagrees with the loop", "error": error})
            continue
        thunks[name] = thunk
        rows.append(labels | {"name": name, "error": error})
    seconds = measure.interleave(thunks, 1 if config.dry else config.repeats)
    for row in rows:
        if row["name"] in seconds:
            row["seconds"] = float(np.median(seconds[row["name"]]))
            row["speedup_over_loop"] = measure.ratios(seconds[gpu_ways.LOOP], seconds[row["name"]])
    return rows


def length(kind: str, T: int, config: Config) -> Iterator[dict]:
    """A row for each engine: seconds of a forward pass and of a gradient at T steps of one sequence."""
    H = 3 if config.dry else 64
    cell = {"MinGRU": seqjax.MinGRU, "DiagonalGRU": seqjax.DiagonalGRU}[kind](H)
    affine = "affine" in cell.capabilities
    kernel = Associative("interpreter" if config.dry else "kernel")
    parallel = {"kernel": kernel, "tree": Associative("tree")} if affine else {"Newton": Newton()}
    engines: dict[str, Engine] = {"loop": Scan(), **parallel}  # the loop first, as the others are compared with it
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.normal(size=(T, H)).astype("float32"))
    params = cell.init(jax.random.key(0), H)
    carry = cell.initial_carry(params, ())

    def outputs(engine: Engine, params: Any, xs: jax.Array) -> jax.Array:
        return engine.run(cell, params, carry, xs)[1]

    def slopes(engine: Engine, params: Any, xs: jax.Array) -> Any:
        return jax.grad(lambda params, xs: jnp.sum(jnp.sin(outputs(engine, params, xs))), (0, 1))(params, xs)

    for what, fn in (("forward", outputs), ("gradient", slopes)):
        expected, sequential = None, 0.0
        for name, engine in engines.items():
            row = {"job": "length", "cell": kind, "T": T, "H": H, "pass": what, "name": name}
            try:
                program = jax.jit(functools.partial(fn, engine)).lower(params, xs).compile()
                start = time.perf_counter()
                result = jax.block_until_ready(program(params, xs))
                once = time.perf_counter() - start
            except (RuntimeError, ValueError) as problem:
                yield row | {"skipped": str(problem)[:300]}
                continue
            repeats = 1 if config.dry or once > 2 else config.repeats
            thunk = functools.partial(program, params, xs)
            times = [once] if once > 2 else measure.interleave({name: thunk}, repeats)[name]
            seconds = float(np.median(times))
            row |= {"seconds": seconds, "turns": len(times)}
            if name == "loop":
                expected, sequential = result, seconds
            if expected is not None:
                pairs = zip(*map(jax.tree.leaves, (result, expected)), strict=True)
                error = max(float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-30)) for a, b in pairs)
                row |= {"error": error, "passed": error < AGREEMENT, "speedup_over_loop": sequential / seconds}
            yield row


def jobs(config: Config) -> list[functools.partial]:
    """What there is to do, the most important first."""

    def chosen(job: functools.partial) -> bool:
        return job.func.__name__.split("_")[0] in config.only

    dtypes = ("float32",) if config.dry else ("float32", "bfloat16")
    sizes = ((2, 3, 3),) if config.dry else SIZES
    lengths = (8,) if config.dry else LENGTHS
    names = ("simple", "gru-after") if config.dry else tuple(kernels(1, "float32"))
    work: list[functools.partial] = []
    work += [functools.partial(check, name, dtype, config) for dtype in dtypes for name in names]
    work += [functools.partial(check_linear, dtype, config) for dtype in (*dtypes[:1], "complex64")]
    work += [functools.partial(length, kind, T, config) for T in lengths for kind in ("MinGRU", "DiagonalGRU")]
    kinds = ("lstm",) if config.dry else ("lstm", "gru")
    steps = [(kind, size) for size in sizes for kind in kinds]
    steps += [("heads of lstm", sizes[-1]), ("simple", sizes[0])]  # what makes large models fit; the third kernel
    work += [functools.partial(train, kind, dtype, size, config) for kind, size in steps for dtype in dtypes]
    return list(filter(chosen, work))


def plot(rows: list[dict], device: str, path: pathlib.Path) -> None:
    """Training steps, one panel a size; and the speed over the loop against T."""
    import matplotlib.pyplot as plt

    timed = [row for row in rows if row["job"] == "train" and "seconds" in row]
    panels = list(dict.fromkeys((r["cell"], r["dtype"], r["batch"], r["T"], r["H"]) for r in timed))
    columns = 4
    lines = -(-len(panels) // columns) + 1
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3 * lines), layout="constrained", squeeze=False)
    for axis, panel in zip(axes[:-1].ravel(), panels, strict=False):
        chosen = [r for r in timed if (r["cell"], r["dtype"], r["batch"], r["T"], r["H"]) == panel]
        bars = axis.barh([r["name"] for r in chosen], [1e3 * r["seconds"] for r in chosen])
        axis.bar_label(bars, fmt="%.1f", fontsize=7)
        cell, dtype, B, T, H = panel
        axis.set_title(f"{cell}, {dtype}, B={B}, T={T:,}, H={H}, ms", fontsize=8)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=7)
    for axis in axes[:-1].ravel()[len(panels) :]:
        axis.set_visible(False)
    found = [row for row in rows if row["job"] == "length" and "speedup_over_loop" in row and row["name"] != "loop"]
    for axis, kind in zip(axes[-1], ("MinGRU", "DiagonalGRU", None, None), strict=True):
        if not any(row["cell"] == kind for row in found):
            axis.set_visible(False)
            continue
        for name, what in dict.fromkeys((r["name"], r["pass"]) for r in found if r["cell"] == kind):
            some = sorted(
                (r["T"], r["speedup_over_loop"])
                for r in found
                if (r["cell"], r["name"], r["pass"]) == (kind, name, what)
            )
            axis.loglog(*zip(*some, strict=True), "o-" if what == "forward" else "s--", label=f"{name}, {what}")
        axis.set_title(f"{kind}: speed over the loop against T", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(device)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(config: Config) -> None:
    """Measures, writes `gpu-DEVICE.jsonl` and `gpu-DEVICE.png`.

    Raises:
      SystemExit: no GPU and not `--dry`; a kernel that is not right.
    """
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu" and not config.dry:
        raise SystemExit("this needs an NVIDIA GPU and jax[cuda13]; --dry shows on a CPU that the script runs.")
    stem = "gpu-dry" if config.dry else "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = measure.start(config.out / f"{stem}.jsonl")
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:  # as soon as it is known, for a run that is cut short
        measure.record(path, row)
        print(row, flush=True)
        rows.append(row)

    for job in jobs(config):
        what = f"{job.func.__name__} {job.args[:-1]}"
        if time.monotonic() - begin > 60 * config.minutes:
            keep({"job": "left out", "what": what})
            continue
        try:
            for row in job():
                keep(row)
        except (RuntimeError, ValueError) as problem:  # of one kernel; the others are still to be seen
            keep({"job": "failed", "what": what, "passed": False, "why": str(problem)[:500]})
    plot(rows, device, path.with_suffix(".png"))
    wrong = [row for row in rows if row.get("passed") is False]
    if wrong:
        raise SystemExit(f"{len(wrong)} kernels are not right: {wrong}")


if __name__ == "__main__":
    main(tyro.cli(Config))
