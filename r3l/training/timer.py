"""A cadence in wall-clock time."""

from __future__ import annotations

import time


class Timer:
    """Is due once every `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._due_s = every_s, time.monotonic() + every_s

    def is_due(self) -> bool:
        """Return whether the time has passed; if so, the next interval starts."""
        now = time.monotonic()
        if now < self._due_s:
            return False
        self._due_s = now + self._every_s
        return True

    def restart(self, seconds: float | None = None) -> None:
        """Be due after `seconds`, or after a whole interval."""
        self._due_s = time.monotonic() + (self._every_s if seconds is None else seconds)
