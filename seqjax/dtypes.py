# SPDX-License-Identifier: Apache-2.0
"""The dtypes of a model: of its params, its computation and its carry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.base import Array, Described


@dataclasses.dataclass(frozen=True, repr=False)
class DTypes(Described):
    """Three explicit dtypes; nothing is ever promoted or cast beyond what is asked for here.

    Args:
      params: what `init` draws.
      compute: what inputs and weights are cast to. `None`: the params' own dtype, and
        inputs of any other dtype are rejected rather than cast.
      carry: what passes from step to step. `None`: the compute dtype, but at least float32 in cells that are affine
        in their carry (`MinGRU`, `MinLSTM`, `LRU`, `RGLRU`).

    Raises:
      ValueError: a dtype that is not floating point.

    >>> DTypes(compute=jnp.bfloat16, carry=jnp.float32)
    DTypes(compute='bfloat16', carry='float32')
    """

    params: DTypeLike = "float32"
    compute: DTypeLike | None = None
    carry: DTypeLike | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is None and field.default is None:
                continue
            if not _is_floating(given):
                raise ValueError(f"DTypes.{field.name} must be a floating dtype such as 'float32', got {given!r}.")
            object.__setattr__(self, field.name, jnp.dtype(given).name)

    def of_compute(self, weight: Array) -> jnp.dtype:
        """The compute dtype of a layer with `weight` among its params."""
        return jnp.dtype(self.compute or weight.dtype)

    def of_carry(self, weight: Array) -> jnp.dtype:
        """The carry dtype of a layer with `weight` among its params."""
        return jnp.dtype(self.carry or self.of_compute(weight))

    def cast(self, owner: object, x: Array, weight: Array) -> Array:
        """`x` in the compute dtype.

        Raises:
          ValueError: `x` has another dtype and no compute dtype was asked for, or its last
            axis is not D of `weight [..., D, F]`.
        """
        compute = self.of_compute(weight)
        if x.shape[-1] != weight.shape[-2]:
            raise ValueError(
                f"{owner!r} was initialized for {weight.shape[-2]} features, got an input of shape {x.shape} "
                f"with {x.shape[-1]}; axis -1 is features."
            )
        if self.compute is None and x.dtype != compute:
            raise ValueError(
                f"{owner!r} computes in {compute.name}, got {x.dtype.name}; cast the input, or ask for the cast "
                f"with DTypes(compute={compute.name!r})."
            )
        return x.astype(compute)


def _is_floating(given: DTypeLike | None) -> bool:
    try:
        return given is not None and bool(jnp.issubdtype(jnp.dtype(given), jnp.floating))
    except TypeError:  # not a dtype at all
        return False


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which statistics of arrays of `dtype` are computed."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def widen(x: Array) -> Array:
    """`x` in float32 if it is in half precision, otherwise unchanged.

    >>> widen(jnp.ones(1, "bfloat16")).dtype, widen(jnp.ones(1, "int8")).dtype
    (dtype('float32'), dtype('int8'))
    """
    return x.astype(at_least_float32(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def widest(*dtypes: DTypeLike) -> jnp.dtype:
    """The narrowest dtype that holds the numbers of all, also under strict promotion.

    >>> widest("float32", "bfloat16"), widest("float16", "bfloat16")
    (dtype('float32'), dtype('float32'))
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def add_bias(x: Array, bias: Array) -> Array:
    """`x [..., N] + bias [N]` in the dtype of `x`; the gradient of `bias`, a sum over all steps, in at least float32.

    Summed in bfloat16, ten thousand bfloat16 numbers lose a third of their sum.

    >>> import jax
    >>> ones = jnp.ones((10_000, 1), jnp.bfloat16)
    >>> jax.grad(lambda bias: add_bias(ones, bias).astype(jnp.float32).sum())(jnp.zeros(1)).tolist()
    [10000.0]
    """
    wide = at_least_float32(x.dtype)
    return (x.astype(wide) + bias.astype(wide)).astype(x.dtype)
