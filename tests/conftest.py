# SPDX-License-Identifier: Apache-2.0
"""Every test runs on CPU, in float64 where it asks for it, under strict dtype promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
