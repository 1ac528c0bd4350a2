"""The experience store: one row per observation, in one SQLite file."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from r3l.config.errors import ReportedError
from r3l.robot.base import FloatArray, Image

SCHEMA_VERSION = 1
FULL_SYNC_EVERY_S = 0.5
"""Max time between two syncs: a power cut loses the rows of this time, and those of the commit under way."""
TALLY_EVERY = 1000
"""Rows between two counts that are kept: only the rows after the kept count are counted again."""
READ_BYTES = 1 << 22
"""Bytes of images per read. No transaction is open between two reads, so that SQLite can reset the write-ahead log."""
MAX_NUMBERS = 1024
"""Max length of a vector in a row."""
MAX_SEQUENCE = 1 << 53
PHASES = ("exploration", "task", "perturbation")
KINDS = (int, int, int, bytes, bytes, bytes, bytes, bytes, float)
"""Types of the columns of a row, from segment to time_s."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS observation (
    sequence INTEGER PRIMARY KEY,
    segment INTEGER NOT NULL,
    step INTEGER NOT NULL,
    phase INTEGER NOT NULL,
    image BLOB NOT NULL,
    proprioception BLOB NOT NULL,
    requested BLOB NOT NULL,
    applied BLOB NOT NULL,
    diagnostic BLOB NOT NULL,
    time_s REAL NOT NULL,
    written_s REAL NOT NULL
);
"""


class StoreError(ReportedError, RuntimeError):
    """The experience store cannot be used; the message says why, and the next step."""


@dataclass(frozen=True)
class Row:
    """One observation, and the action that led to it: zeros at step 0 of a segment."""

    segment: int
    step: int
    phase: int
    """Index into PHASES: the policy that chose the action."""
    image: Image
    """[H, W, 3] uint8."""
    proprioception: FloatArray
    """[A] float32: measured joint positions in units of their range."""
    requested: FloatArray
    """[A] float32 in [-1, 1]: the action that the policy chose, which agents learn from."""
    applied: FloatArray
    """[A] float32 in [-1, 1]: the action that the robot carried out within its safety limits."""
    diagnostic: FloatArray
    """[D] float32: ground truth; empty except in diagnostic runs."""
    time_s: float
    """The robot's clock."""
    sequence: int = 0
    """Assigned by the store, from 1."""


class Tally(NamedTuple):
    """A count of the rows up to and with sequence number `last`."""

    last: int = 0
    rows: int = 0
    steps: int = 0
    """Rows among them to which an action led."""


