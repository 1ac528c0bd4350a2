"""Audit of a run's databases: whether they are whole, without a change to any file."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r3l.run.experience import PHASES, SCHEMA, SCHEMA_VERSION, schema_of
from r3l.run.files import GIB, MIB
from r3l.run.sqlite import open_readonly, sibling

Values = tuple[Any, ...]
"""A row of the store, in the order of its columns."""
UNREADABLE = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""Errors that SQLite raises for a damaged database."""
MAX_BLOB_BYTES, MAX_SCRATCH_BYTES = 64 * MIB, GIB
MAX_NUMBERS = 1 << 14
"""Numbers in a vector whose length is not known."""
MAX_LABEL_BYTES = 128
"""Bytes of a row beside its image and vectors."""


class DamagedError(Exception):
    """A file is damaged; the message says how."""


class ForeignError(Exception):
    """A file was not written by this version of R3L; the message says how it differs."""


@dataclass(frozen=True)
class Layout:
    """The sizes of a row in a run's store."""

    image_bytes: int
    joints: int | None
    """None: any number, the same in all three vectors."""
    has_diagnostic: bool
    """Whether rows hold ground truth: only those of diagnostic runs do."""

    @property
    def max_row_bytes(self) -> int:
        """Return the max size of a row."""
        vectors = 12 * (self.joints or MAX_NUMBERS) + 4 * MAX_NUMBERS * self.has_diagnostic
        return self.image_bytes + vectors + MAX_LABEL_BYTES

    def fault(self, values: Values) -> str | None:
        """Return what is wrong with a row; None for a whole row."""
        sequence, segment, step, phase, image, *vectors, time_s, written_s = values
        if not all(isinstance(each, int) for each in (sequence, segment, step, phase)):
            return "a label is not a number"
        if not (0 <= segment < sequence and 0 <= step < sequence and 0 <= phase < len(PHASES)):
            return f"its labels are segment {segment}, step {step}, phase {phase}"
        if not all(isinstance(each, bytes) for each in (image, *vectors)):
            return "an image or a vector is not a blob"
        if len(image) != self.image_bytes:
            return f"its image has {len(image)} bytes, expected {self.image_bytes}"
        *joints, diagnostic = vectors
        lengths = [len(each) for each in joints]
        if lengths != 3 * [4 * self.joints if self.joints else lengths[0] // 4 * 4]:
            return f"its vectors have {lengths} bytes, expected {4 * (self.joints or 1)} for each"
        if len(diagnostic) % 4 or bool(diagnostic) != self.has_diagnostic:
            return f"its ground truth has {len(diagnostic)} bytes"
        if not all(isinstance(each, int | float) for each in (time_s, written_s)):
            return "a time is not a number"
        numbers = np.frombuffer(b"".join(vectors), np.float32)
        if not (np.isfinite(numbers).all() and np.isfinite([time_s, written_s]).all()):
            return "a number in it is not finite"
        return None if written_s > 0 else "its end is missing"  # the time of writing is the last value of a row


@dataclass(frozen=True)
class Extent:
    """The number of rows in a store, and its newest sequence number."""

    rows: int = 0
    last: int = 0

    @property
    def missing(self) -> int:
        """Return the number of rows that are missing before the last one."""
        return self.last - self.rows


class Labels:
    """Labels rows so that no transition joins rows between which a row is missing: a new segment begins there.

    Rows without gaps keep their labels.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._now = (-1, 0)

    def of(self, sequence: int, segment: int, step: int) -> tuple[int, int]:
        """Return segment and step for the next row, in the order of sequence numbers."""
        if self._before is not None and (sequence - 1, segment, step - 1) == self._before:
            self._now = (self._now[0], self._now[1] + 1)
        else:
            self._now = (max(segment, self._now[0] + 1), 0)
        self._before = (sequence, segment, step)
        return self._now


def audit_experience(path: Path, layout: Layout) -> Extent:
    """Check every row of an experience store; return how far the store goes.

    Raises:
        DamagedError: the file, a row or the order of the rows is damaged.
        ForeignError: the file holds anything else than an experience store of this version.
    """
    if not has_content(path):
        if has_content(path, "-wal"):  # SQLite would delete the log
            raise DamagedError("it is empty, the write-ahead log beside it is not")
        return Extent()
    with open_audited(path) as connection:
        if not has_schema(connection):
            return Extent()
        require_integrity(connection)
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


def audit_database(path: Path) -> None:
    """Check a database of any schema; DamagedError says what is wrong with it."""
    if has_content(path):
        with open_audited(path) as connection:
            require_integrity(connection)


def has_content(path: Path, suffix: str = "") -> bool:
    """Return whether a database, or a file that SQLite keeps beside it, exists and is not empty."""
    path = sibling(path, suffix)
    return path.exists() and path.stat().st_size > 0


@contextmanager
def open_audited(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database of unknown content for reading; every SQLite error becomes a DamagedError."""
    try:
        with (
            unchanged(path) as place,
            closing(open_readonly(place, is_closed=not has_content(place, "-wal"))) as opened,
        ):
            opened.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BLOB_BYTES)
            opened.execute("PRAGMA trusted_schema=OFF")
            opened.execute("PRAGMA cell_size_check=ON")
            yield opened
    except UNREADABLE as error:
        raise DamagedError(f"SQLite says: {error}") from error


