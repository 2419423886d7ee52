# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark, run through on a CPU: every job writes its rows, and the kernels are right."""

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

from experiments.benchmarks import gpu, measure


def test_a_dry_run_does_every_job_and_draws_the_plot(tmp_path):
    gpu.main(gpu.Config(dry=True, out=tmp_path))
    environment, rows = measure.read(tmp_path / "gpu-dry.jsonl")
    assert environment["backend"] == "cpu"
    assert {row["job"] for row in rows} == {"check", "train", "length"}
    assert all(row["passed"] for row in rows if row["job"] == "check")
    named = {row["name"]: row for row in rows if row["job"] == "train"}
    assert "GPU" in named["cuDNN in JAX"]["skipped"]
    assert all("seconds" in named[name] for name in ("lax.scan", "Scan()", "Fused()"))
    assert (tmp_path / "gpu-dry.png").stat().st_size > 0


def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        gpu.main(gpu.Config())
