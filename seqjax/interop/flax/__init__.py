# SPDX-License-Identifier: Apache-2.0
"""Flax, both APIs: weights in and out, seqjax engines inside Flax models, and Flax cells inside seqjax models.

- `from_flax`, `to_flax`: convert cells and layers with their params, either way;
- `nnx.RNN`, `linen.RNN`: drop-in replacements for Flax's own, run by a seqjax engine;
- `from_flax_cell`: any Flax cell as a seqjax `Cell`.

Flax itself is imported when one of these is first used.
"""

import importlib

_HOMES = {
    "from_flax": "convert",
    "to_flax": "convert",
    "from_flax_cell": "cells",
    "LinenCell": "cells",
    "NNXCell": "cells",
}
_SUBMODULES = ("linen", "nnx")

__all__ = ["LinenCell", "NNXCell", "from_flax", "from_flax_cell", "linen", "nnx", "to_flax"]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})
