# SPDX-License-Identifier: Apache-2.0
"""Every test runs on CPU, in float64 where it asks for it, under strict dtype promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# most of a test's time is compilation: programs are small, so they are compiled without optimization
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