@contextmanager
def unchanged(path: Path) -> Iterator[Path]:
    """Yield where a database can be read so that no file of the run changes."""
    if has_content(path, "-journal"):  # SQLite first undoes the transaction that was cut off: in a copy
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("", "-journal"):
                require_size(sibling(path, suffix), MAX_SCRATCH_BYTES)
                shutil.copy(sibling(path, suffix), folder)
            copy = Path(folder, path.name)
            with closing(sqlite3.connect(copy)) as connection:
                connection.execute("PRAGMA schema_version")
            yield copy
    elif has_content(path, "-wal"):
        shared = sibling(path, "-shm")
        require_size(shared, MAX_SCRATCH_BYTES)
        before = shared.read_bytes() if shared.exists() else None
        try:
            yield path
        finally:
            if before is None:
                shared.unlink(missing_ok=True)
            else:
                shared.write_bytes(before)
    else:
        yield path


def require_size(path: Path, max_bytes: int) -> None:
    """Raise DamagedError where a file is larger than any that a run writes."""
    size = path.stat().st_size if path.exists() else 0
    if size > max_bytes:
        raise DamagedError(f"it has {size // MIB} MiB, expected at most {max_bytes // MIB} MiB")


def require_integrity(connection: sqlite3.Connection) -> None:
    """Raise DamagedError for the first fault that SQLite finds.

    quick_check is enough: integrity_check also compares indices, which the databases of a run do not have.
    """
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DamagedError(f"SQLite says: {found}")


def has_schema(connection: sqlite3.Connection) -> bool:
    """Return whether there are tables.

    Raises:
        DamagedError: a table of an experience store is missing or garbled.
        ForeignError: there is more than an experience store has, or its schema has another version.
    """
    found = schema_of(connection)
    with closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(SCHEMA)
        expected = schema_of(ours)
    known, has_more = {name for _, name, _ in expected}, len(found) > len(expected)
    foreign = [
        f"{kind} {name}" for kind, name, _ in found if kind in ("view", "trigger") or (has_more and name not in known)
    ]
    if foreign:
        raise ForeignError(f"it holds what no experience store does: {', '.join(foreign)[:200]!r}")
    if found and sorted(map(repr, found)) != sorted(map(repr, expected)):
        raise DamagedError("its tables are not those of an experience store")
    if found:
        versions = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
        if versions != [(SCHEMA_VERSION,)]:
            raise ForeignError(f"it has schema {versions}, expected {SCHEMA_VERSION}; use the r3l it is from")
    return bool(found)
