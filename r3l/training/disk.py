"""A disk that is full: the actor waits for room, the learner tries its writes again."""

from __future__ import annotations

import time
from collections.abc import Callable

from r3l.run.directory import Run
from r3l.run.disk_space import RESERVE_BYTES, can_write, is_full, quota_bytes
from r3l.training.shared_status import State, Status, Wanted
from r3l.training.store_writer import StoreWriter
from r3l.training.timer import Timer

CHECK_EVERY_S = 1.0
MAX_UNWRITTEN = 50
"""The robot waits if more observations than this are not on the disk yet."""


def await_room(run: Run, status: Status, is_ended: Callable[[], bool]) -> None:
    """Wait until the disk takes observations, or until the run is to end."""
    while not is_ended() and status.wanted < Wanted.PARK:
        if can_write(run.folder) and not is_full(run.folder, quota_bytes(run.config)):
            return
        status["actor.state"] = State.DISK_FULL
        status.add("actor.progress")
        time.sleep(CHECK_EVERY_S)


class DiskWatch:
    """Knows whether the disk takes the observations that the actor process stores."""

    def __init__(self, run: Run, writer: StoreWriter) -> None:
        self._run, self._writer = run, writer
        self._timer = Timer(CHECK_EVERY_S)
        self._is_full = False

    @property
    def unwritten(self) -> int:
        """Observations that are not on the disk yet."""
        return self._writer.unwritten

    @property
    def problem(self) -> str | None:
        """Why the robot must wait for the disk; None if it need not."""
        if self._writer.failure is None and not self._is_full and self.unwritten <= MAX_UNWRITTEN:
            return None
        return self._writer.failure or "no room left on the disk or in the quota (quota_gib)"

    def poll(self) -> None:
        """Measure the free space once per CHECK_EVERY_S; a full disk counts as free at twice the reserve."""
        if self._timer.is_due():
            reserve = RESERVE_BYTES * (2 if self._is_full else 1)
            self._is_full = is_full(self._run.folder, quota_bytes(self._run.config), reserve_bytes=reserve)


class Writes:
    """The learner's writes. The first failure is told, and the end of all failures."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        """`tell(kind, message)` writes an event."""
        self._tell = tell
        self._failed: set[str] = set()

    def attempt(self, name: str, write: Callable[[], object]) -> bool:
        """Write; return False where the disk does not take it."""
        try:
            write()
        except OSError as error:
            if not self._failed:
                self._tell("disk", f"the learner cannot write ({error}); it tries again: free the disk")
            self._failed.add(name)
            return False
        if name in self._failed:
            self._failed.discard(name)
            if not self._failed:
                self._tell("disk", "over: the learner writes again")
        return True
