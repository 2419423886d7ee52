# SPDX-License-Identifier: Apache-2.0
"""The benchmark of layers on a grid entry of a few numbers: all systems agree, and a wrong one is caught."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmarks import agreement, layers, layers_report, measure, roofline
from experiments.benchmarks.peers import PEERS, Peer, installed
from experiments.benchmarks.systems import ENGINES, of_seqjax

MACHINE = {"large_matmul_rate": 1e9, "bandwidth": 1e9}
TINY = layers.Entry.parse("2x5x4x3")
PRESENT = {name: PEERS[name] for name, version in installed().items() if version is not None}
TIMED = {"forward_seconds", "step_seconds", "forward_speedup", "step_speedup", "forward_roofline", "step_roofline"}


@pytest.fixture(autouse=True)
def in_short(monkeypatch):
    """Fewer products in the roofline's loop; compile times may profit from what was compiled before."""
    monkeypatch.setattr(roofline, "LOOP_FLOP", 1e5)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.mark.parametrize("kind", ["gru"])
def test_installed_peers_and_seqjax_agree_and_are_timed(kind, monkeypatch):
    engines = ENGINES if kind == "gru" else {layers.AUTO: ENGINES[layers.AUTO]}
    monkeypatch.setattr(layers, "ENGINES", engines)
    rows = layers.run_entry(kind, TINY, "float32", 0.0, PRESENT, MACHINE)
    forms = {PRESENT[name].forms[kind] for name in PRESENT} | {next(iter(layers.CELLS[kind]))}
    assert {row["system"] for row in rows} == {*engines, *PRESENT}
    assert len(rows) == len(engines) + len(forms) - 1 + len(PRESENT)
    assert [row.get("why") for row in rows] == [None] * len(rows)
    for row in rows:
        assert row["agrees"]
        assert set(row) >= TIMED | set(MACHINE) | {"matmul_rate", "forward_turns", "step_turns"}
        assert (row["compile_seconds"] is None) == (row["system"] == "torch")
        assert (row["temporary_bytes"] is None) == (row["system"] == "torch")


def test_a_batch_over_devices_gives_the_same_numbers():
    """On one device here; `--spread` makes more. One sequence is not split between two."""
    system = of_seqjax(ENGINES[layers.AUTO], layers.task("gru", "after", TINY, "float32"))
    spread = system.over(1)
    assert spread.xs.sharding.spec == jax.sharding.PartitionSpec(None, "batch")
    whole, parts = (each.programs().step() for each in (system, spread))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert layers.spread(system, 1) is system
    assert dataclasses.replace(system, xs=system.xs[:, :1]).over(2).xs.shape == (5, 1, 3)


def negated(task):
    """A layer with a sign the wrong way around."""
    params = task.params._replace(w_in=-task.params.w_in)
    return of_seqjax(ENGINES["seqjax Scan()"], task._replace(params=params))


def halved(task):
    """A layer with the right outputs and half of the gradients."""
    system = of_seqjax(ENGINES["seqjax Scan()"], task)
    return dataclasses.replace(system, read=lambda g: g._replace(w_rec=g.w_rec / 2))


def broken(task):
    raise NotImplementedError("no such cell")


def test_a_wrong_peer_is_named_and_not_timed():
    forms = {"simple": "tanh"}
    builders = {"negated": negated, "halved": halved, "broken": broken}
    peers = {name: Peer("none", build, forms) for name, build in builders.items()}
    rows = {row["system"]: row for row in layers.run_entry("simple", TINY, "float32", 0.0, peers, MACHINE)}
    for name in peers:
        assert not rows[name]["agrees"]
        assert TIMED.isdisjoint(rows[name])
    assert rows["negated"]["forward_error"] > 0.01
    assert rows["halved"]["forward_error"] < 1e-5
    assert rows["halved"]["gradient_error"] == pytest.approx(0.5, abs=1e-3)
    assert rows["broken"]["why"] == "NotImplementedError: no such cell"
    assert all(rows[name]["agrees"] for name in ENGINES)


