# SPDX-License-Identifier: Apache-2.0
"""How many steps a budget of seconds is worth for each model; measured once, so that a resumed run keeps it."""

import pathlib
import statistics
import time
from collections.abc import Mapping

import jax
import optax

from experiments.study.files import read_json, write_json
from experiments.study.task import Task
from seqjax import training
from seqjax.base import Layer
from seqjax.training import Batch

MEASURED = 20
"""Steps that are timed, after one that compiles."""


def steps_of(
    seconds: float, task: Task, models: Mapping[str, Layer], optimizer: optax.GradientTransformation, path: pathlib.Path
) -> dict[str, int]:
    """Steps of training, batches included, that each model does in `seconds`; at least one.

    Args:
      seconds: of a run, without compilation, evaluation and checkpoints.
      task: what is trained.
      models: by name.
      optimizer: of all.
      path: of a JSON file with what was measured; models that it has are not measured again.

    Raises:
      ValueError: a file that is not what this function wrote.
    """
    known = _read(path)
    for name, model in models.items():
        if name not in known:
            known[name] = seconds_per_step(task, model, optimizer)
            write_json(path, known)
    return {name: max(1, round(seconds / known[name])) for name in models}


def seconds_per_step(task: Task, model: Layer, optimizer: optax.GradientTransformation, count: int = MEASURED) -> float:
    """The median time of a training step and its batch, compilation left out."""
    step = training.make_train_step(model, task.loss, optimizer, stateful=task.stateful, donate=True)
    batch = Batch(*task.make_batch(0, 0))
    params = model.init(jax.random.key(0), batch.xs)
    carry = model.initial_carry(params, model.batch_shape(batch.xs)) if task.stateful else ()
    state = training.init_state(params, optimizer, carry)
    key = jax.random.key(1)
    times = []
    for index in range(count + 1):
        began = time.perf_counter()
        state, metrics = step(state, Batch(*task.make_batch(0, index)), key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _read(path: pathlib.Path) -> dict[str, float]:
    try:
        return read_json(path, lambda held: {name: float(value) for name, value in held.items()})
    except FileNotFoundError:
        return {}
