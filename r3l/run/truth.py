"""The truth recorder: what a simulated robot knows of its world, in a file of its own that training never opens."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r3l.robot.base import Truth

COMMIT_EVERY = 100


class TruthRecorder:
    """Writes ground truth per control period; the simulated robot calls `record` through its `on_period`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.execute("PRAGMA synchronous=OFF")  # nobody waits for the disk because of it
        with self._connection:
            self._connection.execute("CREATE TABLE IF NOT EXISTS truth (time_s REAL NOT NULL, value TEXT NOT NULL)")
        self._pending: list[tuple[float, str]] = []

    def record(self, time_s: float, truth: Truth) -> None:
        """Keep the truth at the robot's time; a disk that takes nothing costs truth, not the run."""
        self._pending.append((time_s, json.dumps(truth)))
        if len(self._pending) >= COMMIT_EVERY:
            self._write()

    def close(self) -> None:
        """Write what is pending."""
        self._write()
        self._connection.close()

    def _write(self) -> None:
        with suppress(sqlite3.OperationalError), self._connection:
            self._connection.executemany("INSERT INTO truth VALUES (?, ?)", self._pending)
        self._pending.clear()


def read_truth(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return recorded truth as columns by name, `time_s` among them: for evaluation and reports alone.

    After a resume from an older world the robot's clock goes back; of rows with one time the last one is returned.
    """
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = dict(connection.execute("SELECT time_s, value FROM truth ORDER BY rowid").fetchall())
    connection.close()
    times = sorted(rows)
    values = [json.loads(rows[time]) for time in times]
    columns = {name: np.array([value[name] for value in values]) for name in (values[0] if values else ())}
    return {"time_s": np.array(times)} | columns
