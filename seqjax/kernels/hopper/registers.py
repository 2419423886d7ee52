# SPDX-License-Identifier: Apache-2.0
"""What Pallas' Mosaic backend does not do in registers: unpack words of two bfloat16, pack them, a quick reciprocal.

Loaded as 16-bit numbers, two to a register, they would be taken apart at once, and a step would wait for what only the
next one needs.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu.utils import c
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from seqjax.base import Array
from seqjax.kernels.hopper.tiles import ROWS, UNITS

WGMMA = plgpu.Layout.WGMMA
"""Where the matrix units leave their results."""


def unpack(words: Array) -> Array:
    """Words of two bfloat16, `[64, 8]`, as `[64, 16]` float32, in the order `tiles.MOVED`."""

    @plgpu.inline_mgpu(arg_types=(WGMMA,), return_type=_type(ROWS, jnp.float32))
    def run(_: Any, words: Any) -> Any:
        pairs = [_elements(register) for register in words.registers.flat]
        return _array([_vector(_numbers(pair[i])) for i in range(2) for pair in pairs], ROWS, None)

    return run(words)


def pack(array: Array) -> Array:
    """The inverse of `unpack`, rounding."""

    @plgpu.inline_mgpu(arg_types=(WGMMA,), return_type=_type(ROWS // 2, jnp.uint32))
    def run(_: Any, array: Any) -> Any:
        words = [_elements(vector.bitcast(_vector_type(1, _word()), register))[0] for register in array.registers.flat]
        left, right = words[: len(words) // 2], words[len(words) // 2 :]
        return _array([_vector(pair) for pair in zip(left, right, strict=True)], ROWS // 2, False)

    return run(array.astype(jnp.bfloat16))


def reciprocal(array: Array) -> Array:
    """1 / x for `[64, 16]` float32, in one instruction; denormal numbers count as zero."""

    @plgpu.inline_mgpu(arg_types=(WGMMA,), return_type=_type(ROWS, jnp.float32))
    def run(_: Any, array: Any) -> Any:
        return _array([_vector(map(_reciprocal, _elements(r))) for r in array.registers.flat], ROWS, None)

    return run(array)


def _numbers(word: Any) -> tuple[Any, Any]:
    """Both bfloat16 in a word, as float32."""
    number = ir.F32Type.get()
    low, high = arith.shli(word, c(16, _word())), arith.andi(word, c(-(2**16), _word()))
    return arith.bitcast(number, low), arith.bitcast(number, high)


def _reciprocal(number: Any) -> Any:
    return llvm.inline_asm(ir.F32Type.get(), [number], "rcp.approx.ftz.f32 $0, $1;", "=f,f")


def _elements(register: Any) -> list[Any]:
    count = ir.VectorType(register.type).shape[0]
    return [vector.extract(register, [], ir.DenseI64ArrayAttr.get([i])) for i in range(count)]


def _vector(elements: Any) -> Any:
    elements = list(elements)
    return vector.from_elements(_vector_type(len(elements), elements[0].type), elements)


def _vector_type(count: int, of: Any) -> Any:
    return ir.VectorType.get((count,), of)


def _word() -> Any:
    return ir.IntegerType.get_signless(32)


def _type(columns: int, dtype: Any) -> Any:
    return plgpu.ShapeDtypeStruct((UNITS, columns), dtype, layout=WGMMA)


def _array(registers: Sequence[Any], columns: int, is_signed: bool | None) -> Any:
    """Registers, those of the first eight columns first, as an array."""
    layout = WGMMA.to_mgpu()
    shaped = np.empty(layout.registers_shape((UNITS, columns)), object)
    for place, register in zip(np.ndindex(shaped.shape), registers, strict=True):
        shaped[place] = register
    return mgpu.FragmentedArray(_registers=shaped, _layout=layout, _is_signed=is_signed)
