# SPDX-License-Identifier: Apache-2.0
"""Where JAX will compute: a few choices differ between a CPU and a GPU, and none changes a number but by rounding."""

from typing import Any

import jax


def device() -> Any:
    """The device of what is not placed: that of `jax.default_device`, or the first."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined, unused-ignore]
    if chosen is None:
        return jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def platform() -> str:
    """The backend of that device.

    >>> with jax.default_device("cpu"):
    ...     platform()
    'cpu'
    """
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined, unused-ignore]
    return jax.default_backend() if chosen is None else device().platform
