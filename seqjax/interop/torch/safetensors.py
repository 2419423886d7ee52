# SPDX-License-Identifier: Apache-2.0
"""safetensors files: a JSON header and plain arrays behind it, read without anything but NumPy.

The format: 8 bytes with the header's size n (little-endian), n bytes of JSON that say name, dtype, shape and
place of each array, then the arrays, side by side. All of it is looked at before memory is taken for an array.
Source: the format's description, https://github.com/huggingface/safetensors.
"""

import json
import math
import os
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from seqjax.base import Layer, Params
from seqjax.interop.layout import unsupported
from seqjax.interop.torch.state import from_state_dict

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save's archives, and bare ones
_HEADER_BYTES = 100_000_000  # the format's own limit


def load_safetensors(
    path: str | os.PathLike,
    kind: str,
    *,
    prefix: str = "",
    activation: str = "tanh",
    dropout: float = 0.0,
    max_bytes: int = 2**31,
) -> tuple[Layer, Params]:
    """The weights of a recurrent PyTorch module in a safetensors file as a seqjax layer and its params.

    Args:
      path: the file. Nothing in it is executed.
      kind, prefix, activation, dropout: as for `from_state_dict`.
      max_bytes: refuse arrays that take more together.

    Raises:
      ValueError: no safetensors file (a pickle, `.pt` or `.pth`, is refused), or what `from_state_dict` refuses.
    """
    state = read_safetensors(path, prefix=prefix, max_bytes=max_bytes)
    return from_state_dict(state, kind, prefix=prefix, activation=activation, dropout=dropout)


def read_safetensors(path: str | os.PathLike, *, prefix: str = "", max_bytes: int = 2**31) -> dict[str, np.ndarray]:
    """The floating-point arrays of a safetensors file.

    Args:
      path: the file.
      prefix: read those whose name begins so.
      max_bytes: refuse arrays that take more together.

    Returns:
      Name to array, in the file's dtype.

    Raises:
      ValueError: a damaged file, an array of another dtype, too many bytes.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start, header = _header(path, file, size)
        places = {name: _place(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
        _check_layout(path, places, size - start)
        wanted = {name: place for name, place in places.items() if name.startswith(prefix)}
        total = sum(stop - begin for _, _, begin, stop in wanted.values())
        if total > max_bytes:
            raise ValueError(f"{path}: its arrays take {total} bytes, the limit is max_bytes={max_bytes}.")
        state = {}
        for name, (dtype, shape, begin, stop) in wanted.items():
            if dtype not in _DTYPES:
                raise unsupported(str(path), f"{name} of dtype {dtype}", f"only {sorted(_DTYPES)} are: give prefix=")
            file.seek(start + begin)
            raw = np.frombuffer(file.read(stop - begin), np.uint8)
            state[name] = raw.view(jnp.dtype(_DTYPES[dtype]).newbyteorder("<") if dtype != "BF16" else jnp.bfloat16)
            state[name] = state[name].reshape(shape)
    return state


def _header(path: str | os.PathLike, file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Where the arrays begin, and what the header says of them."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, _HEADER_BYTES):
        if first[:2] in _PICKLES:
            raise ValueError(
                f"{path} is a pickle, which runs code when it is read. If you trust it, hand "
                "torch.load(path, weights_only=True) to from_state_dict, or save it as safetensors."
            )
        raise ValueError(f"{path} is no safetensors file: a header of {length} bytes in a file of {size}.")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file: its header is not read: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header must be an object, got {type(header).__name__}.")
    return 8 + length, header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _place(path: str | os.PathLike, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape and bytes of an array."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape", ()), fields.get("data_offsets", ())
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not isinstance(dtype, str) or not lists or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise ValueError(f"{path}: {name!r} must have a dtype, a shape and data_offsets, got {str(entry)[:80]}.")
    begin, stop = offsets
    if dtype in _DTYPES and stop - begin != math.prod(shape) * jnp.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError(f"{path}: {name!r} is {dtype} {shape}, which does not take {stop - begin} bytes.")
    return dtype, tuple(shape), begin, stop


def _check_layout(path: str | os.PathLike, places: dict[str, tuple], size: int) -> None:
    """The arrays must cover the rest of the file, side by side."""
    at = 0
    for begin, stop in sorted((begin, stop) for _, _, begin, stop in places.values()):
        if begin != at or stop < begin:
            raise ValueError(f"{path}: its arrays overlap or leave a gap at byte {at}.")
        at = stop
    if at != size:
        raise ValueError(f"{path}: its header tells of {at} bytes of arrays, the file has {size}.")
