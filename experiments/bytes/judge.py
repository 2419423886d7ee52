# SPDX-License-Identifier: Apache-2.0
"""Bits a byte of the judged part, read as one stream: by fixed weights, or by weights that go on learning."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seqjax import training
from seqjax.base import Array, Carry, Layer, Params

WARM_UP = 8192
"""Bytes of the first part that a model reads before it is judged."""
PIECE, LESSON = 512, 32
"""Bytes that are judged in one call, and bytes after which weights that learn are changed."""

State = Any
Reader = Callable[[State, Array, Array], tuple[State, Array]]
"""`read(state, xs, ys) -> (state, nats)`: the sum of -log p of the bytes `ys` that follow `xs`."""


def reader(model: Layer) -> Callable[[Params, Carry, Array, Array], tuple[Carry, Array]]:
    """A jitted `read(params, carry, xs, ys) -> (carry, nats)`; with its params, a `Reader` whose state is the carry."""

    @jax.jit
    def read(params: Params, carry: Carry, xs: Array, ys: Array) -> tuple[Carry, Array]:
        carry, logits = model.apply(params, carry, xs)
        return carry, training.cross_entropy(logits, ys) * len(ys)

    return read


def learner(model: Layer, optimizer: optax.GradientTransformation) -> Reader:
    """A jitted `Reader` whose state is `(params, optimizer_state, carry)`.

    Each piece is judged by the weights that its own bytes have not changed yet; then they take one step
    down its gradient. The carry goes on, gradients go back to the beginning of the piece.
    """

    @jax.jit
    def read(state: State, xs: Array, ys: Array) -> tuple[State, Array]:
        params, optimizer_state, carry = state

        def loss(params: Params) -> tuple[Array, Carry]:
            after, logits = model.apply(params, carry, xs)
            return training.cross_entropy(logits, ys), after

        (mean, carry), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state, carry), mean * len(ys)

    return read


def fixed(model: Layer, read: Callable, params: Params, ids: np.ndarray, cut: int, piece: int = PIECE) -> float:
    """Bits a byte of `ids[cut:]` by `read = reader(model)`, the weights as they are."""
    return stream(functools.partial(read, params), _at_the_cut(model, read, params, ids, cut), ids, cut, piece)


def dynamic(model: Layer, params: Params, ids: np.ndarray, cut: int, *, rate: float, piece: int = LESSON) -> float:
    """Bits a byte of `ids[cut:]` by weights that go on learning: dynamic evaluation.

    Source: B. Krause et al., *Dynamic evaluation of neural sequence models* (2018), arXiv 1709.07432; here in its
    plain form, gradient descent, clipped to a norm of 1. A compressor adapts to what it has read as well.

    Args:
      model, params, ids: the model, trained on `ids[:cut]`, and the text.
      cut: where the judged part begins.
      rate: of gradient descent.
      piece: bytes between two steps.
    """
    optimizer = training.clipped(optax.sgd(rate), norm=1.0)
    carry = _at_the_cut(model, reader(model), params, ids, cut)
    return stream(learner(model, optimizer), (params, optimizer.init(params), carry), ids, cut, piece)


def stream(read: Reader, state: State, ids: np.ndarray, cut: int, piece: int) -> float:
    """Bits a byte of `ids[cut:]`, each judged once; `state` has read all but the last byte of `ids[:cut]`."""
    nats: list[Array] = []
    for begin in range(cut - 1, len(ids) - 1, piece):
        end = min(begin + piece, len(ids) - 1)
        state, found = read(state, jnp.asarray(ids[begin:end]), jnp.asarray(ids[begin + 1 : end + 1]))
        nats.append(found)
    return float(np.sum(np.asarray(jax.device_get(nats), np.float64))) / (len(ids) - cut) / math.log(2)


def _at_the_cut(model: Layer, read: Callable, params: Params, ids: np.ndarray, cut: int) -> Carry:
    """The carry after the `WARM_UP` bytes that end one before the cut."""
    begin = max(cut - 1 - WARM_UP, 0)
    xs, ys = (jnp.asarray(ids[begin + shift : cut - 1 + shift]) for shift in (0, 1))
    carry, _ = read(params, model.initial_carry(params, ()), xs, ys)
    return carry
