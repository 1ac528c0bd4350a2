"""The experience store: what the robot saw, felt and did, one row per observation, in one SQLite file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r3l.robot import FloatArray, Image

SCHEMA_VERSION = 1
FULL_SYNC_EVERY_S = 1.0
PHASES = ("exploration", "task", "perturbation")
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


class StoreError(RuntimeError):
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


class ExperienceStore:
    """Append-only rows. One writer; readers follow by sequence number.

    A transition joins two consecutive steps of one segment. A row is acknowledged when `append` returns: it survives
    the death of the process at once and a power cut after at most FULL_SYNC_EVERY_S seconds.
    """

    def __init__(self, path: Path, image_shape: tuple[int, int, int]) -> None:
        """Open or create the store for images of `image_shape` (H, W, 3)."""
        self._image_shape = image_shape
        self._path = path
        with self._described():
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            version = f"INSERT OR IGNORE INTO meta VALUES ('schema_version', {SCHEMA_VERSION});"
            self._connection.executescript("BEGIN IMMEDIATE;" + SCHEMA + version + "COMMIT;")
            found = self._connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
        if found[0] != SCHEMA_VERSION:
            self._connection.close()
            raise StoreError(f"{path} has schema {found[0]}, expected {SCHEMA_VERSION}; use the r3l it is from")
        self._synced_s = time.monotonic()

    @contextmanager
    def _described(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"experience store {self._path} cannot be used ({error}); free the disk, or restore it from a copy"
            ) from error

    def append(self, row: Row) -> int:
        """Commit a row and return its sequence number."""
        if row.image.shape != self._image_shape or row.image.dtype != np.uint8:
            raise ValueError(f"image is {row.image.dtype} {row.image.shape}, expected uint8 {self._image_shape}")
        now = time.monotonic()
        full = now - self._synced_s >= FULL_SYNC_EVERY_S
        values = (row.segment, row.step, row.phase, row.image.tobytes())
        vectors = (row.proprioception, row.requested, row.applied, row.diagnostic)
        with self._described():
            if full:
                self._connection.execute("PRAGMA synchronous=FULL")
            cursor = self._connection.execute(
                "INSERT INTO observation VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, *(np.asarray(v, np.float32).tobytes() for v in vectors), row.time_s, time.time()),
            )
            if full:
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._synced_s = now
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def rows(self, after: int = 0, limit: int = -1) -> Iterator[Row]:
        """Yield rows with a sequence number above `after`, in order, at most `limit` of them."""
        query = (
            "SELECT segment, step, phase, image, proprioception, requested, applied, diagnostic, time_s, sequence "
            "FROM observation WHERE sequence > ? ORDER BY sequence LIMIT ?"
        )
        with self._described():
            for *numbers, image, p, r, a, d, time_s, sequence in self._connection.execute(query, (after, limit)):
                pixels = np.frombuffer(image, np.uint8).reshape(self._image_shape)
                p, r, a, d = (np.frombuffer(vector, np.float32) for vector in (p, r, a, d))
                segment, step, phase = numbers
                yield Row(segment, step, phase, pixels, p, r, a, d, time_s, sequence)

    def last(self) -> tuple[int, int]:
        """Return the newest row's sequence and segment; (0, -1) in an empty store."""
        with self._described():
            found = self._connection.execute(
                "SELECT sequence, segment FROM observation ORDER BY sequence DESC LIMIT 1"
            ).fetchone()
        return (int(found[0]), int(found[1])) if found else (0, -1)

    def steps(self) -> int:
        """Return the number of env steps taken: rows that an action led to."""
        with self._described():
            return int(self._connection.execute("SELECT COUNT(*) FROM observation WHERE step > 0").fetchone()[0])

    def close(self) -> None:
        """Sync everything to the disk and close."""
        try:
            with self._described():
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._connection.close()
