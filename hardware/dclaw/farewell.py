"""A farewell: what is done when this process is told to end, or simply ends, before a robot was closed."""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from r3l.robot import RobotError

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
ENDING = (signal.SIGINT, *SIGNALS)


class Farewell:
    """Calls `close` at the process's end. SIGTERM and SIGHUP end it in order, where nobody else handles them.

    Python lets only the main thread handle signals: who connects a robot in another one has no farewell but the end of
    the program. Each farewell knows the one before it, so that several robots are all closed.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._before: dict[int, Any] = {}
        self._is_armed = False

    def arm(self) -> None:
        """Begin to listen; safe to call twice."""
        if self._is_armed:
            return
        self._is_armed = True
        atexit.register(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is signal.SIG_DFL or isinstance(getattr(before, "__self__", None), Farewell):
                    self._before[number] = before
                    signal.signal(number, self._end)

    def disarm(self) -> None:
        """Listen no longer; safe to call twice."""
        self._is_armed = False
        atexit.unregister(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) == self._end:
                    signal.signal(number, before)
            self._before.clear()

    def _at_exit(self) -> None:
        with contextlib.suppress(RobotError):
            self._close()

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Close this robot and those armed before, then end: a thread that drives one may not hold that up."""
        before = self._before.get(number)
        if self._is_armed:
            self._at_exit()
        if callable(before):
            before(number, frame)
        sys.exit(128 + number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep signals that end a process waiting: a second one must not break off what the first one began."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
