# SPDX-License-Identifier: Apache-2.0
"""One run per directory, ensured by a lock that the kernel releases when a process ends, however it ends."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other runs out of the directory `path`, which is created if it does not exist.

    Windows and some network file systems have no such locks; there, other runs are not kept out.

    Raises:
      ValueError: another run has the lock, or there is a file of that name.
      OSError: the directory cannot be created or written.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir must be a directory, and {path} is a file; nothing was trained.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("ab")
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write in run_dir: {error.strerror}; nothing was trained", str(path)
        ) from error
    with file, _locked(file, path):
        yield


if sys.platform == "win32":

    def _locked(file: BinaryIO, path: Path) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

else:
    import fcntl

    @contextlib.contextmanager
    def _locked(file: BinaryIO, path: Path) -> Iterator[None]:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{path} is being trained in, by another process or thread; wait for it to end, or use another run_dir."
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        try:
            yield
        finally:  # a child that was forked meanwhile holds the file open
            fcntl.flock(file, fcntl.LOCK_UN)
