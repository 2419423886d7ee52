# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are either whole or not there.

    run_dir/checkpoints/<step>/manifest.json    what it is, and the sha256 of every file
    run_dir/checkpoints/<step>/state/           the arrays by name, written by orbax

A checkpoint is written next to its final place, flushed to disk and then renamed, so that a kill
or a full disk at any moment leaves the earlier ones as they were. Before one is read, every file is
checked against the manifest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import require
from seqjax.base import Array, Layer, Params
from seqjax.training import named, storage
from seqjax.training.description import Types, build, describe
from seqjax.training.state import TrainState, check_state


class Loaded(NamedTuple):
    """A trained model, as `load` returns it.

    Attributes:
      model: built from its description.
      params: its params.
      step: the training steps done.
      metadata: what was saved with it; by `fit`, the seed, the config and the number of lines.
    """

    model: Layer
    params: Params
    step: int
    metadata: dict[str, Any]


def save(
    run_dir: str | Path,
    state: TrainState,
    *,
    model: Layer,
    inputs: Array | jax.ShapeDtypeStruct,
    metadata: Mapping[str, Any] | None = None,
    keep: int = 3,
    types: Types = (),
) -> Path:
    """Writes the checkpoint of `state.step` and removes all but the newest `keep`.

    Args:
      run_dir: where the run is kept; created if it does not exist.
      state: what to save.
      model: the model, whose description is saved beside the arrays.
      inputs: what the model was initialized for; only the shape and dtype are used.
      metadata: anything that JSON can hold.
      keep: how many checkpoints to keep, at least 1.
      types: see `describe`.

    Returns:
      The checkpoint's path.

    Raises:
      OSError: it could not be written; earlier checkpoints are untouched.
      ValueError: this step is already saved, or the model cannot be described.

    >>> import optax, seqjax, tempfile
    >>> from seqjax.training import init_state
    >>> model, xs = seqjax.Dense(1), jax.ShapeDtypeStruct((5, 2, 3), jnp.float32)
    >>> state = init_state(model.init(jax.random.key(0), xs), optax.sgd(0.1))
    >>> with tempfile.TemporaryDirectory() as run_dir:
    ...     path = save(run_dir, state, model=model, inputs=xs)
    ...     load(run_dir).model
    Dense(1)
    """
    require.positive("save", keep=keep)
    check_state("save", state)
    step = int(state.step)
    directory = _directory(run_dir)
    if (directory / str(step)).exists():
        raise ValueError(f"{directory / str(step)} exists already; a checkpoint is never overwritten.")
    manifest = {
        "step": step,
        "model": describe(model, types),
        "inputs": {"shape": list(inputs.shape), "dtype": jnp.dtype(inputs.dtype).name},
        "metadata": dict(metadata or {}),
        "arrays": named.forms(state),
    }
    try:
        path = storage.write(directory, str(step), named.arrays(state), manifest)
    except OSError as error:
        earlier = all_steps(run_dir)
        kept = (
            f"the last good checkpoint, step {earlier[-1]}, is untouched" if earlier else "nothing was saved before it"
        )
        raise OSError(
            error.errno,
            f"could not save step {step}: {error.strerror or error}; {kept}. Make room or give another run_dir",
            str(directory),
        ) from error
    for old in all_steps(run_dir)[:-keep]:
        storage.remove(directory / str(old))
    return path


def all_steps(run_dir: str | Path) -> list[int]:
    """The steps that have a checkpoint in `run_dir`, in order; whether each is whole is only known once it is read.

    >>> all_steps("no/such/run"), latest_step("no/such/run")
    ([], None)
    """
    directory = _directory(run_dir)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def latest_step(run_dir: str | Path) -> int | None:
    """The newest step that has a checkpoint in `run_dir`, or None."""
    return max(all_steps(run_dir), default=None)


