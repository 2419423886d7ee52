# SPDX-License-Identifier: Apache-2.0
"""Trains each variant once for each seed or fold, and keeps what is finished."""

import contextlib
import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax

from experiments.study import kept
from experiments.study.files import read_json, write_json
from experiments.study.task import Evaluator, Variant
from experiments.study.typed import build
from seqjax import training
from seqjax.base import Params

RESULT = "result.json"
"""Written last: a folder that has it is finished."""
FINAL = "final"
"""Folder, beside the checkpoints, of the finished params of a task that has a `finish`."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
      replicate: its seed, or the number of its fold.
      values: the evaluator's measures after the last step; none if it diverged.
      steps: that it was trained for, or after which it was given up.
      parameters: how many numbers the model has.
      seconds: by the clock, compilation and evaluation included, over all its parts.
      milliseconds: a training step's median without compilation; None where none was timed.
      skipped: steps whose loss or gradient was not finite.
      diverged: too many of them in a row, and training was given up.
    """

    replicate: int
    values: Mapping[str, float]
    steps: int
    parameters: int
    seconds: float
    milliseconds: float | None
    skipped: int
    diverged: bool

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        return build(cls, fields)


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant with the outcomes of all its replicates."""

    variant: Variant
    outcomes: Sequence[Outcome]

    def values(self, measure: str) -> list[float]:
        """The measure of every run that did not diverge, and of which it is a number."""
        found = [outcome.values[measure] for outcome in self.outcomes if not outcome.diverged]
        return [value for value in found if math.isfinite(value)]

    def diverged(self, measure: str) -> int:
        """How many of its runs did, or ended with a measure that is not a number."""
        return len(self.outcomes) - len(self.values(measure))

    def mean(self, measure: str) -> float:
        """Its mean; NaN where all diverged."""
        return statistics.fmean(self.values(measure)) if self.values(measure) else math.nan

    def spread(self, measure: str) -> float:
        """Its sample standard deviation; NaN for less than two runs."""
        return statistics.stdev(self.values(measure)) if len(self.values(measure)) > 1 else math.nan


def run(
    variants: Sequence[Variant],
    replicates: Sequence[int],
    run_dir: pathlib.Path,
    *,
    config: Mapping[str, Any],
    evaluate_every: int | None = None,
    checkpoint_every: int | None = 1000,
    log_every: int = 1,
    told: Callable[[str], None] = print,
) -> list[Row]:
    """Trains what is not trained yet, all variants on the first replicate, then all on the next.

    Each run has the folder `run_dir / variant / replicate` with metrics, checkpoints and, at its end,
    its result. A call that is interrupted or killed is made again to go on, bit for bit.

    Args:
      variants: with names of their own.
      replicates: seeds of params and batches, and the argument of each variant's `task`.
      run_dir: of the study.
      config: anything JSON can hold, kept with every checkpoint.
      evaluate_every, checkpoint_every, log_every: in steps, see `training.fit`; of rows that have no own.
      told: is told of every run that ends.

    Returns:
      A row for each variant.

    Raises:
      ValueError: two variants of one name; a folder that holds another run, or a damaged file.
      OSError: a folder that cannot be written.
    """
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"variants must have names of their own, got {', '.join(names)}.")
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for replicate in replicates:
        for variant in variants:
            folder = run_dir / variant.name / str(replicate)
            found = finished(folder, variant.steps)
            if found is None:
                found = _train(
                    variant,
                    replicate,
                    folder,
                    config=config,
                    evaluate_every=evaluate_every,
                    checkpoint_every=checkpoint_every,
                    log_every=log_every,
                )
                told(f"{variant.name}, {replicate}: {_told(found, variant.task(replicate).metric)}")
            outcomes[variant.name].append(found)
    return [Row(variant, outcomes[variant.name]) for variant in variants]


def finished(folder: pathlib.Path, steps: int) -> Outcome | None:
    """The outcome of a run that was trained for `steps`, or None where that is still to be done.

    Raises:
      ValueError: a result that is not what `run` wrote.
    """
    try:
        return read_json(
            folder / RESULT,
            lambda saved: Outcome.from_json(saved["outcome"]) if saved["steps"] == steps else None,
        )
    except FileNotFoundError:
        return None


def partial(variants: Sequence[Variant], replicates: Sequence[int], run_dir: pathlib.Path) -> list[Row]:
    """The rows of what is finished so far."""
    rows = []
    for variant in variants:
        found = [finished(run_dir / variant.name / str(r), variant.steps) for r in replicates]
        rows.append(Row(variant, [outcome for outcome in found if outcome is not None]))
    return [row for row in rows if row.outcomes]


def _train(
    variant: Variant, replicate: int, folder: pathlib.Path, *, config: Mapping[str, Any], **every: Any
) -> Outcome:
    task = variant.task(replicate)
    (folder / RESULT).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    clock = folder / "seconds.json"  # of the parts that ended before
    before = read_json(clock, float) if clock.exists() else 0.0
    began = time.monotonic()
    diverged, milliseconds = False, math.nan
    finish = task.finish and task.finish(variant.model)
    try:
        trained = training.fit(
            variant.model,
            task.make_batch,
            steps=variant.steps,
            loss=task.loss,
            optimizer=variant.optimizer,
            seed=replicate,
            run_dir=folder,
            resume=True,
            stateful=task.stateful,
            evaluate=_after(finish, task.evaluator(variant.model)),
            config={**config, "variant": variant.name, "replicate": replicate},
            types=variant.types,
            **{**every, **variant.every},
        )
        if finish:
            _keep_finished(variant, folder, trained.state._replace(params=finish(trained.state.params)))
        milliseconds = 1e3 * trained.seconds_per_step
    except FloatingPointError:
        diverged = True
    finally:
        seconds = before + time.monotonic() - began
        with contextlib.suppress(OSError):  # an error that is on its way says more
            write_json(clock, seconds)
    history = training.read_metrics(folder / "metrics.jsonl")
    if not history:
        raise ValueError(f"{folder} has lost its metrics; delete it to train this run again.")
    outcome = Outcome(
        replicate=replicate,
        values={} if diverged else _measures(history[-1]),
        steps=history[-1]["step"],
        parameters=sum(leaf.size for leaf in jax.tree.leaves(training.load(folder, types=variant.types).params)),
        seconds=seconds,
        milliseconds=None if math.isnan(milliseconds) else milliseconds,
        skipped=history[-1]["skipped_steps"],
        diverged=diverged,
    )
    kept.keep(folder, task.make_batch(replicate, outcome.steps - 1), task.loss)  # of the last step
    result = {"steps": variant.steps, "model": repr(variant.model), "outcome": dataclasses.asdict(outcome)}
    write_json(folder / RESULT, result)
    return outcome


def _after(finish: Callable[[Params], Params] | None, evaluate: Evaluator) -> Evaluator:
    return evaluate if finish is None else lambda params: evaluate(finish(params))


def _keep_finished(variant: Variant, folder: pathlib.Path, state: training.TrainState) -> None:
    """Saves the finished state as a checkpoint of its own, unless a run that was killed later has done so."""
    if training.latest_step(folder / FINAL) == int(state.step):
        return
    known = training.read_manifest(folder)
    inputs = jax.ShapeDtypeStruct(tuple(known["inputs"]["shape"]), known["inputs"]["dtype"])
    options = {"model": variant.model, "metadata": known["metadata"], "types": variant.types}
    training.save(folder / FINAL, state, inputs=inputs, keep=1, **options)


def _measures(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line; what was not finite is NaN again."""
    numbers = {name: value for name, value in line.items() if name != "step" and not isinstance(value, bool)}
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def _told(outcome: Outcome, metric: str) -> str:
    if outcome.diverged:
        return f"diverged, given up after step {outcome.steps}"
    return f"{metric} {outcome.values[metric]:.4g}, {outcome.seconds:.0f} s"
