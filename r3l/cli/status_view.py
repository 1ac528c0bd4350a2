"""The content of a run directory at one moment, read without the run's lock; no damaged file makes reading fail."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from r3l.config.errors import UserError
from r3l.run.directory import Run
from r3l.run.jsonl import read_tail
from r3l.run.state import MAX_EVENT_BYTES, Record, RunState, newest_rows, run_state, steps_in
from r3l.task.base import Task
from r3l.task.registry import load_task
from r3l.training.shared_status import SLOTS, SharedStatus

RECENT_S, RECENT_ROWS = 10.0, 400
"""Seconds and rows from which the rate of env steps is taken."""
MAX_TAIL_BYTES = 1 << 18
"""Bytes read from the end of metrics.jsonl and of evaluations.jsonl."""


@dataclass(frozen=True)
class RunView:
    """A run directory at one moment; a file that is missing, torn or of another r3l reads as empty."""

    run: Run
    time_s: float
    """Wall clock, seconds since 1970."""
    state: RunState
    shared: dict[str, float]
    """The shared status by slot, of the newest supervisor."""
    rows: list[Record]
    """The newest rows of the experience store without their images, newest first."""
    events: list[Record]
    metrics: list[Record]
    evaluations: list[Record]
    task: Task | None

    @property
    def live(self) -> dict[str, float]:
        """The shared status, if its supervisor runs now; otherwise empty."""
        pid = self.state.pid
        return self.shared if pid is not None and self.shared.get("supervisor.pid") == pid else {}

    @property
    def steps(self) -> int | None:
        """Env steps taken, by the shared status or by the store."""
        if self.live.get("actor.steps"):
            return int(self.live["actor.steps"])
        return steps_in(self.rows[0]) if self.rows else None

    @property
    def steps_per_s(self) -> float | None:
        """Env steps per second in the last seconds, moves home and pauses included; None if no process runs."""
        if self.state.pid is None or not self.rows:
            return None
        span_s = min(RECENT_S, self.time_s - float(self.rows[-1]["written_s"]))
        ages_s = [self.time_s - float(row["written_s"]) for row in self.rows if row["step"] > 0]
        return sum(age_s < RECENT_S for age_s in ages_s) / max(span_s, 0.1)

    def newest(self, name: str, records: Sequence[Record] | None = None) -> tuple[float | None, float | None]:
        """Return step and value of the newest record that has the number `name`; `records` are the metrics if None."""
        for record in reversed(self.metrics if records is None else records):
            value = _number(record.get(name))
            if value is not None:
                return _number(record.get("step")), value
        return None, None


def read_view(run: Run) -> RunView:
    """Read what a run directory says now."""
    return RunView(
        run=run,
        time_s=time.time(),
        state=run_state(run),
        shared=_shared(run.shared),
        rows=newest_rows(run.experience, RECENT_ROWS),
        events=read_tail(run.events, MAX_EVENT_BYTES),
        metrics=read_tail(run.metrics, MAX_TAIL_BYTES),
        evaluations=read_tail(run.evaluations, MAX_TAIL_BYTES),
        task=_task(run.config.task),
    )


def _shared(path: Path) -> dict[str, float]:
    try:
        shared = SharedStatus(path, writable=False)
    except (OSError, ValueError):
        return {}
    values = {slot: shared[slot] for slot in SLOTS}
    return {slot: value for slot, value in values.items() if math.isfinite(value)}


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
