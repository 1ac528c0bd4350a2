"""The state of a run: one answer for `r3l status`, the report and programs, read without the run's lock."""

from __future__ import annotations

import math
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3l.config.schema import MANY
from r3l.run.jsonl import read_tail
from r3l.run.lock import lock_holder
from r3l.run.sqlite import open_readonly

if TYPE_CHECKING:
    from r3l.run.directory import Run

Record = dict[str, Any]
MAX_EVENT_BYTES = 1 << 22
"""Bytes read from the end of events.jsonl: more than a year of events."""
ROW_COLUMNS = ("sequence", "segment", "step", "phase", "written_s")
DAY_S = 86_400.0


class Word(StrEnum):
    """The state of a run in a word."""

    NOT_STARTED = "not started"
    RUNNING = "running"
    FINISHED = "finished"
    """All env steps are taken."""
    ENDED = "ended"
    """The time of --hours or --until was up."""
    STOPPED = "stopped"
    """People stopped it."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Its process is gone and wrote no event about its end."""


ENDS = {"end": Word.ENDED, "stop": Word.STOPPED, "failed": Word.FAILED}
"""Kinds of events that end a run."""


@dataclass(frozen=True)
class RunState:
    """The state of a run for people and for programs."""

    word: Word
    sentence: str
    """The state in a sentence, with the next command."""
    reason: str | None
    """Why a run failed: the text of its event."""
    plan: str
    """When the run ends: "of 3,000", "until Fri 07:30" or "until stopped"."""
    steps: int | None
    """Env steps stored; None if the store has no row."""
    pid: int | None
    """The process that holds the run's lock."""

    @property
    def is_running(self) -> bool:
        """Whether the run goes on."""
        return self.word is Word.RUNNING


def run_state(run: Run) -> RunState:
    """Read the state of a run."""
    pid, steps, last = living_holder(run.folder), _stored_steps(run), _last_start_or_end(run)
    word = _word(run, last, pid, steps)
    reason = str(last.get("message", "")) if word is Word.FAILED else None
    plan = planned_end(run.config.steps, run.deadline())
    return RunState(word, _sentence(run, word, reason, plan, steps), reason, plan, steps, pid)


def planned_end(steps: int, deadline_epoch_s: float | None) -> str:
    """Say when a run ends by its number of steps and by its deadline."""
    ends = [f"of {steps:,}"] if steps < MANY else []
    ends += [f"until {moment(deadline_epoch_s)}"] if deadline_epoch_s is not None else []
    return " or ".join(ends) or "until stopped"


def moment(epoch_s: float) -> str:
    """Return weekday and time of a moment of this week, date and time of any other."""
    is_near = abs(epoch_s - time.time()) < 6 * DAY_S
    return time.strftime("%a %H:%M" if is_near else "%Y-%m-%d %H:%M", time.localtime(epoch_s))


def wall_s(events: Sequence[Record], written_s: Sequence[float], now_s: float | None) -> float | None:
    """Return the seconds for which a run ran, without the pauses between an end and the next start.

    Args:
        events: all events of the run.
        written_s: ascending times at which its rows were stored; a start without an end lasted until the last of them.
        now_s: the time, where the run is running.

    Returns:
        Seconds; None if no event says when the run started.
    """
    total_s, began_s, seen_s = 0.0, None, None
    for event in events:
        at_s = event_epoch_s(event)
        if at_s is None:
            continue
        if began_s is not None and seen_s is not None and event.get("kind") in ("start", *ENDS):
            ended_s = at_s if event["kind"] in ENDS else max(seen_s, _last_before(written_s, at_s, began_s))
            total_s += ended_s - began_s
            began_s = None
        if event.get("kind") == "start":
            began_s = at_s
        seen_s = at_s
    if began_s is not None and seen_s is not None:
        last_s = max([seen_s, *written_s[-1:]]) if now_s is None else now_s
        total_s += last_s - began_s
    return None if seen_s is None else total_s


