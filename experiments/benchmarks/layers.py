# SPDX-License-Identifier: Apache-2.0
"""One recurrent layer, seqjax against the other libraries: forward, training step, compilation, memory.

A training step is the gradient of every weight of the sum of squares of all outputs. All systems get the same weights
and inputs and take turns in one run; before, their outputs and gradients are compared, and one that does not agree is
not timed. Each is compared with the seqjax cell that has its equations: haiku's GRU with `reset="before"`, the others'
with `reset="after"`; haiku's simple core with a rectified one. A GRU's recurrent biases are zeros: not all have them.

Runs on processors, one process after the other for each number of threads, bound to so many cores. With `--spread`
each system on JAX has a device for every core, and a part of the batch on each; PyTorch has threads as before.
"""

import dataclasses
import functools
import gc
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import seqjax
from experiments.benchmarks import agreement, layers_report, measure, roofline
from experiments.benchmarks.peers import PEERS, Peer, installed
from experiments.benchmarks.systems import ENGINES, OnJax, Programs, System, Task, of_seqjax

RESULTS = pathlib.Path(__file__).parent / "results"
Kind = Literal["simple", "lstm", "gru"]

CELLS: dict[str, dict[str, Callable]] = {
    "simple": {
        "tanh": functools.partial(seqjax.Simple, activation="tanh"),
        "relu": functools.partial(seqjax.Simple, activation="relu"),
    },
    "lstm": {"plain": seqjax.LSTM},
    "gru": {
        "after": functools.partial(seqjax.GRU, reset="after"),
        "before": functools.partial(seqjax.GRU, reset="before"),
    },
}
"""Kind, form, cell; the first form is the one that most libraries have."""
GATES = {"simple": 1, "lstm": 4, "gru": 3}
QUICK = ("32x50x20x1", "32x200x64", "128x100x128", "1x10000x64")
GRID = (*QUICK[:2], "32x1000x128", "64x200x256", "16x500x512", QUICK[3], QUICK[2], "8x10000x64")
AUTO = "seqjax Auto()"
PASSES = ("forward", "step")
Key: TypeAlias = tuple[str, str]
"""Form and system."""
FEWEST_TURNS, MOST_TURNS = 3, 101


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    kinds: tuple[Kind, ...] = ("simple", "lstm", "gru")
    entries: tuple[str, ...] = GRID
    """BxTxH, where D = H, or BxTxHxD."""
    quick: bool = False
    """The small entries alone."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights, inputs and computation."""
    threads: tuple[int, ...] = (1, 2)
    spread: bool = False
    """On JAX, the batch over as many devices as there are threads, where they divide it."""
    budget: float = 3.0
    """Seconds of turns for each kind of cell on each entry; three turns are taken in any case."""
    output: pathlib.Path = RESULTS / "layers.jsonl"
    """The plot goes beside it."""


class Entry(NamedTuple):
    """Batch, steps, units, features."""

    B: int
    T: int
    H: int
    D: int

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """From BxTxH or BxTxHxD.

        Raises:
          ValueError: another text.

        >>> Entry.parse("32x200x64"), Entry.parse("32x50x20x1").D
        (Entry(B=32, T=200, H=64, D=64), 1)
        """
        sizes = [int(part) for part in text.split("x") if part.isdecimal()]
        if len(sizes) != text.count("x") + 1 or len(sizes) not in (3, 4) or min(sizes) < 1:
            raise ValueError(f"an entry is BxTxH or BxTxHxD, such as 32x200x64, got {text!r}.")
        return cls(*sizes, *([] if len(sizes) == 4 else [sizes[2]]))


def task(kind: str, form: str, entry: Entry, dtype: str) -> Task:
    """Weights uniform in ±1/√H, as PyTorch draws them, and normal inputs."""
    cell = CELLS[kind][form](entry.H, dtypes=seqjax.DTypes(dtype))
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), entry.D))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(random.uniform(-1, 1, a.shape) / entry.H**0.5, a.dtype), shapes)
    if kind == "gru" and params.bias_rec is not None:
        params = params._replace(bias_rec=jnp.zeros_like(params.bias_rec))
    xs = random.normal(size=(entry.T, entry.B, entry.D))
    return Task(cell, params, xs.astype(jnp.dtype(dtype)))


