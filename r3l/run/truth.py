"""Ground truth of a simulated robot, in a file that the robot writes and training never reads."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r3l.robot.base import Truth
from r3l.run.sqlite import open_readonly

COMMIT_EVERY = 100


class TruthRecorder:
    """Writes ground truth per control period; the simulated robot calls `record` through its `on_period`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.execute("PRAGMA synchronous=OFF")  # a run must not wait for the disk because of the truth
        with self._connection:
            self._connection.execute("CREATE TABLE IF NOT EXISTS truth (time_s REAL NOT NULL, value TEXT NOT NULL)")
        self._pending: list[tuple[float, str]] = []

    def record(self, time_s: float, truth: Truth) -> None:
        """Keep the truth at the robot's time; on a full disk the truth is lost, and the run goes on."""
        self._pending.append((time_s, json.dumps(truth)))
        if len(self._pending) >= COMMIT_EVERY:
            self._write()

    def close(self) -> None:
        """Write the pending truth, and close the file."""
        self._write()
        self._connection.close()

    def _write(self) -> None:
        with suppress(sqlite3.OperationalError), self._connection:
            self._connection.executemany("INSERT INTO truth VALUES (?, ?)", self._pending)
        self._pending.clear()


def read_truth(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return recorded truth as columns by name, `time_s` among them: only for evaluation and reports.

    After a resume from an older world the robot's clock goes back: of rows with the same time the last is returned.
    """
    with closing(open_readonly(path)) as connection:
        rows = dict(connection.execute("SELECT time_s, value FROM truth ORDER BY rowid").fetchall())
    times = sorted(rows)
    values = [json.loads(rows[time]) for time in times]
    columns = {name: np.array([value[name] for value in values]) for name in (values[0] if values else ())}
    return {"time_s": np.array(times)} | columns
