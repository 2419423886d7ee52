# SPDX-License-Identifier: Apache-2.0
"""Every test runs on CPU, in float64 where it asks for it, under strict dtype promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

# most of a test's time is compilation: programs are small, so they are compiled without optimization
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__[:2] == (0, 10):  # less than half the time; a later XLA may not know a flag, and aborts then
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
