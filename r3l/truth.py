"""The truth recorder: what a simulated robot knows of its world, in a file of its own that training never opens."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r3l.robot import Truth

COMMIT_EVERY = 100


class TruthRecorder:
    """Writes ground truth per control period; the simulated robot calls `record` through its `on_period`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("CREATE TABLE IF NOT EXISTS truth (time_s REAL NOT NULL, value TEXT NOT NULL)")
        self._connection.execute("BEGIN")
        self._pending = 0

    def record(self, time_s: float, truth: Truth) -> None:
        """Keep the truth at the robot's time."""
        self._connection.execute("INSERT INTO truth VALUES (?, ?)", (time_s, json.dumps(truth)))
        self._pending += 1
        if self._pending >= COMMIT_EVERY:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")
            self._pending = 0

    def close(self) -> None:
        """Write what is pending."""
        self._connection.execute("COMMIT")
        self._connection.close()


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
