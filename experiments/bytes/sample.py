# SPDX-License-Identifier: Apache-2.0
"""A model writes: byte by byte, as a stream, in the memory of one step."""

import jax
import jax.numpy as jnp

from experiments.bytes.task import BYTES
from seqjax.base import Array, Carry, Layer, Params


def check_alphabet(model: Layer, params: Params) -> None:
    """Refuses a model that does not go from bytes to scores of bytes.

    Raises:
      ValueError: saying what it does.
    """
    try:
        _, logits = jax.eval_shape(model.apply, params, model.initial_carry(params, ()), jnp.zeros(1, jnp.int32))
    except ValueError as error:
        raise ValueError(f"{model!r} does not read bytes: {error}") from None
    if logits.shape != (1, BYTES):
        raise ValueError(f"{model!r} maps a byte to {list(logits.shape)}, not to the scores of {BYTES} bytes.")


def write(model: Layer, params: Params, prompt: bytes, *, length: int, temperature: float, seed: int) -> bytes:
    """`length` bytes that follow the prompt.

    Each is drawn from softmax(logits / temperature) of the bytes before it and is the next step's input;
    the carry is all that is kept.

    Args:
      model: ids `[T]` to logits `[T, 256]`; it streams.
      params: its params.
      prompt: at least one byte.
      length: bytes to write.
      temperature: above 0.
      seed: of the draws.

    Raises:
      ValueError: an empty prompt, or a temperature that is not above 0.
    """
    if not prompt or not temperature > 0:
        raise ValueError(f"needs a prompt and a temperature above 0, got {prompt!r} and {temperature}.")

    @jax.jit
    def step(carry: Carry, last: Array, key: Array) -> tuple[Carry, Array]:
        carry, logits = model.apply(params, carry, last[None])
        below = logits[0] - logits[0].max()  # the most likely one stays 0, however cold it is
        drawn = jax.random.categorical(key, below / jnp.maximum(temperature, jnp.finfo(below.dtype).tiny))
        return carry, drawn.astype(last.dtype)

    carry, written = model.initial_carry(params, ()), []
    last = jnp.asarray(prompt[0], jnp.int32)
    key = jax.random.key(seed)
    for t in range(len(prompt) - 1 + length):
        carry, drawn = step(carry, last, jax.random.fold_in(key, t))
        last = drawn if t >= len(prompt) - 1 else jnp.asarray(prompt[t + 1], jnp.int32)
        if t >= len(prompt) - 1:
            written.append(int(drawn))
    return bytes(written)