def event_epoch_s(event: Record) -> float | None:
    """Return the time of an event in seconds since 1970; None if it is unreadable."""
    with suppress(ValueError, OverflowError):
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    return None


def living_holder(folder: Path) -> int | None:
    """Return the living process that holds a run's lock; None if there is none."""
    pid = lock_holder(folder)
    return pid if pid and Path(f"/proc/{pid}").exists() else None


def newest_rows(store: Path, count: int) -> list[Record]:
    """Return the newest rows of an experience store without images and vectors, newest first; none if unreadable."""
    if not store.exists():
        return []
    # `immutable`: SQLite makes no file beside a store that no process has open.
    is_closed = not store.with_name(store.name + "-wal").exists()
    query = f"SELECT {', '.join(ROW_COLUMNS)} FROM observation ORDER BY sequence DESC LIMIT {count}"
    try:
        with closing(open_readonly(store, is_closed=is_closed, timeout_s=0.2)) as connection:
            rows = connection.execute(query).fetchall()
    except sqlite3.Error:
        return []
    return [dict(zip(ROW_COLUMNS, row, strict=True)) for row in rows if all(map(_is_number, row))]


def steps_in(newest: Record) -> int:
    """Return the env steps up to a row: all rows but the first of each segment."""
    return int(newest["sequence"] - newest["segment"] - 1)


def _is_number(value: object) -> bool:
    with suppress(OverflowError):
        return isinstance(value, int | float) and math.isfinite(value)
    return False


def _stored_steps(run: Run) -> int | None:
    rows = newest_rows(run.experience, 1)
    return steps_in(rows[0]) if rows else None


def _last_start_or_end(run: Run) -> Record:
    events = reversed(read_tail(run.events, MAX_EVENT_BYTES))
    return next((event for event in events if event.get("kind") in ("start", *ENDS)), {})


def _word(run: Run, last: Record, pid: int | None, steps: int | None) -> Word:
    end = ENDS.get(str(last.get("kind")))
    if pid is not None and (end is None or _lock_taken_after(run, last)):
        return Word.RUNNING
    if end is Word.ENDED:
        return Word.FINISHED if steps is not None and steps >= run.config.steps else Word.ENDED
    return end or (Word.INTERRUPTED if last or steps else Word.NOT_STARTED)


def _lock_taken_after(run: Run, end: Record) -> bool:
    """Return whether the lock's holder took it after a run's end: it is about to resume the run."""
    with suppress(OSError):
        return (run.folder / "lock").stat().st_mtime // 1 > (event_epoch_s(end) or 0.0)
    return False


def _sentence(run: Run, word: Word, reason: str | None, plan: str, steps: int | None) -> str:
    deadline = run.deadline()
    is_over = deadline is not None and deadline <= time.time()
    resume = f"r3l train --resume {run.folder}{' --hours 8' if is_over else ''}"
    at = f"at step {steps or 0:,}" + (f" {plan}" if plan.startswith("of") else f", {plan}")
    match word:
        case Word.NOT_STARTED:
            return "No env step is taken yet."
        case Word.RUNNING:
            return f"It is running, {at}."
        case Word.FINISHED:
            return f"All {run.config.steps:,} env steps are taken. Next: r3l evaluate {run.folder}"
        case Word.ENDED:
            when = f" ({moment(deadline)})" if deadline is not None else ""
            return f"Its time was up{when} at step {steps or 0:,}. Next: r3l evaluate {run.folder}; resume: {resume}"
        case Word.STOPPED:
            return f"It was stopped {at}. Resume: {resume}"
        case Word.FAILED:
            return f"It failed: {reason}. Remove the cause, then: {resume}"
        case Word.INTERRUPTED:
            return f"Its process is gone without an end event, {at}. Resume: {resume}"


def _last_before(written_s: Sequence[float], until_s: float, default_s: float) -> float:
    at = bisect_left(written_s, until_s)
    return max(float(written_s[at - 1]), default_s) if at else default_s
