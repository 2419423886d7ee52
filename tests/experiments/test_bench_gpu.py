# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark, run through on a CPU: every job writes its rows, and the kernels are right."""

import jax.numpy as jnp
import pytest

from seqjax.engines import Scan

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

from experiments.benchmarks import gpu, gpu_compile, measure

PROGRAM = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %a = f32[4]{0} fusion(%p), kind=kLoop, calls=%f
  %b = (f32[4]{0}, s8[8]{0}) custom-call(%a), custom_call_target="gemm"
  ROOT %t = (s32[], f32[4]{0}) tuple(%p, %a)
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = f32[4]{0} copy(%p)
  ROOT %w = (s32[], f32[4]{0}) while(%c), condition=%less, body=%body
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%p), condition=%less, body=%outer
}
"""


def test_operations_are_those_of_innermost_loops():
    assert gpu_compile.operations(PROGRAM) == [2]


def test_a_dry_run_does_every_job_and_draws_the_plot(tmp_path):
    gpu.main(gpu.Config(dry=True, out=tmp_path))
    environment, rows = measure.read(tmp_path / "gpu-dry.jsonl")
    assert environment["backend"] == "cpu"
    assert {row["job"] for row in rows} == {"check", "train", "length"}
    assert all(row["passed"] for row in rows if row["job"] == "check")
    named = {row["name"]: row for row in rows if row["job"] == "train" and row["cell"] == "lstm"}
    assert "GPU" in named["cuDNN in JAX"]["skipped"]
    ours = "lax.scan", "Scan()", "Fused()", "Checkpointed(inner=Fused())"
    assert all("seconds" in named[name] for name in ours)
    assert (tmp_path / "gpu-dry.png").stat().st_size > 0


def test_a_kernel_that_forgets_its_recurrent_weights_fails_the_check(monkeypatch):
    class Forgetful:
        def __init__(self, interpret):
            pass

        def run(self, cell, params, *given, **flags):
            return Scan().run(cell, params._replace(w_rec=jnp.zeros_like(params.w_rec)), *given, **flags)

    config = gpu.Config()
    for engine, passes in ((lambda interpret: Scan(), True), (Forgetful, False)):
        monkeypatch.setattr(gpu, "Fused", engine)
        for name in ("simple", "gru-before", "two heads of lstm"):
            assert gpu.check(name, "bfloat16", config)[0]["passed"] == passes, name


def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        gpu.main(gpu.Config())
