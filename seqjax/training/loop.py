# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, a trained state and its history out, and no finished work is lost.

A batch is a pure function of (seed, step), and so are a step's random numbers: a run that was
interrupted or killed continues bit for bit.
"""

import contextlib
import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqjax import require
from seqjax.base import Layer, Params
from seqjax.layers.inner import check_layers
from seqjax.training.batch import Batch, as_batch
from seqjax.training.description import Types
from seqjax.training.losses import CALL, Loss
from seqjax.training.optimizers import check_optimizer
from seqjax.training.records import Line, as_line
from seqjax.training.rundir import Journal, RunDir
from seqjax.training.state import TrainState, init_state
from seqjax.training.step import METRICS, make_train_step


class Run(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: after the last step.
      history: the lines of `metrics.jsonl`, including those of earlier parts of a resumed run.
      seconds_per_step: median over the lines logged here, excluding compilation, batches, evaluation and
        checkpoints; NaN for fewer than two lines.
    """

    state: TrainState
    history: list[Line]
    seconds_per_step: float


def fit(
    model: Layer,
    make_batch: Callable[[int, int], Batch],
    *,
    steps: int,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    params: Params | None = None,
    run_dir: str | Path | None = None,
    resume: bool | int = False,
    stateful: bool = False,
    evaluate: Callable[[Params], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = 1000,
    keep: int = 3,
    log_every: int = 1,
    give_up_after: int = 20,
    config: Mapping[str, Any] | None = None,
    types: Types = (),
    progress: bool = True,
) -> Run:
    """Trains `model` for `steps` steps.

    A step that is not finite is skipped and counted (see `make_train_step`). With a `run_dir`, Ctrl-C and
    SIGTERM save a checkpoint after the current step and then end the process; a second one ends it at once. If
    anything else raises, such as `make_batch` or `evaluate`, the work done before it is saved too.

    Args:
      model: any layer.
      make_batch: a pure function `make_batch(seed, t)` that returns the `Batch` of step t = 0, 1, ..., or a
        tuple of its fields.
      steps: number of steps in all, including those before a resume.
      loss: `loss(predictions, targets, mask) -> scalar`.
      optimizer: any optax transformation; clip with `clipped`.
      seed: for params, batches and the model's random numbers.
      params: params to start from, instead of `model.init`.
      run_dir: where `metrics.jsonl` and checkpoints go; None keeps nothing.
      resume: True continues from the newest checkpoint, or starts a run if there is none yet. A number goes
        back to that step; later checkpoints are renamed, not deleted. A warning says if lines are missing.
      stateful: batches are consecutive windows of long sequences (see `windows`), and the model continues
        from its last carry: truncated backpropagation through time, in the memory of one window.
      evaluate: `evaluate(params) -> {name: number}`, which joins the line of its step.
      evaluate_every: in steps; it also runs after the last step. None: only then. If it raised,
        a resume runs it again.
      checkpoint_every: in steps; one is also written before the first and after the last step. None: only
        these. A kill loses at most this many steps.
      keep: how many checkpoints to keep.
      log_every: write a line of metrics every so many steps, and after the last. Only then does the host
        wait for the device.
      give_up_after: stop after this many skipped steps in a row; checked only when a line is due.
      config: anything that JSON can hold, saved with every checkpoint.
      types: your own classes in the model; see `describe`.
      progress: whether to show a progress bar, if stderr is a terminal.

    Returns:
      The trained state, the history, and the time per step.

    Raises:
      ValueError: invalid options, a run_dir that holds another run or is being trained in, a damaged or
        foreign checkpoint, or an evaluation that does not return numbers by name.
      OSError: run_dir cannot be written or has no room, which is found out before anything is trained; or
        a later checkpoint could not be written, in which case those before it are whole.
      FloatingPointError: `give_up_after` steps in a row were skipped; the params before them are saved.

    >>> import seqjax
    >>> from seqjax.training import mean_squared_error
    >>> def make_batch(seed, t):
    ...     key = jax.random.fold_in(jax.random.key(seed), t)
    ...     xs = jax.random.normal(key, (10, 8, 1), jnp.float32)
    ...     return Batch(xs, jnp.roll(xs, 1, axis=0))
    >>> model = seqjax.Serial(seqjax.RNN(seqjax.Simple(8)), seqjax.Dense(1))
    >>> run = fit(model, make_batch, steps=3, loss=mean_squared_error, optimizer=optax.adam(1e-2))
    >>> [line["step"] for line in run.history]
    [1, 2, 3]
    """
    check_layers("fit", model)
    check_optimizer("fit", optimizer)
    require.functions("fit", make_batch=(make_batch, "make_batch(seed, t) -> Batch"), loss=(loss, CALL))
    if evaluate is not None:
        require.functions("fit", evaluate=(evaluate, "evaluate(params) -> {name: number}"))
    require.positive("fit", steps=steps, keep=keep, log_every=log_every, give_up_after=give_up_after)
    require.positive_if_given("fit", evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    require.whole("fit", seed=seed)
    require.whole("fit", resume=resume)
    seed, resume = int(seed), resume if isinstance(resume, bool) else int(resume)
    if resume is not False and run_dir is None:
        raise ValueError(f"fit: resume={resume!r} continues the run in run_dir; give run_dir, or leave resume out.")

    init_key, step_key = jax.random.split(jax.random.key(seed))
    inputs = jax.eval_shape(jnp.asarray, as_batch(make_batch(seed, 0)).xs)
    params = model.init(init_key, inputs) if params is None else params
    carry = model.initial_carry(params, model.batch_shape(inputs)) if stateful else ()
    state = init_state(params, optimizer, carry)
    # nothing else refers to this state, so it may be overwritten
    train_step = make_train_step(model, loss, optimizer, stateful=stateful, donate=True)

    journal = Journal()
    durations: list[float] = []
    busy, timed = 0.0, 0
    received: list[int] = []
    with contextlib.ExitStack() as stack:
        if run_dir is not None:
            run = RunDir(run_dir, model, inputs, seed=seed, config=config, keep=keep, types=types)
            state, journal = stack.enter_context(run.begin(state, resume, steps))
            received = stack.enter_context(_signals())
        done = int(state.step)
        show = stack.enter_context(_bar(steps, done, progress))

        @stack.push
        def save_on_error(kind: type[BaseException] | None, *_: object) -> None:
            # a step that failed halfway may have taken the state with it
            lost = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            if kind is not None and issubclass(kind, Exception) and not lost:
                journal.save(state)

        def evaluated(line: Line) -> Line:
            if evaluate is None or not (line["step"] == steps or _due(line["step"], evaluate_every)):
                return line
            # A copy, as the next step overwrites the params and the caller may keep these.
            return _join(line, evaluate(jax.tree.map(jnp.copy, state.params)))

        before = journal.history[-1] if journal.history else {}
        if before.get("step") == done and before.keys() == {"step", *METRICS}:
            line = evaluated(before)  # this step's evaluation was not requested then, or raised
            if line is not before:
                journal.replace_last(line)

        for t in range(done, steps):
            done = t + 1
            last = done == steps
            logging = last or _due(done, evaluate_every) or _due(done, log_every)

            batch = as_batch(make_batch(seed, t))
            began = time.perf_counter()
            state, metrics = train_step(state, batch, step_key)
            if logging:
                metrics, skipped_in_row = jax.device_get((metrics, state.skipped_in_row))
            busy, timed = busy + time.perf_counter() - began, timed + 1

            if logging:
                durations.append(busy / timed)
                busy, timed = 0.0, 0
                line = as_line(done, metrics)
                try:
                    line = evaluated(line)
                finally:  # whatever evaluate does, the step gets its line
                    journal.write(line)
                    show(line)
                if skipped_in_row >= give_up_after:
                    raise FloatingPointError(
                        f"{skipped_in_row} steps in a row, up to step {done}, were not finite and were skipped; "
                        f"look at make_batch({seed}, {t}), clip, or lower the learning rate."
                        + (f" The params before them are saved in {run_dir}." if run_dir is not None else "")
                    )

            leaving = bool(received)  # read once: a signal that arrives during the save waits for the next step
            if last or leaving or _due(done, checkpoint_every):
                journal.save(state)
            if leaving or (last and received):
                _leave(received[0], f"Stopped after step {done}, which is saved in {run_dir}; resume=True goes on.")
    return Run(state, journal.history, statistics.median(durations[1:]) if len(durations) > 1 else math.nan)


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _join(line: Line, evaluation: Mapping[str, float]) -> Line:
    if not isinstance(evaluation, Mapping):
        raise ValueError(f"evaluate must return {{name: number}}, got {evaluation!r}.")
    twice = set(line) & set(evaluation)
    if twice:
        raise ValueError(f"evaluate returned {sorted(twice)}, names that the training metrics have; use others.")
    return {**line, **as_line(line["step"], evaluation)}


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which Ctrl-C or SIGTERM is appended instead of ending the process; a second one does end it."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        received.append(number)
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _leave(number: int, message: str) -> None:
    print(message, file=sys.stderr)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _bar(steps: int, done: int, progress: bool) -> Iterator[Callable[[Line], None]]:
    """A function that shows a line of metrics in a progress bar."""
    if not progress or not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=done)

        def show(line: Line) -> None:
            shown = (f"{name} {value:.4g}" for name, value in line.items() if isinstance(value, float))
            bar.update(task, completed=line["step"], description="  ".join(shown))

        yield show
