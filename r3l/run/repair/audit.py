"""Audit: whether a database of a run is sound, found out without changing a byte of it or beside it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from r3l.run.experience import SCHEMA, SCHEMA_VERSION, schema_of
from r3l.run.repair.recover import Extent, Labels, Layout, rows

SIBLINGS = ("", "-wal", "-shm", "-journal")
"""What SQLite keeps beside a database: together or not at all."""
MAX_BLOB_BYTES = 1 << 26
MAX_SCRATCH_BYTES = 1 << 30


class DamagedError(Exception):
    """A file is not what it should be; the message says in what way."""


class ForeignError(Exception):
    """A file is not this program's; the message says in what way."""


def audit_experience(path: Path, layout: Layout) -> Extent:
    """Look at every row of an experience store.

    Raises:
        DamagedError: the file, a row or the order of the rows is damaged.
        ForeignError: the file holds what no experience store does.
    """
    if not has_content(path):
        if has_content(path, "-wal"):  # SQLite would delete it
            raise DamagedError("it is empty, the write-ahead log beside it is not")
        return Extent()
    with opened(path) as connection:
        if not require_schema(connection):
            return Extent()
        require_integrity(connection)
        found = audit_rows(connection, layout)
    if has_content(path, "-wal"):
        # A log that is damaged in the middle is read up to there, and what follows is passed over in silence.
        more = sum(values[0] > found.last for values in rows(path, layout))
        if more:
            raise DamagedError(f"its write-ahead log is damaged before its last {more} rows")
    return found


def audit_whole(path: Path, layout: Layout) -> Extent:
    """Return what `salvage` would save."""
    sequences = [values[0] for values in rows(path, layout)]
    return Extent(len(sequences), sequences[-1]) if sequences else Extent()


def audit_database(path: Path) -> None:
    """Look at a database of any schema; DamagedError where it is damaged."""
    if has_content(path):
        with opened(path) as connection:
            require_integrity(connection)


def has_content(path: Path, sibling: str = "") -> bool:
    """Return whether a database, or what SQLite keeps beside it, is there and not empty."""
    path = path.with_name(path.name + sibling)
    return path.exists() and path.stat().st_size > 0


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database to be read, not knowing what is in it; DamagedError for whatever SQLite finds wrong with it."""
    with unchanged(path) as place:
        try:
            with closing(sqlite3.connect(place, uri=True)) as connection:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BLOB_BYTES)
                connection.execute("PRAGMA trusted_schema=OFF")
                connection.execute("PRAGMA cell_size_check=ON")
                yield connection
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise DamagedError(f"SQLite says: {error}") from error


@contextmanager
def unchanged(path: Path) -> Iterator[str]:
    """Yield the URI under which a database can be read so that nothing changes on the disk."""
    place = f"file:{quote(str(path))}?mode=ro"
    if has_content(path, "-journal"):  # SQLite would first undo what was cut off: in a copy
        with tempfile.TemporaryDirectory() as folder:
            for sibling in ("", "-journal"):
                source = path.with_name(path.name + sibling)
                require_size(source, MAX_SCRATCH_BYTES)
                shutil.copy(source, folder)
            yield f"file:{quote(folder)}/{quote(path.name)}"
    elif has_content(path, "-wal"):
        shared = path.with_name(path.name + "-shm")
        require_size(shared, MAX_SCRATCH_BYTES)
        before = shared.read_bytes() if shared.exists() else None
        try:
            yield place
        finally:
            if before is None:
                shared.unlink(missing_ok=True)
            else:
                shared.write_bytes(before)
    else:
        yield f"{place}&immutable=1"


def require_size(path: Path, most: int) -> None:
    """Raise DamagedError where a file is too large to be read at once."""
    size = path.stat().st_size if path.exists() else 0
    if size > most:
        raise DamagedError(f"it has {size >> 20} MiB, expected at most {most >> 20} MiB")


def require_integrity(connection: sqlite3.Connection) -> None:
    """Raise DamagedError for the first thing that SQLite itself finds wrong.

    Its integrity_check would find no more, since there are no indices, and takes as long again.
    """
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DamagedError(f"SQLite says: {found}")


def require_schema(connection: sqlite3.Connection) -> bool:
    """Return whether there are tables at all.

    Raises:
        DamagedError: a table of ours is missing or garbled.
        ForeignError: there is anything beside them, or they are another version's.
    """
    found = schema_of(connection)
    with closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(SCHEMA)
        expected = schema_of(ours)
    known, has_more = {name for _, name, _ in expected}, len(found) > len(expected)
    strange = [
        f"{kind} {name}" for kind, name, _ in found if kind in ("view", "trigger") or (has_more and name not in known)
    ]
    if strange:
        raise ForeignError(f"it holds what no experience store does: {', '.join(strange)[:200]!r}")
    if found and sorted(map(repr, found)) != sorted(map(repr, expected)):
        raise DamagedError("its tables are not those of an experience store")
    if found:
        versions = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
        if versions != [(SCHEMA_VERSION,)]:
            raise ForeignError(f"it has schema {versions}, expected {SCHEMA_VERSION}; use the r3l it is from")
    return bool(found)


def audit_rows(connection: sqlite3.Connection, layout: Layout) -> Extent:
    """Look at every row; DamagedError for the first that is wrong, or that does not follow the one before."""
    labels, count, last = Labels(), 0, 0
    for values in connection.execute("SELECT * FROM observation ORDER BY sequence"):
        sequence, segment, step = values[:3]
        fault = layout.fault(values)
        if fault is not None:
            raise DamagedError(f"row {sequence} is damaged: {fault}")
        if labels.of(sequence, segment, step) != (segment, step):
            raise DamagedError(f"row {sequence} (segment {segment}, step {step}) does not follow the row before it")
        count, last = count + 1, sequence
    return Extent(count, last)
