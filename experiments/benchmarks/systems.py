# SPDX-License-Identifier: Apache-2.0
"""A recurrent layer as something that can be timed and checked, on JAX or on PyTorch."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import seqjax
from experiments.benchmarks import measure
from seqjax.base import Array, Engine, Params
from seqjax.engines import Auto, Scan

ENGINES = {"seqjax Auto()": Auto(), "seqjax Scan()": Scan(), "seqjax Scan(adjoint=False)": Scan(adjoint=False)}


class Task(NamedTuple):
    """What is to be computed: a cell with weights, over a batch of sequences."""

    cell: seqjax.Simple | seqjax.LSTM | seqjax.GRU
    params: Any
    xs: np.ndarray  # [T, B, D]


def in_float32(task: Task) -> Task:
    """The same numbers, computed in float32."""
    cell = dataclasses.replace(task.cell, dtypes=seqjax.DTypes())
    return Task(cell, jax.tree.map(lambda a: a.astype("float32"), task.params), task.xs.astype("float32"))


class Programs(NamedTuple):
    """What is timed: functions without arguments."""

    forward: Callable[[], Any]
    step: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


class System(Protocol):
    """A library's layer on a task."""

    def programs(self) -> Programs: ...

    def outputs(self, result: Any) -> np.ndarray:
        """`[T, B, H]` from what `forward` gave."""
        ...

    def gradients(self, result: Any) -> Params:
        """The cell's params from what `step` gave; `None` where the library has no such weight."""
        ...


@dataclasses.dataclass(frozen=True)
class OnJax:
    """A layer as a function of its own params and inputs, which JAX compiles."""

    apply: Callable[[Any, Any], Array]
    params: Any
    xs: Array
    read: Callable[[Any], Params]
    """From gradients in the library's layout to the cell's."""
    batch_major: bool = False

    def programs(self) -> Programs:
        """Compiled; the time is that of the training step, from tracing on."""

        def loss(params: Any, xs: Array) -> Array:
            return jnp.sum(jnp.square(self.apply(params, xs).astype("float32")))

        forward = jax.jit(self.apply).lower(self.params, self.xs).compile()
        jax.clear_caches()
        start = time.perf_counter()
        step = jax.jit(jax.value_and_grad(loss)).lower(self.params, self.xs).compile()
        seconds = time.perf_counter() - start
        run, train = (functools.partial(program, self.params, self.xs) for program in (forward, step))
        return Programs(run, train, seconds, measure.temporary_bytes(step))

    def over(self, devices: int) -> "OnJax":
        """The same with the batch spread over so many devices, if they divide it."""
        batch_axis = 0 if self.batch_major else 1
        if self.xs.shape[batch_axis] % devices:
            return self
        mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
        specs = PartitionSpec(), PartitionSpec(*(None,) * batch_axis, "batch")
        whole, split = (NamedSharding(mesh, spec) for spec in specs)
        return dataclasses.replace(self, params=jax.device_put(self.params, whole), xs=jax.device_put(self.xs, split))

    def outputs(self, result: Any) -> np.ndarray:
        ys = np.asarray(result, "float32")
        return ys.swapaxes(0, 1) if self.batch_major else ys

    def gradients(self, result: Any) -> Params:
        return self.read(result[1])


def of_seqjax(engine: Engine, task: Task) -> OnJax:
    """A seqjax layer; the same as any user's."""
    model = seqjax.RNN(task.cell, engine)

    def apply(params: Params, xs: Array) -> Array:
        return model.apply(params, model.initial_carry(params, xs.shape[1:-1]), xs)[1]

    return OnJax(apply, task.params, jnp.asarray(task.xs), lambda gradients: gradients)


@dataclasses.dataclass(frozen=True)
class OnTorch:
    """PyTorch's `nn.RNN`, `nn.LSTM` or `nn.GRU`; compiled by nobody, its memory is not told."""

    module: Any
    xs: Any
    kind: str

    def programs(self) -> Programs:
        import torch

        parameters = list(self.module.parameters())

        def forward() -> Any:
            with torch.inference_mode():
                return self.module(self.xs)[0]

        def step() -> Any:
            loss = self.module(self.xs)[0].float().square().sum()
            return loss.detach(), torch.autograd.grad(loss, parameters)

        return Programs(forward, step)

    def outputs(self, result: Any) -> np.ndarray:
        return result.float().numpy()

    def gradients(self, result: Any) -> Params:
        from seqjax.interop.torch import from_state_dict

        names = [name for name, _ in self.module.named_parameters()]
        state = dict(zip(names, result[1], strict=True))
        if self.kind != "gru":  # two biases that are added: each has the whole gradient
            state["bias_hh_l0"] = 0 * state["bias_hh_l0"]
        return from_state_dict(state, self.kind)[1]