class ExperienceStore:
    """Append-only rows. One writer; readers follow by sequence number.

    A transition joins two consecutive steps of one segment. A row is acknowledged when `append` returns: from then on
    it survives the death of the process. A power cut may take the rows that were acknowledged within the last
    FULL_SYNC_EVERY_S, and none of those before the last `sync`.
    """

    def __init__(self, path: Path, image_shape: tuple[int, int, int], *, readonly: bool = False) -> None:
        """Open or create the store for images of `image_shape` (H, W, 3); `readonly` creates and changes no row.

        Raises:
            StoreError: the file cannot be used, or is no experience store of this version.
        """
        self._image_shape, self._path, self._is_readonly = image_shape, path, readonly
        self._log = path.resolve().with_name(path.resolve().name + "-wal")
        self._sizes: tuple[int, ...] = ()
        # A killed process or a failed sync may have left rows that are not on the disk yet.
        self._unsynced_since_s: float | None = None if readonly else -math.inf
        self._untallied = TALLY_EVERY
        with self._described():
            place = f"file:{quote(str(path))}?mode={'ro' if readonly else 'rwc'}"
            self._connection = sqlite3.connect(place, uri=True, isolation_level=None)
        try:
            with self._described():
                self._prepare()
        except StoreError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        """Check the file, which may have any origin; then create the missing tables."""
        connection = self._connection
        max_bytes = math.prod(self._image_shape) + 5 * 4 * MAX_NUMBERS
        connection.setlimit(
            sqlite3.SQLITE_LIMIT_LENGTH, max_bytes
        )  # a larger row is an error before it takes any memory
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        found = schema_of(connection)
        with closing(sqlite3.connect(":memory:")) as ours:
            ours.executescript(SCHEMA)
            is_ours = found == schema_of(ours)
        if not is_ours and (found or self._is_readonly):
            raise StoreError(f"{self._path} is no experience store; restore it from a copy, or see r3l check")
        if not self._is_readonly:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            version = f"INSERT OR IGNORE INTO meta VALUES ('schema_version', {SCHEMA_VERSION});"
            connection.executescript("BEGIN IMMEDIATE;" + SCHEMA + version + "COMMIT;")
        found_version = self._meta().get("schema_version")
        if found_version != SCHEMA_VERSION:
            told = f"{self._path} has schema {found_version!r:.20}, expected {SCHEMA_VERSION}"
            raise StoreError(f"{told}; use the r3l it is from")

    @contextmanager
    def _described(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"experience store {self._path} cannot be used ({error}); free the disk, restore it from a copy, "
                "or see r3l check"
            ) from error

    def append(self, row: Row) -> int:
        """Commit a row and return its sequence number.

        Raises:
            StoreError: the row was not committed, or SQLite failed after the commit; `newest_labels` of the store,
                opened again, tells which.
        """
        require_storable(row, self._image_shape)
        if self.unsynced_s() >= FULL_SYNC_EVERY_S:
            self.sync()
        if self._untallied >= TALLY_EVERY:
            self._keep_tally()
        values = (row.segment, row.step, row.phase, row.image.tobytes())
        vectors = (row.proprioception, row.requested, row.applied, row.diagnostic)
        with self._described():
            cursor = self._connection.execute(
                "INSERT INTO observation VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, *(np.asarray(v, np.float32).tobytes() for v in vectors), row.time_s, time.time()),
            )
        self._untallied += 1
        if self._unsynced_since_s is None:
            self._unsynced_since_s = time.monotonic()
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def rows(self, after: int = 0, limit: int = -1) -> Iterator[Row]:
        """Yield rows with a sequence number above `after`, in order, at most `limit` of them.

        Raises:
            StoreError: the store cannot be read, or a row is malformed.
        """
        at_once = max(READ_BYTES // math.prod(self._image_shape), 1)
        while found := self._read(after, at_once if limit < 0 else min(at_once, limit)):
            yield from found
            after, limit = found[-1].sequence, limit - len(found)

    def _read(self, after: int, most: int) -> list[Row]:
        """Return the next rows; none at the end."""
        query = (
            "SELECT sequence, segment, step, phase, image, proprioception, requested, applied, diagnostic, time_s "
            "FROM observation WHERE sequence > ? ORDER BY sequence LIMIT ?"
        )
        found: list[Row] = []
        with self._described(), closing(self._connection.cursor()) as cursor:
            try:
                for values in cursor.execute(query, (after, most)):
                    found.append(self._parsed(values[0], values[1:]))
            except sqlite3.DataError as error:  # one of the next rows is too large for SQLite
                if most == 1:
                    at = "SELECT MIN(sequence) FROM observation WHERE sequence > ?"
                    raise self._malformed(cursor.execute(at, (after,)).fetchone()[0], str(error)) from error
                return found or self._read(after, 1)
        return found

    def _parsed(self, sequence: int, values: tuple[Any, ...]) -> Row:
        if tuple(map(type, values)) != KINDS:
            raise self._malformed(sequence, "its columns are not of the kinds of a row")
        segment, step, phase, image, *vectors, time_s = values
        if min(segment, step, phase) < 0 or max(segment, step, sequence) > MAX_SEQUENCE or phase >= len(PHASES):
            raise self._malformed(sequence, "its labels are not those of a row")
        sizes = tuple(map(len, values[3:8]))
        if sizes != self._sizes:
            self._sizes = self._required(sequence, sizes)
        pixels = np.frombuffer(image, np.uint8).reshape(self._image_shape)
        numbers, width = np.frombuffer(b"".join(vectors), np.float32), sizes[1] // 4
        proprioception, requested, applied = numbers[:width], numbers[width : 2 * width], numbers[2 * width : 3 * width]
        truth = numbers[3 * width :]
        return Row(segment, step, phase, pixels, proprioception, requested, applied, truth, time_s, sequence)

    def _required(self, sequence: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of a row's image and vectors, in bytes, if every later row may have them."""
        image, *widths = sizes
        if image != math.prod(self._image_shape):
            raise self._malformed(sequence, f"its image has {image} bytes, expected {self._image_shape}")
        expected = list(self._sizes[1:]) or widths
        if widths != expected or len({*widths[:3]}) > 1 or any(each % 4 or each > 4 * MAX_NUMBERS for each in widths):
            raise self._malformed(
                sequence, f"its vectors have {widths} bytes, expected {[widths[0]] * 3} and the truth"
            )
        return sizes

    def _malformed(self, sequence: int, fault: str) -> StoreError:
        return StoreError(f"row {sequence} of {self._path} is malformed ({fault}); mend the run with r3l check")

    def last(self) -> tuple[int, int]:
        """Return the newest row's sequence and segment; (0, -1) in an empty store."""
        sequence, segment, _ = self._newest() or (0, -1, 0)
        return sequence, segment

    def newest_labels(self) -> tuple[int, int] | None:
        """Return the newest row's segment and step; None in an empty store."""
        found = self._newest()
        return found and found[1:]

    def _newest(self) -> tuple[int, int, int] | None:
        found = self._query("SELECT sequence, segment, step FROM observation ORDER BY sequence DESC LIMIT 1")
        for sequence, segment, step in found:
            if all(isinstance(each, int) and 0 <= each <= MAX_SEQUENCE for each in (sequence, segment, step)):
                return sequence, segment, step
            raise self._malformed(sequence, "a label is not a number")
        return None

    def steps(self) -> int:
        """Return the number of env steps: rows to which an action led."""
        return self._tally().steps

    def count(self, upto: int) -> int:
        """Return the number of rows with a sequence number of at most `upto`."""
        kept = self._kept_tally()
        if kept.last == kept.rows and upto <= kept.last:  # no row is missing
            return max(upto, 0)
        since, before = (kept.last, kept.rows) if upto >= kept.last else (0, 0)
        query = "SELECT COUNT(*) FROM observation WHERE sequence > ? AND sequence <= ?"
        return before + int(self._query(query, since, upto)[0][0])

    def _tally(self) -> Tally:
        """Return the tally of all rows: the kept tally, and the rows after it."""
        kept = self._kept_tally()
        query = "SELECT MAX(sequence), COUNT(*), SUM(step > 0) FROM observation WHERE sequence > ?"
        last, rows, steps = self._query(query, kept.last)[0]
        return Tally(last or kept.last, kept.rows + rows, kept.steps + (steps or 0))

    def _kept_tally(self) -> Tally:
        """Return the newest tally that was kept; an empty one if no possible one was."""
        meta = self._meta()
        kept = Tally(*(meta.get(f"tally_{name}", 0) for name in Tally._fields))
        is_possible = all(isinstance(each, int) for each in kept) and 0 <= kept.steps <= kept.rows <= kept.last
        return kept if is_possible and kept.last <= self.last()[0] else Tally()

    def _keep_tally(self) -> None:
        """Keep the tally of the committed rows, so that they need not be counted again."""
        values = [each for name, value in self._tally()._asdict().items() for each in (f"tally_{name}", value)]
        self._query("REPLACE INTO meta VALUES (?, ?), (?, ?), (?, ?)", *values)
        self._untallied = 0

    def _meta(self) -> dict[str, Any]:
        return dict(self._query("SELECT key, value FROM meta LIMIT 16"))

    def _query(self, statement: str, *values: object) -> list[Any]:
        """Execute a statement and return its rows; StoreError where SQLite fails."""
        with self._described():
            return self._connection.execute(statement, values).fetchall()

    def unsynced_s(self) -> float:
        """Return the age of the oldest committed row that may not be on the disk; 0 if all rows are."""
        return 0.0 if self._unsynced_since_s is None else time.monotonic() - self._unsynced_since_s

    def sync(self) -> None:
        """Bring every committed row to the disk."""
        if self._unsynced_since_s is not None:
            with self._described(), self._log.open("rb") as file:
                os.fsync(file.fileno())
            self._unsynced_since_s = None

    def close(self) -> None:
        """Sync everything to the disk and close."""
        try:
            if not self._is_readonly:
                self.sync()
                with self._described():
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._connection.close()


def require_storable(row: Row, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError if a store for images of `image_shape` cannot hold a row."""
    if row.image.shape != image_shape or row.image.dtype != np.uint8:
        raise ValueError(f"image is {row.image.dtype} {row.image.shape}, expected uint8 {image_shape}")
    sizes = [vector.size for vector in (row.proprioception, row.requested, row.applied, row.diagnostic)]
    if max(sizes) > MAX_NUMBERS:
        raise ValueError(f"vectors have {sizes} numbers, expected at most {MAX_NUMBERS}")


def schema_of(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    """Return type, name and definition of the first entries in a database's schema."""
    query = "SELECT type, name, sql FROM sqlite_schema ORDER BY name LIMIT 16"
    found: list[tuple[str, str, str | None]] = connection.execute(query).fetchall()
    return found
