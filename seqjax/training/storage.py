# SPDX-License-Identifier: Apache-2.0
"""A directory of named arrays and a manifest, which appears whole or not at all.

All that `checkpoint` knows about files. A name that starts with a dot is not a checkpoint: `.100.new`
is being written, `.100.old` removed. Those that a killed process left behind are removed by the next write.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "seqjax checkpoint 1"
MANIFEST = "manifest.json"
STATE = "state"


def write(directory: Path, name: str, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> Path:
    """Writes `directory/name`, which must not exist.

    Raises:
      OSError: it could not be written; any partial output is removed again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for pattern in (".*.new", ".*.old"):
        for stale in directory.glob(pattern):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = directory / f".{name}.new"
    try:
        temporary.mkdir()
        # orbax reports a full disk with pages of tracebacks from its threads; this fails in one line.
        reserve(temporary, sum(array.nbytes for array in arrays.values()), 1)
        _write_arrays(temporary / STATE, arrays)
        files = {
            str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        content = as_read({"format": FORMAT, **manifest, "files": files})
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        final = temporary.rename(directory / name)
        _sync(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def as_read(content: Any) -> Any:
    """What JSON makes of `content`: all keys are strings.

    Raises:
      ValueError: two keys become the same.
      TypeError: something that JSON cannot hold.

    >>> as_read({2: (0.1,), None: 1})
    {'2': [0.1], 'null': 1}
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"keys that are the same in JSON, among {', '.join(repr(key) for key, _ in pairs)}")
        return dict(pairs)

    return json.loads(json.dumps(content), object_pairs_hook=distinct)


def check(path: Path) -> dict[str, Any]:
    """The manifest, once every file has been compared with it.

    Raises:
      ValueError: the directory is not a checkpoint, or is truncated or corrupt.
    """
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not a checkpoint of seqjax: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / MANIFEST} is corrupt: it cannot be read ({error}).") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is not a checkpoint of seqjax: its {MANIFEST} is something else.")
    if content["format"] != FORMAT:
        raise ValueError(f"{path} is a {content['format']!r}, this version of seqjax reads {FORMAT!r}.")
    if content.pop("sha256", None) != _digest(content):
        raise ValueError(f"{path / MANIFEST} is corrupt: its sha256 is not the one it was saved with.")
    for name, saved in content["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{path} is truncated: {name} is missing.")
        if file.stat().st_size != saved["bytes"]:
            raise ValueError(f"{path} is truncated: {name} has {file.stat().st_size} bytes of {saved['bytes']}.")
        if _sha256(file) != saved["sha256"]:
            raise ValueError(f"{path} is corrupt: the sha256 of {name} is not the one it was saved with.")
    return content


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint that has been checked."""
    import orbax.checkpoint as ocp

    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
        return checkpointer.restore(path / STATE)


def remove(path: Path) -> None:
    """Removes a checkpoint; if killed in the middle, it leaves no partial one behind."""
    doomed = path.rename(path.with_name(f".{path.name}.old"))
    shutil.rmtree(doomed, ignore_errors=True)


def reserve(directory: Path, size: int, copies: int) -> None:
    """Allocates `copies` files of `size` bytes and frees them again.

    Raises:
      OSError: there is no room, or the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probes = directory / ".probe.new"
    shutil.rmtree(probes, ignore_errors=True)
    try:
        probes.mkdir()
        for i in range(copies):
            with (probes / str(i)).open("wb") as file:
                _allocate(file.fileno(), size)
    finally:
        shutil.rmtree(probes, ignore_errors=True)


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, max(size, 1))
        return
    block = bytes(2**20)
    for start in range(0, size, len(block)):
        os.write(file, block[: size - start])


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    try:
        with _silent("absl"), contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))
    except OSError:
        raise
    except Exception as error:  # a full disk comes out of tensorstore as a ValueError
        raise OSError(errno.EIO, str(error)) from error


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Silences a logger: what it logs in here is also raised, and reported there."""
    logger = logging.getLogger(name)
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Makes a file, or the names in a directory, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
