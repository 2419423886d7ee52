# SPDX-License-Identifier: Apache-2.0
"""Lowering for a GPU on a machine that has none: to the code that the kernels' compiler takes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.kernels import equations, operands


def kernels_launched(fn: Callable[..., Any], *arguments: Any) -> int:
    """How many kernels of Pallas' Triton backend are in `fn`, lowered for an H100."""
    text = lowered(fn, *arguments)
    return text.count("custom_call @__gpu$xla.gpu.triton") + text.count("custom_call @triton_kernel_call")


def lowered(fn: Callable[..., Any], *arguments: Any) -> str:
    """What `fn` becomes for an H100."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1,), ("device",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    ):
        return jax.jit(fn).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def shapes(kind: equations.Kind, dtype: str, T: int, B: int, H: int) -> tuple[jax.ShapeDtypeStruct, operands.Given]:
    """Projected inputs, and what a recurrence starts from: masks, resets and, where there is one, a bias inside."""
    states = (jax.ShapeDtypeStruct((B, H), jnp.float32),) * kind.states
    weights = jax.ShapeDtypeStruct((H, kind.gates * H), jnp.float32)
    bias = jax.ShapeDtypeStruct((kind.gates * H,), jnp.dtype(dtype)) if kind is equations.GRU_AFTER else None
    given: Any = operands.Given(weights, bias, states, states, jax.ShapeDtypeStruct((T, B), jnp.int8))  # type: ignore[arg-type]
    return jax.ShapeDtypeStruct((T, B, kind.gates * H), jnp.dtype(dtype)), given
