# SPDX-License-Identifier: Apache-2.0
"""What all converters share: reordering gates, converting arrays without a cast, and errors that name the culprit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.base import Array, Cell, Layer, Params
from seqjax.dtypes import DTypes
from seqjax.layers import Serial


def reorder(weights: Any, given: str, wanted: str) -> Any:
    """Permutes gates that lie side by side on the last axis.

    Args:
      weights: `[..., G*H]`, a NumPy or JAX array.
      given: the gates of `weights`, one letter each, such as `"ifgo"`.
      wanted: the same letters in the order of the result.

    Returns:
      An array like `weights`.

    Raises:
      ValueError: letters that differ, or a last axis that does not divide into gates.

    >>> reorder(np.array([1, 2, 3, 4, 5, 6]), "rzg", "zrg").tolist()
    [3, 4, 1, 2, 5, 6]
    """
    if sorted(given) != sorted(wanted) or len(set(given)) != len(given):
        raise ValueError(f"reorder permutes distinct gates, got {given!r} and {wanted!r}.")
    width, rest = divmod(weights.shape[-1], len(given))
    if rest:
        raise ValueError(f"{len(given)} gates {given!r} need a last axis of {len(given)}*H, got shape {weights.shape}.")
    order = np.array([given.index(gate) for gate in wanted])
    return weights.reshape(*weights.shape[:-1], len(given), width)[..., order, :].reshape(weights.shape)


def unsupported(owner: str, what: str, advice: str) -> ValueError:
    """The error for something that seqjax or the other library does not have.

    >>> unsupported("keras LSTM 'a'", "go_backwards=True", "use Bidirectional")
    ValueError("keras LSTM 'a': go_backwards=True is not supported; use Bidirectional.")
    """
    return ValueError(f"{owner}: {what} is not supported; {advice}.")


def check_options(owner: str, options: Mapping[str, Any], allowed: Mapping[str, tuple], advice: str) -> None:
    """Rejects an option whose value is not among those that mean the same here.

    Args:
      owner: what the options belong to, for the message.
      options: name to value; missing names are fine.
      allowed: name to the values that can be converted.
      advice: what to do instead.

    Raises:
      ValueError: naming the owner, the option, what was given and what would work.
    """
    for name, values in allowed.items():
        if name in options and not any(options[name] is value or options[name] == value for value in values):
            wanted = " or ".join(f"{value!r}" for value in values)
            raise unsupported(owner, f"{name}={options[name]!r}", f"only {wanted} is: {advice}")


def to_jax(owner: str, name: str, array: Any, shape: tuple[int, ...] | None = None) -> Array:
    """A weight as a JAX array of its own dtype, in the machine's byte order.

    Args:
      owner, name: whose weight it is, and which one, for the message.
      array: a floating-point NumPy or JAX array.
      shape: the shape that the rest of the model implies, or `None`.

    Raises:
      ValueError: another shape, a dtype that is not floating point, or one that JAX would cast (float64 without x64).
    """
    if shape is not None and tuple(array.shape) != tuple(shape):
        raise ValueError(f"{owner}: {name} must have shape {tuple(shape)}, got {tuple(array.shape)}.")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{owner}: {name} must be floating point, got {array.dtype}.")
    native = array.dtype.newbyteorder("=")
    if jax.dtypes.canonicalize_dtype(native) != native:
        raise ValueError(
            f"{owner}: {name} is {array.dtype}, which JAX holds only after "
            "jax.config.update('jax_enable_x64', True); enable it, or cast the weights to float32 first."
        )
    return jnp.asarray(array.astype(native, copy=False))


def check_one_dtype(owner: str, arrays: Mapping[str, Any]) -> None:
    """Rejects weights of different dtypes, which no cell can have.

    Raises:
      ValueError: naming the dtype of each.
    """
    dtypes = {name: array.dtype.name for name, array in arrays.items()}
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"{owner}: weights must be of one dtype, got {dtypes}; cast them to one first.")


def param_array(owner: Any, name: str, params: Params, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A param as a NumPy array of its own dtype.

    Args:
      owner: the cell or layer.
      name: that of the param.
      params: those of `owner`.
      shape: the shape that the rest of the model implies, or `None`.

    Raises:
      ValueError: a param that is missing, or whose dtype or shape is not what the model implies.
    """
    return np.asarray(_own(owner, name, params, shape))


def check_params(cell: Cell, params: Params) -> None:
    """Rejects params that are not those of `cell`, before they are written under another library's names.

    Raises:
      ValueError: naming the param that is missing, superfluous, or of the wrong shape or dtype.
    """
    in_dim = _own(cell, "w_in", params, None).shape[0]
    wanted = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_dim))
    for name, like in zip(wanted._fields, wanted, strict=True):
        if like is not None:
            _own(cell, name, params, like.shape)
        elif getattr(params, name, None) is not None:
            raise ValueError(f"{cell!r} has no {name}, but the params have one; were they made by it?")


def pieces_of(model: Serial, params: Params) -> list[tuple[Layer, Params]]:
    """The layers of a `Serial`, each with its params.

    Raises:
      ValueError: params that do not fit the model.
    """
    if not isinstance(params, tuple | list) or len(params) != len(model.layers):
        raise ValueError(f"{model!r} has {len(model.layers)} layers; its params must be a tuple of as many.")
    return list(zip(model.layers, params, strict=True))


def param_dtypes(dtype: Any) -> DTypes:
    """The `DTypes` of a model whose weights have `dtype`.

    >>> param_dtypes(np.dtype("float64"))
    DTypes(params='float64')
    """
    return DTypes(params=jnp.dtype(dtype).name)


def _own(owner: Any, name: str, params: Params, shape: tuple[int, ...] | None) -> Array:
    """A param as it is, checked as described in `param_array`."""
    array = getattr(params, name, None)
    if array is None:
        raise ValueError(f"{owner!r}: {name} is None in the params, but the model has it; were they made by it?")
    if shape is not None and tuple(array.shape) != tuple(shape):
        raise ValueError(f"{owner!r}: {name} must have shape {tuple(shape)}, got {tuple(array.shape)}.")
    if array.dtype != owner.dtypes.params:
        raise ValueError(f"{owner!r}: {name} is {array.dtype}, its dtypes say {owner.dtypes.params}.")
    return array
