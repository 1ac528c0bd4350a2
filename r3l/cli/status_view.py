"""A look at a run: what its directory says at one moment, read without disturbing it and without ever failing."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3l.config.errors import UserError
from r3l.run import files
from r3l.run.directory import Run
from r3l.task.base import Task
from r3l.task.registry import load_task
from r3l.training.shared_status import SLOTS, SharedStatus

Record = dict[str, Any]
RECENT_S, RECENT_ROWS = 10.0, 400
"""What counts as recent for the rate of env steps."""
TAIL_BYTES, EVENT_BYTES = 1 << 18, 1 << 22
"""How much of the end of a file of JSON lines is read, and of the events: more than a year has."""
COLUMNS = ("sequence", "segment", "step", "phase", "written_s")


@dataclass(frozen=True)
class RunView:
    """What a run directory says at one moment; what is missing, torn or of another r3l is empty."""

    run: Run
    time_s: float
    """Wall clock, seconds since 1970."""
    pid: int | None
    """The process that holds the run's lock."""
    shared: dict[str, float]
    rows: list[Record]
    """The newest rows of the experience store without what they saw, newest first."""
    events: list[Record]
    metrics: list[Record]
    evaluations: list[Record]
    task: Task | None

    @property
    def live(self) -> dict[str, float]:
        """The board, where it is that of the process that runs now."""
        is_its_own = self.pid is not None and self.shared.get("supervisor.pid") == self.pid
        return self.shared if is_its_own else {}

    @property
    def steps(self) -> int | None:
        """Env steps taken: those on the board, or all rows but the first of each segment."""
        if self.live.get("actor.steps"):
            return int(self.live["actor.steps"])
        return int(self.rows[0]["sequence"] - self.rows[0]["segment"] - 1) if self.rows else None

    @property
    def steps_per_s(self) -> float | None:
        """Env steps per second in the last seconds, moves home and pauses included; None where nothing runs."""
        if self.pid is None or not self.rows:
            return None
        span_s = min(RECENT_S, self.time_s - float(self.rows[-1]["written_s"]))
        ages = [self.time_s - float(row["written_s"]) for row in self.rows if row["step"] > 0]
        return sum(age < RECENT_S for age in ages) / max(span_s, 0.1)

    def newest(self, name: str, records: Sequence[Record] | None = None) -> tuple[float | None, float | None]:
        """Return the step and the value of the newest record, of the metrics by default, with a number of that name."""
        for record in reversed(self.metrics if records is None else records):
            value = _number(record.get(name))
            if value is not None:
                return _number(record.get("step")), value
        return None, None


def look(run: Run) -> RunView:
    """Look at a run."""
    return RunView(
        run=run,
        time_s=time.time(),
        pid=holder(run),
        shared=_shared(run.shared),
        rows=_newest_rows(run.experience),
        events=_tail(run.events, EVENT_BYTES),
        metrics=_tail(run.metrics),
        evaluations=_tail(run.evaluations),
        task=_task(run.config.task),
    )


def holder(run: Run) -> int | None:
    """Return the process that took the run's lock and lives, None when there is none."""
    try:
        pid = int(files.read(run.folder / "lock", files.MAX_LINE_BYTES))
    except (OSError, ValueError):
        return None
    if not Path(f"/proc/{pid}").exists():
        return None
    try:
        # 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return pid
    # Another process may have its number by now, but hardly a lock besides.
    return pid if any("FLOCK" in words and str(pid) in words for words in locks) else None


def _shared(path: Path) -> dict[str, float]:
    try:
        shared = SharedStatus(path, writable=False)
    except (OSError, ValueError):
        return {}
    values = {slot: shared[slot] for slot in SLOTS}
    return {slot: value for slot, value in values.items() if math.isfinite(value)}


def _newest_rows(path: Path) -> list[Record]:
    if not path.exists():
        return []
    # A store that nobody has open is read so that no file is made beside it.
    is_closed = not path.with_name(path.name + "-wal").exists()
    address = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_closed else ''}"
    query = f"SELECT {', '.join(COLUMNS)} FROM observation ORDER BY sequence DESC LIMIT {RECENT_ROWS}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=0.2)) as connection:
            rows = connection.execute(query).fetchall()
    except sqlite3.Error:
        return []
    records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return [record for record in records if all(_number(value) is not None for value in record.values())]


def _tail(path: Path, most: int = TAIL_BYTES) -> list[Record]:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - most, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def _task(name: str) -> Task | None:
    try:
        return load_task(name)
    except (UserError, OSError):
        return None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            return value if math.isfinite(value) else None
    return None
