# SPDX-License-Identifier: Apache-2.0
"""The ways to take a training step of a recurrent layer on a GPU, each as a thunk: ours, JAX's cuDNN, PyTorch's."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import seqjax
from seqjax.base import Cell, Engine
from seqjax.engines import Checkpointed, Scan
from seqjax.engines.fused import Fused

LOOP = "lax.scan"


class Work:
    """One size: a cell with random params, inputs and the cotangent of its outputs, the same for all ways."""

    def __init__(self, cell: Any, dtype: str, B: int, T: int, H: int):
        random = np.random.default_rng(0)
        self.cell = cell
        self.params = cell.init(jax.random.key(0), H)
        self.carry = cell.initial_carry(self.params, (B,))
        self.xs, self.cotangent = (
            jnp.asarray(random.normal(size=(T, B, H)).astype("float32"), dtype) for _ in range(2)
        )


def gradient(engine: Engine, cell: Cell, params: Any, carry: Any, xs: jax.Array, cotangent: jax.Array) -> Any:
    """The gradient of every parameter."""
    return jax.vjp(lambda params: engine.run(cell, params, carry, xs)[1], params)[1](cotangent)[0]


def ways(work: Work, *, dry: bool) -> Iterator[tuple[str, Callable[[], Callable[[], Any]]]]:
    """Names, and what prepares (compiles) a thunk whose result `as_recurrent_gradient` understands.

    What prepares it raises ValueError, ImportError or RuntimeError where a way is not to be had here.
    """
    fused = Fused(interpret=dry)
    engines: dict[str, Engine] = {
        LOOP: Scan(adjoint=False),
        "Scan()": Scan(),
        "Fused()": fused,
        "Checkpointed(inner=Fused())": Checkpointed(inner=fused),
    }
    for name, engine in engines.items():
        yield name, functools.partial(by_engine, work, engine)
    yield "cuDNN in JAX", functools.partial(by_cudnn, work)
    yield "PyTorch", functools.partial(by_torch, work, dry)


def by_engine(work: Work, engine: Engine) -> Callable[[], Any]:
    step = jax.jit(functools.partial(gradient, engine, work.cell))
    arguments = work.params, work.carry, work.xs, work.cotangent
    program = step.lower(*arguments).compile()
    return lambda: program(*arguments).w_rec


def by_cudnn(work: Work) -> Callable[[], Any]:
    """`jax.experimental.rnn.lstm`, float32 alone; weights `[4*H, D]`, `[4*H, H]` and two biases in one array."""
    if not isinstance(work.cell, seqjax.LSTM) or work.xs.dtype == "bfloat16":
        raise ValueError("JAX offers cuDNN for the LSTM in float32 alone")
    if jax.default_backend() == "cpu":
        raise ValueError("cuDNN needs a GPU")
    from jax.experimental import rnn

    T, B, H = work.xs.shape
    params = work.params
    parts = params.w_in.T, params.w_rec.T, params.bias, jnp.zeros_like(params.bias)
    weights = jnp.concatenate([part.reshape(-1) for part in parts])
    lengths = jnp.full((B,), T, jnp.int32)
    state = jnp.zeros((1, B, H), jnp.float32)

    @jax.jit
    def step(weights: jax.Array, xs: jax.Array, cotangent: jax.Array) -> jax.Array:
        def outputs(weights: jax.Array) -> jax.Array:
            return rnn.lstm(xs.swapaxes(0, 1), state, state, weights, lengths, H, H, 1, 0.0, False)[0]

        return jax.vjp(outputs, weights)[1](cotangent.swapaxes(0, 1))[0]

    program = step.lower(weights, work.xs, work.cotangent).compile()
    return lambda: program(weights, work.xs, work.cotangent)


def by_torch(work: Work, dry: bool) -> Callable[[], Any]:
    """PyTorch's module, which is cuDNN on a GPU, TF32 allowed as in JAX."""
    if importlib.util.find_spec("torch") is None:
        raise ImportError("torch is not installed")
    import torch

    from seqjax.interop.torch import to_torch

    if isinstance(work.cell, seqjax.cells.MultiHead):
        raise ValueError("PyTorch has no block-diagonal recurrence")
    if not dry and not torch.cuda.is_available():
        raise RuntimeError("torch has no CUDA here")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plain = {name: getattr(work.cell, name) for name in ("reset",) if hasattr(work.cell, name)}
    cell = type(work.cell)(work.cell.hidden_dim, **plain)
    module = to_torch(seqjax.RNN(cell), work.params).to(device)
    dtype = torch.bfloat16 if work.xs.dtype == "bfloat16" else torch.float32
    module = module.to(dtype)
    module.flatten_parameters()  # cuDNN wants all weights in one piece
    xs, cotangent = (torch.tensor(np.asarray(a, "float32")).to(device, dtype) for a in (work.xs, work.cotangent))
    weights = list(module.parameters())

    def step() -> Any:
        gradients = torch.autograd.grad(module(xs)[0], weights, cotangent)
        if device == "cuda":
            torch.cuda.synchronize()
        return gradients[1]

    return step


def as_recurrent_gradient(result: Any, cell: Any) -> np.ndarray:
    """The gradient of `w_rec` that a thunk returned, in seqjax's layout and float32."""
    if isinstance(result, jax.Array) and result.ndim == 1:  # cuDNN's: [4*H, H] of the inputs, then of the states
        H = cell.hidden_dim
        return np.asarray(result)[4 * H * H : 8 * H * H].reshape(4 * H, H).T
    if isinstance(result, jax.Array):
        return np.asarray(result.astype(jnp.float32))
    array = result.detach().float().cpu().numpy().T  # PyTorch: [G*H, H]
    if isinstance(cell, seqjax.GRU):  # r, z, n there
        r, z, n = np.split(array, 3, axis=1)
        return np.concatenate([z, r, n], axis=1)
    return array
