"""The experience store: what the robot saw, felt and did, one row per observation, in one SQLite file."""

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
"""A power cut loses the rows of so long at most, and of the commit at hand."""
TALLY_EVERY = 1000
"""Rows after which a count of them is kept, so that nobody need count them all."""
READ_BYTES = 1 << 22
"""Images read at once: between two reads no transaction is open, else the write-ahead log could not be reset."""
MAX_NUMBERS = 1024
"""In a vector of a row."""
MAX_SEQUENCE = 1 << 53
PHASES = ("exploration", "task", "perturbation")
KINDS = (int, int, int, bytes, bytes, bytes, bytes, bytes, float)
"""Of the columns of a row, from segment to time_s."""
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
    """The experience store cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Row:
    """One observation, and the action that led to it (at step 0 of a segment: none, zeros)."""

    segment: int
    step: int
    phase: int
    """Index into PHASES: who chose the action."""
    image: Image
    """[H, W, 3] uint8."""
    proprioception: FloatArray
    """[A] float32: measured joint positions in units of their range."""
    requested: FloatArray
    """[A] float32 in [-1, 1]: what the policy asked for; agents learn on this."""
    applied: FloatArray
    """[A] float32 in [-1, 1]: what safety let through."""
    diagnostic: FloatArray
    """[D] float32: ground truth, empty but in diagnostic runs."""
    time_s: float
    """The robot's clock."""
    sequence: int = 0
    """Assigned by the store, from 1."""


class Tally(NamedTuple):
    """A count of the rows up to and with sequence number `last`."""

    last: int = 0
    rows: int = 0
    steps: int = 0
    """Of those, how many an action led to."""


class ExperienceStore:
    """Append-only rows. One writer; readers follow by sequence number.

    A transition joins two consecutive steps of one segment. A row is acknowledged when `append` returns: it survives
    the death of the process at once. Of the rows that a power cut may take, the oldest was acknowledged at most
    FULL_SYNC_EVERY_S before the newest; `sync` leaves it none.
    """

    def __init__(self, path: Path, image_shape: tuple[int, int, int], *, readonly: bool = False) -> None:
        """Open or create the store for images of `image_shape` (H, W, 3); `readonly` creates and changes no row.

        Raises:
            StoreError: the file cannot be used, or is no experience store of this version.
        """
        self._image_shape, self._path, self._is_readonly = image_shape, path, readonly
        self._log = path.resolve().with_name(path.resolve().name + "-wal")
        self._sizes: tuple[int, ...] = ()
        # A process that was killed, or a sync that failed, may have left rows that are not on the disk yet.
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
        """Distrust what is there, since it may be from anywhere; then create what is missing."""
        connection = self._connection
        most = math.prod(self._image_shape) + 5 * 4 * MAX_NUMBERS
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most)  # a larger row is an error before it takes any memory
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
        """Commit a row and return its sequence number; after a StoreError it was, as a rule, not committed.

        The exception: SQLite failed behind the commit. `newest_labels` tells, once the store is opened again.
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
        """Return the next rows, none only at the end."""
        query = (
            "SELECT sequence, segment, step, phase, image, proprioception, requested, applied, diagnostic, time_s "
            "FROM observation WHERE sequence > ? ORDER BY sequence LIMIT ?"
        )
        found: list[Row] = []
        with self._described(), closing(self._connection.cursor()) as cursor:
            try:
                for values in cursor.execute(query, (after, most)):
                    found.append(self._parsed(values[0], values[1:]))
            except sqlite3.DataError as error:  # for its size SQLite refused one of the rows that follow
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
        """Return the bytes of a row's image and vectors where they may be those of every row to come."""
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
        found = self._newest()
        return (found[0], found[1]) if found else (0, -1)

    def newest_labels(self) -> tuple[int, int] | None:
        """Return the newest row's segment and step; None in an empty store."""
        found = self._newest()
        return (found[1], found[2]) if found else None

    def _newest(self) -> tuple[int, int, int] | None:
        with self._described():
            query = "SELECT sequence, segment, step FROM observation ORDER BY sequence DESC LIMIT 1"
            found: tuple[int, int, int] | None = self._connection.execute(query).fetchone()
        if found and not all(isinstance(each, int) and 0 <= each <= MAX_SEQUENCE for each in found):
            raise self._malformed(found[0], "a label is not a number")
        return found

    def steps(self) -> int:
        """Return the number of env steps taken: rows that an action led to."""
        return self._tally().steps

    def count(self, upto: int) -> int:
        """Return the number of rows with a sequence number of at most `upto`."""
        kept = self._kept_tally()
        if kept.last == kept.rows and upto <= kept.last:  # none is missing
            return max(upto, 0)
        since, before = (kept.last, kept.rows) if upto >= kept.last else (0, 0)
        with self._described():
            query = "SELECT COUNT(*) FROM observation WHERE sequence > ? AND sequence <= ?"
            return before + int(self._connection.execute(query, (since, upto)).fetchone()[0])

    def _tally(self) -> Tally:
        """Return the tally of all rows: the one that is kept, and what came since."""
        kept = self._kept_tally()
        query = "SELECT MAX(sequence), COUNT(*), SUM(step > 0) FROM observation WHERE sequence > ?"
        with self._described():
            last, rows, steps = self._connection.execute(query, (kept.last,)).fetchone()
        return Tally(last or kept.last, kept.rows + rows, kept.steps + (steps or 0))

    def _kept_tally(self) -> Tally:
        """Return the tally that was kept last; an empty one where there is none that can be right."""
        meta = self._meta()
        kept = Tally(*(meta.get(f"tally_{name}", 0) for name in Tally._fields))
        is_possible = all(isinstance(each, int) for each in kept) and 0 <= kept.steps <= kept.rows <= kept.last
        return kept if is_possible and kept.last <= self.last()[0] else Tally()

    def _keep_tally(self) -> None:
        """Keep the tally of rows that are committed, so that they need not be counted again."""
        tally = self._tally()._asdict()
        values = [each for name, value in tally.items() for each in (f"tally_{name}", value)]
        with self._described():
            self._connection.execute("REPLACE INTO meta VALUES (?, ?), (?, ?), (?, ?)", values)
        self._untallied = 0

    def _meta(self) -> dict[str, Any]:
        with self._described():
            return dict(self._connection.execute("SELECT key, value FROM meta LIMIT 16").fetchall())

    def unsynced_s(self) -> float:
        """Return how long ago the oldest row was committed that may not be on the disk; 0 where all are."""
        return 0.0 if self._unsynced_since_s is None else time.monotonic() - self._unsynced_since_s

    def sync(self) -> None:
        """Bring every committed row to the disk; nothing to do where all are there."""
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
    """Raise ValueError where a row is none that a store for images of `image_shape` can hold."""
    if row.image.shape != image_shape or row.image.dtype != np.uint8:
        raise ValueError(f"image is {row.image.dtype} {row.image.shape}, expected uint8 {image_shape}")
    sizes = [vector.size for vector in (row.proprioception, row.requested, row.applied, row.diagnostic)]
    if max(sizes) > MAX_NUMBERS:
        raise ValueError(f"vectors have {sizes} numbers, expected at most {MAX_NUMBERS}")


def schema_of(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    """Return kind, name and definition of everything in a database; of more than ours, a part."""
    query = "SELECT type, name, sql FROM sqlite_schema ORDER BY name LIMIT 16"
    found: list[tuple[str, str, str | None]] = connection.execute(query).fetchall()
    return found
