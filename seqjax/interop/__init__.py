# SPDX-License-Identifier: Apache-2.0
"""Models from and to other libraries: `keras`, `torch`, `flax` and `haiku`; and `export`.

Nothing here is imported by the core, and no submodule imports the library it is for until a
function needs it. A converter returns a layer *and* its params, time-major.
"""

import importlib

_SUBMODULES = ("export", "flax", "haiku", "keras", "torch")

__all__ = ["export", "flax", "haiku", "keras", "torch"]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"seqjax.interop.{name}")
    raise AttributeError(f"module 'seqjax.interop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
