# SPDX-License-Identifier: Apache-2.0
"""What the machine can do: matmul rates and memory bandwidth, measured by XLA.

The roofline of a recurrent layer is its floating-point operations over the rate of the matmul that its loop must do,
`[B, H] @ [H, G*H]`, step after step. The rate of a large matmul is the machine's best.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 1024
LOOP_FLOP = 4e8
BANDWIDTH_BYTES = 2**27


def flop(B: int, T: int, D: int, H: int, G: int) -> float:
    """Of the matmuls of a forward pass; a training step has three times as many.

    >>> flop(32, 200, 64, 64, 4)
    419430400.0
    """
    return 2.0 * B * T * G * H * (D + H)


def recurrence(B: int, H: int, G: int, dtype: str) -> tuple[Callable[[], Any], float]:
    """A compiled loop of `[B, H] @ [H, G*H]`, each product fed by the one before, and its operations."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(H, H)))[0]  # keeps the size of h
    h, w = jnp.asarray(random.normal(size=(B, H)), dtype), jnp.asarray(np.tile(rotation, G), dtype)
    each = 2.0 * B * H * G * H
    steps = max(10, int(LOOP_FLOP / each))

    def step(i: jax.Array, h: jax.Array, w: jax.Array) -> jax.Array:
        # which gate's columns go on changes, so that none is left out
        return jax.lax.dynamic_slice_in_dim(h @ w, i % G * H, H, axis=-1)

    def loop(h: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, steps, functools.partial(step, w=w), h)

    return functools.partial(jax.jit(loop).lower(h, w).compile(), h, w), steps * each


def large_matmul_rate(dtype: str, size: int = LARGE) -> float:
    """FLOP a second of a square matmul."""
    random = np.random.default_rng(0)
    a, b = (jnp.asarray(random.uniform(-1, 1, (size, size)), dtype) for _ in range(2))
    return 2.0 * size**3 / _seconds(functools.partial(jax.jit(jnp.matmul).lower(a, b).compile(), a, b))


def bandwidth(size: int = BANDWIDTH_BYTES, times: int = 4) -> float:
    """Bytes a second, read and written, of an elementwise update in place of an array that no cache holds."""
    x = jnp.zeros(size // 4, "float32")

    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda i, x: 0.5 * x + 1, x)

    program = jax.jit(loop).lower(x).compile()
    return 2.0 * size * times / _seconds(functools.partial(program, x))


def _seconds(thunk: Callable[[], Any], repeats: int = 5) -> float:
    """The fastest of some calls, after one that does not count: what the machine can do."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(thunk())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
