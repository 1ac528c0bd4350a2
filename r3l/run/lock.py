"""The lock of a run directory, which keeps a second process out of it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from r3l.config.errors import UserError

WAIT_S = 0.5
"""Max time that a process waits for readers of the lock before it takes the lock."""


@contextmanager
def hold_lock(folder: Path) -> Iterator[int]:
    """Hold a run's lock and yield its descriptor; UserError names the process that holds the lock already.

    The system frees the lock when this process and all that inherited the descriptor are gone, however they ended.
    """
    try:
        file = _open(folder, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"{folder / 'lock'} cannot be opened ({error.strerror}); remove it") from error
    with file:
        until_s = time.monotonic() + WAIT_S
        while not _try(file, fcntl.LOCK_EX):
            if time.monotonic() > until_s:
                raise _in_use(folder, _pid(file))
            time.sleep(0.01)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def lock_holder(folder: Path) -> int | None:
    """Return the process that took a run's lock, 0 if its number is unknown; None if the lock is free.

    The process may be gone, and one that inherited the lock be left. The system offers no query for such a lock.
    So this function shares the lock for a moment, which keeps no other reader out, and which `hold_lock` waits out.
    """
    try:
        with _open(folder, os.O_RDONLY) as file:
            return None if _try(file, fcntl.LOCK_SH) else _pid(file)
    except OSError:
        return None


def require_free(folder: Path) -> None:
    """Raise UserError if a process holds a run's lock."""
    pid = lock_holder(folder)
    if pid is not None:
        raise _in_use(folder, pid)


def _open(folder: Path, flags: int) -> IO[str]:
    """Open the file of the lock, and never what a link of that name leads to."""
    descriptor = os.open(folder / "lock", flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    return open(descriptor, "r+" if flags & os.O_RDWR else "r")


def _try(file: IO[str], operation: int) -> bool:
    """Return whether the lock was taken at once."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(file: IO[str]) -> int:
    """Return the process that the file names, 0 if the file holds anything else."""
    try:
        return int(file.read(32))
    except ValueError:
        return 0


def _in_use(folder: Path, pid: int) -> UserError:
    return UserError(f"{folder} is in use by process {pid or 'unknown'}; stop it, or wait for it")