def contestants(kind: str, given: Mapping[str, Task], peers: Mapping[str, Peer]) -> dict[Key, Callable[[], System]]:
    """How to build every system: of a form that one peer alone has, that peer and `Auto()`."""
    builds: dict[Key, Callable[[], System]] = {}
    for form in given:
        usual = form == next(iter(CELLS[kind]))
        fitting = {name: peer.build for name, peer in peers.items() if peer.forms.get(kind) == form}
        engines = ENGINES if usual else {AUTO: ENGINES[AUTO]} if fitting else {}
        makers = {name: functools.partial(of_seqjax, engine) for name, engine in engines.items()} | fitting
        builds |= {(form, name): functools.partial(make, given[form]) for name, make in makers.items()}
    return builds


def run_entry(
    kind: Kind,
    entry: Entry,
    dtype: str,
    budget: float,
    peers: Mapping[str, Peer],
    machine: Mapping[str, float],
    devices: int = 1,
) -> list[dict]:
    """One row for each system on one entry of the grid: agreement, then times.

    Args:
      kind, entry, dtype: the work.
      budget: seconds.
      peers: the libraries beside seqjax.
      machine: the rate of a large matmul, and the memory bandwidth.
      devices: over which systems on JAX spread the batch.
    """
    rows, running = checked(kind, entry, dtype, peers, devices)
    take_turns(rows, running, entry, kind, dtype, budget, machine)
    running.clear()
    jax.clear_caches()
    gc.collect()
    return list(rows.values())


def checked(
    kind: str, entry: Entry, dtype: str, peers: Mapping[str, Peer], devices: int = 1
) -> tuple[dict[Key, dict], dict[Key, Programs]]:
    """A row for each system, and the programs of those that agree."""
    tasks = {form: task(kind, form, entry, dtype) for form in CELLS[kind]}
    builds = contestants(kind, tasks, peers)
    labels = {"kind": kind, **entry._asdict(), "dtype": dtype}
    rows: dict[Key, dict] = {
        (form, name): {
            **labels,
            "form": form,
            "system": name,
            "on_jax": name in ENGINES or peers[name].on_jax,
            "devices": devices,
            "agrees": False,
        }
        for form, name in builds
    }

    def each(keys: Iterable[Key], function: Callable[[Key], Any]) -> dict[Key, Any]:
        """The function of every system that came so far; what another library raises is said in its row."""
        found = {}
        for key in keys:
            try:
                found[key] = function(key)
            except Exception as error:
                if key[1] in ENGINES:
                    raise
                rows[key]["why"] = f"{type(error).__name__}: {error}"[:300]
        return found

    # all are built, then compiled, then run: compiling empties JAX's caches, which the other two fill
    systems = each(builds, lambda key: spread(builds[key](), devices))
    programs = each(systems, lambda key: systems[key].programs())
    expected = {form: agreement.reference(tasks[form]) for form in dict.fromkeys(form for form, _ in builds)}
    results = each(programs, lambda key: jax.block_until_ready((programs[key].forward(), programs[key].step())))

    def compare(key: Key) -> agreement.Errors:
        forward, step = results[key]
        return agreement.errors(systems[key].outputs(forward), systems[key].gradients(step), expected[key[0]])

    errors = each(results, compare)
    for key, found in errors.items():
        row, ready = rows[key], programs[key]
        row |= {f"{what}_error": value for what, value in found._asdict().items()}
        row |= {"compile_seconds": ready.compile_seconds, "temporary_bytes": ready.temporary_bytes}
        row["agrees"] = agreement.agree(found, dtype)
        if not row["agrees"]:
            row["why"] = f"other numbers: {found}"
    return rows, {key: programs[key] for key in errors if rows[key]["agrees"]}


