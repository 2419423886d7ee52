# SPDX-License-Identifier: Apache-2.0
"""safetensors files, read with the library of that name; nothing in a file is executed.

Source: the description of the format, https://github.com/huggingface/safetensors.
"""

import math
import os
from types import ModuleType

import jax.numpy as jnp
import numpy as np

from seqjax.base import Layer, Params
from seqjax.interop.layout import unsupported
from seqjax.interop.torch.state import from_state_dict

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save's archives, and bare ones


def load_safetensors(
    path: str | os.PathLike,
    kind: str,
    *,
    prefix: str = "",
    activation: str = "tanh",
    dropout: float = 0.0,
    max_bytes: int = 2**31,
) -> tuple[Layer, Params]:
    """The weights of a recurrent PyTorch module in a safetensors file, as a seqjax layer and its params.

    Args:
      path: the file. Nothing in it is executed.
      kind, prefix, activation, dropout: as for `from_state_dict`.
      max_bytes: reject arrays that together take more than this.

    Raises:
      ValueError: not a safetensors file (pickles, `.pt` or `.pth`, are rejected), or what `from_state_dict` rejects.
    """
    state = read_safetensors(path, prefix=prefix, max_bytes=max_bytes)
    return from_state_dict(state, kind, prefix=prefix, activation=activation, dropout=dropout)


def read_safetensors(path: str | os.PathLike, *, prefix: str = "", max_bytes: int = 2**31) -> dict[str, np.ndarray]:
    """The floating-point arrays of a safetensors file.

    Args:
      path: the file.
      prefix: read only arrays whose names start with it.
      max_bytes: reject arrays that together take more than this.

    Returns:
      Name to array, in the file's dtype.

    Raises:
      ValueError: a damaged file, a pickle, an array with a dtype that is not floating point, or too many bytes.
      ImportError: the package safetensors is not installed.
    """
    with open(path, "rb") as file:
        if file.read(2).startswith(_PICKLES):
            raise ValueError(
                f"{path} is a pickle, which runs code when it is read. If you trust it, hand "
                "torch.load(path, weights_only=True) to from_state_dict, or save it as safetensors."
            )
    library = _library()
    try:
        with library.safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  # not a dict
            forms = {name: file.get_slice(name) for name in names}
            dtypes = {name: form.get_dtype() for name, form in forms.items()}
            for name, dtype in dtypes.items():
                if dtype not in _DTYPES:
                    raise unsupported(
                        str(path), f"{name} of dtype {dtype}", f"only {sorted(_DTYPES)} are: give prefix="
                    )
            sizes = (
                math.prod(form.get_shape()) * jnp.dtype(_DTYPES[dtypes[name]]).itemsize for name, form in forms.items()
            )
            total = sum(sizes)
            if total > max_bytes:
                raise ValueError(f"{path}: its arrays take {total} bytes, the limit is max_bytes={max_bytes}.")
            return {name: file.get_tensor(name) for name in names}
    except library.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or a damaged one: {error}.") from error


def _library() -> ModuleType:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("reading safetensors files needs the package safetensors: pip install safetensors") from error
    return safetensors