def read_manifest(run_dir: str | Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint says about itself, once every file in it has been checked.

    Args:
      run_dir: where the run is kept.
      step: which checkpoint; the newest if None.

    Returns:
      `{"step", "model", "inputs", "metadata", "arrays", ...}`; `build` makes the model from its description.

    Raises:
      ValueError: there is none, or it is truncated, corrupt or not seqjax's; the message names the
        newest whole one, which is used only if you ask for it with `step`.
    """
    found = all_steps(run_dir)
    directory = _directory(run_dir)
    if not found or (step is not None and step not in found):
        wanted = "a checkpoint" if step is None else f"step {step}"
        raise ValueError(f"{directory} does not hold {wanted}; it holds {found or 'none'}. Is it the right run_dir?")
    step = found[-1] if step is None else step
    try:
        return _check(directory / str(step))
    except ValueError as error:
        whole = next((other for other in reversed(found) if other != step and _is_whole(directory / str(other))), None)
        advice = (
            f"The newest whole checkpoint is step {whole}; to continue from it, pass step={whole} "
            f"(fit: resume={whole})."
            if whole is not None
            else "No other checkpoint there is whole; start again in a new run_dir, or restore this one from a backup."
        )
        raise ValueError(f"{error} {advice}") from error


def restore(
    run_dir: str | Path, like: TrainState, *, model: Layer, step: int | None = None, types: Types = ()
) -> TrainState:
    """The saved state, which must belong to this model and have the structure of `like`.

    Args:
      run_dir: where the run is kept.
      like: a state of the same structure, shapes and dtypes, such as `init_state(...)`.
      model: the model to which the state is expected to belong.
      step: which checkpoint; the newest if None.
      types: see `describe`.

    Returns:
      The state, with the arrays as they were saved.

    Raises:
      ValueError: the checkpoint is damaged (see `read_manifest`) or foreign: of another model or
        optimizer, or of other shapes or dtypes.

    >>> import optax, seqjax, tempfile
    >>> from seqjax.training import init_state
    >>> model, xs = seqjax.Dense(1), jax.ShapeDtypeStruct((5, 2, 3), jnp.float32)
    >>> like, trained = (init_state(model.init(jax.random.key(seed), xs), optax.sgd(0.1)) for seed in (0, 1))
    >>> with tempfile.TemporaryDirectory() as run_dir:
    ...     path = save(run_dir, trained, model=model, inputs=xs)
    ...     state = restore(run_dir, like, model=model)
    >>> bool((state.params.kernel == trained.params.kernel).all())
    True
    """
    check_state("restore", like)
    manifest = read_manifest(run_dir, step)
    path = _directory(run_dir) / str(manifest["step"])
    if manifest["model"] != describe(model, types):
        raise ValueError(
            f"{path} is a checkpoint of {_printed(manifest['model'], types)}, not of {model!r}; "
            "build that model, or give another run_dir."
        )
    return _fill(path, manifest, like)


def load(run_dir: str | Path, *, step: int | None = None, types: Types = ()) -> Loaded:
    """Loads a trained model and its params, from the run directory alone.

    Args:
      run_dir: where the run is kept.
      step: which checkpoint; the newest if None.
      types: see `describe`.

    Returns:
      The model, its params, the step and the metadata.

    Raises:
      ValueError: the checkpoint is damaged (see `read_manifest`), or its model is not known here.
    """
    manifest = read_manifest(run_dir, step)
    path = _directory(run_dir) / str(manifest["step"])
    try:
        model = build(manifest["model"], types)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the model of {path} cannot be built: {error}") from error
    inputs = jax.ShapeDtypeStruct(tuple(manifest["inputs"]["shape"]), manifest["inputs"]["dtype"])
    like = {"params": jax.eval_shape(model.init, jax.random.key(0), inputs)}
    params = _fill(path, manifest, like)["params"]
    return Loaded(model, params, manifest["step"], manifest["metadata"])


def require_room(run_dir: str | Path, state: TrainState, keep: int) -> None:
    """Creates the directory and finds out, by writing, whether it has room for the run's checkpoints.

    Raises:
      OSError: it cannot be written, or does not have enough room.
    """
    size = sum(array.nbytes for array in named.arrays(state).values())
    copies = max(1, keep + 1 - len(all_steps(run_dir)))
    directory = _directory(run_dir)
    try:
        storage.reserve(directory, size, copies)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot keep {copies} checkpoints of {size / 2**20:.1f} MiB: {error.strerror}; nothing was trained. "
            "Make room or give another run_dir",
            str(directory),
        ) from error


def set_aside(run_dir: str | Path, after: int) -> list[Path]:
    """Renames the checkpoints after a step, so that a run can continue from that step; nothing is deleted."""
    moved = []
    for step in all_steps(run_dir):
        if step > after:
            path = _directory(run_dir) / str(step)
            taken = len(list(path.parent.glob(f"{step}.aside*")))
            moved.append(path.rename(path.with_name(f"{step}.aside{taken or ''}")))
    return moved


def _directory(run_dir: str | Path) -> Path:
    return Path(run_dir).absolute() / "checkpoints"


def _check(path: Path) -> dict[str, Any]:
    manifest = storage.check(path)
    if manifest["step"] != int(path.name):
        raise ValueError(f"{path} is the checkpoint of step {manifest['step']}; rename it back.")
    return manifest


def _is_whole(path: Path) -> bool:
    try:
        _check(path)
    except ValueError:
        return False
    return True


def _printed(description: Any, types: Types) -> str:
    try:
        return repr(build(description, types))
    except (TypeError, ValueError):
        return json.dumps(description)


def _fill(path: Path, manifest: dict[str, Any], like: Any) -> Any:
    """The arrays of a checkpoint in the structure of `like`, which may be only a part of the state."""
    expected = named.forms(like)
    saved = manifest["arrays"]
    if isinstance(like, dict):
        saved = {name: form for name, form in saved.items() if name.split(".")[0] in like}
    if saved != expected:
        names = [name for name in {**expected, **saved} if saved.get(name) != expected.get(name)]
        shown = "; ".join(
            f"{n}: saved {saved.get(n, 'nothing')}, expected {expected.get(n, 'nothing')}" for n in names[:3]
        )
        raise ValueError(
            f"{path} does not fit: {shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''}. "
            "It was saved with another optimizer, other inputs, other dtypes or another `stateful`; use the same, or "
            "give another run_dir."
        )
    return named.fill(like, storage.read(path))