def take_turns(
    rows: dict[Key, dict],
    running: Mapping[Key, Programs],
    entry: Entry,
    kind: str,
    dtype: str,
    budget: float,
    machine: Mapping[str, float],
) -> None:
    """Adds to each row: seconds, how many times faster `Auto()` is, and the share of the roofline."""
    loop, loop_flop = roofline.recurrence(entry.B, entry.H, GATES[kind], dtype)
    for factor, which in ((1, "forward"), (3, "step")):
        thunks = {f"{form} {name}": getattr(programs, which) for (form, name), programs in running.items()}
        thunks["roofline"] = loop
        seconds = measure.interleave(thunks, FEWEST_TURNS, warmup=0)
        cost = sum(map(min, seconds.values()))
        turns = min(MOST_TURNS, int(budget / len(PASSES) / cost))
        if turns > FEWEST_TURNS:  # those that told how many are affordable are left out
            seconds = measure.interleave(thunks, turns, warmup=0)
        flop = factor * roofline.flop(**entry._asdict(), G=GATES[kind])
        least = [flop / loop_flop * loop_seconds for loop_seconds in seconds["roofline"]]
        for form, name in running:
            row, own = rows[form, name], seconds[f"{form} {name}"]
            row |= machine
            row["matmul_rate"] = float(loop_flop / np.median(seconds["roofline"]))
            row |= {f"{which}_turns": len(own), f"{which}_seconds": float(np.median(own))}
            row[f"{which}_roofline"] = measure.ratios(least, own)["median"]
            row[f"{which}_large_roofline"] = flop / machine["large_matmul_rate"] / row[f"{which}_seconds"]
            ours = seconds.get(f"{form} {AUTO}")
            if ours is not None:
                row[f"{which}_speedup"] = measure.ratios(own, ours)


def spread(system: System, devices: int) -> System:
    """The system with its batch over so many devices, if it is on JAX."""
    return system.over(devices) if isinstance(system, OnJax) and devices > 1 else system


def run_grid(config: Config, threads: int) -> None:
    """Measures everything with so many threads and appends to the result file. In a process of its own."""
    devices = threads if config.spread else 1
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    versions = installed()
    if versions["torch"] is not None:
        import torch

        torch.set_num_threads(threads)
    peers = {name: peer for name, peer in PEERS.items() if versions[name] is not None}
    machine = {"large_matmul_rate": roofline.large_matmul_rate(config.dtype), "bandwidth": roofline.bandwidth()}
    absent = [name for name in PEERS if name not in peers]
    print(f"\n{threads} thread(s); peers {versions}; left out, as absent: {absent or 'none'}", flush=True)
    measure.record(config.output, {"peers": versions, "threads": threads, **machine})
    for kind in config.kinds:
        for text in QUICK if config.quick else config.entries:
            start = time.perf_counter()
            rows = run_entry(kind, Entry.parse(text), config.dtype, config.budget, peers, machine, devices)
            for row in rows:
                measure.record(config.output, {"threads": threads, **row})
            off = [f"{row['system']} [{row['form']}]: {row['why']}" for row in rows if not row["agrees"]]
            took = f"{time.perf_counter() - start:.1f} s"
            print(f"{kind} {text}: {len(rows)} systems, {took}", *off, sep="\n  ", flush=True)


def bound(config: Config, threads: int) -> None:
    """`run_grid` in a new process on the first `threads` cores of this one."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    changed = {
        "XLA_FLAGS": flags.strip(),
        "OMP_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "jax",
    }
    before, cores = dict(os.environ), os.sched_getaffinity(0)
    process = multiprocessing.get_context("spawn").Process(target=run_grid, args=(config, threads))
    try:
        os.environ.update(changed)
        os.sched_setaffinity(0, sorted(cores)[:threads])
        process.start()
    finally:
        os.sched_setaffinity(0, cores)
        os.environ.clear()
        os.environ.update(before)
    process.join()
    if process.exitcode:
        raise SystemExit(f"the run with {threads} thread(s) ended with exit code {process.exitcode}.")


def main(config: Config) -> None:
    """Measures, prints a table, writes `results/layers.jsonl` and `results/layers.png`."""
    for text in config.entries:
        Entry.parse(text)
    measure.check_counts(threads=config.threads)
    cores = len(os.sched_getaffinity(0))
    possible = [threads for threads in config.threads if threads <= cores]
    if not (possible and config.kinds and (config.quick or config.entries)):
        raise SystemExit(f"error: nothing to measure, with {cores} core(s): {config}.")
    measure.start(config.output)
    for threads in config.threads:
        if threads in possible:
            bound(config, threads)
        else:
            print(f"left out: {threads} threads, as this process may use {cores} core(s).")
    rows = [row for row in measure.read(config.output)[1] if "system" in row]
    layers_report.table(rows)
    for row in layers_report.summary(rows):
        measure.record(config.output, row)
        print(layers_report.sentence(row))
    layers_report.plot(rows, config.output.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Config))
