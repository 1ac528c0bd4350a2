"""SQLite files, opened to be read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

SIBLINGS = ("", "-wal", "-shm", "-journal")
"""Suffixes of a database and of the files that SQLite keeps beside it."""


def sibling(path: Path, suffix: str) -> Path:
    """Return the path of a file that SQLite keeps beside a database."""
    return path.with_name(path.name + suffix)


def open_readonly(path: Path, *, is_closed: bool = False, timeout_s: float = 5.0) -> sqlite3.Connection:
    """Open a database for reading.

    Args:
        path: the database; sqlite3.OperationalError where it does not exist.
        is_closed: no process has the database open and it has no log, so that SQLite need not create files beside it.
        timeout_s: time to wait for another process that has the database locked.
    """
    address = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_closed else ''}"
    return sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