def test_nan_never_agrees():
    assert not agreement.agree(agreement.Errors(float("nan"), 0.0), "float32")
    assert not agreement.agree(agreement.Errors(0.0, float("nan")), "bfloat16")


def row(system, entry, step, *, on_jax=True, threads=1, **more):
    ratios = {"median": step, "low": step, "high": step}
    labels = {"threads": threads, "dtype": "float32", "kind": "lstm", "form": "plain", "on_jax": on_jax, "agrees": True}
    times = {f"{which}_{what}": value for which in ("forward", "step") for what, value in
             (("speedup", ratios), ("seconds", 1.0), ("roofline", 0.5))}  # fmt: skip
    return {**labels, **times, **layers.Entry.parse(entry)._asdict(), "system": system, **more}


def test_the_summary_compares_with_the_fastest_peer_of_each_entry(tmp_path, capsys):
    rows = [
        row("seqjax Auto()", "2x5x4", 1.0, compile_seconds=1.0, temporary_bytes=30),
        row("flax linen", "2x5x4", 2.0, compile_seconds=2.0, temporary_bytes=60),
        row("keras", "2x5x4", 8.0),
        row("torch", "2x5x4", 1.0, on_jax=False),
        row("seqjax Auto()", "2x6x4", 1.0, compile_seconds=3.0, temporary_bytes=40),
        row("flax linen", "2x6x4", 9.0, compile_seconds=2.0, temporary_bytes=40),
        row("keras", "2x6x4", 8.0),
        row("torch", "2x6x4", 9.0, on_jax=False),
    ]
    found = {one["summary"]: one for one in layers_report.summary(rows)}
    assert found["step, speed over the best JAX peer"]["geometric_mean"] == pytest.approx(4.0)  # √(2 · 8)
    assert found["step, speed over the best JAX peer"]["least_at"] == "2x5x4"
    assert found["step, speed over the best peer"]["geometric_mean"] == pytest.approx(8.0**0.5)  # √(1 · 8)
    assert found["time to compile a step, over flax"]["most"] == pytest.approx(1.5)
    assert found["memory of a step, over flax"]["geometric_mean"] == pytest.approx(0.5**0.5)
    layers_report.table(rows)
    printed = capsys.readouterr().out
    assert "2x6x4" in printed
    assert "8.00 [8.00, 8.00]" in printed
    layers_report.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_roofline_loop_does_the_products_that_it_counts():
    loop, counted = roofline.recurrence(3, 4, 2, "float32")
    h = np.asarray(loop())
    # each product is with a rotation: the size of h is that of the normal numbers it began with
    start = np.random.default_rng(0)
    start.normal(size=(4, 4))
    np.testing.assert_allclose(np.linalg.norm(h, axis=1), np.linalg.norm(start.normal(size=(3, 4)), axis=1), rtol=0.05)
    assert counted == pytest.approx(roofline.LOOP_FLOP, rel=0.01)


def test_a_result_file_is_written_by_a_process_of_its_own(tmp_path, monkeypatch):
    config = layers.Config(kinds=(), threads=(1,), output=tmp_path / "layers.jsonl")
    measure.start(config.output)
    layers.bound(config, 1)
    (header,) = measure.read(config.output)[1]
    assert header["threads"] == 1
    assert set(header["peers"]) == set(PEERS)
    assert header["bandwidth"] > 0


@pytest.mark.parametrize("options", [{"threads": (0,)}, {"threads": ()}, {"threads": (10_000,)}, {"kinds": ()}])
def test_flags_of_nothing_to_measure_leave_the_results_as_they_are(tmp_path, options):
    output = tmp_path / "layers.jsonl"
    output.write_text("measured")
    with pytest.raises(SystemExit, match=r"must be at least 1|nothing to measure"):
        layers.main(layers.Config(output=output, **options))
    assert output.read_text() == "measured"
