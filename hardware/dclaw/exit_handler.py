"""The exit handler: closes a robot that is still open when the process ends."""

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


class ExitHandler:
    """Calls `close` when the process ends. SIGTERM and SIGHUP end the process in order if no other handler is set.

    Python handles signals in the main thread alone: a robot that another thread connects is closed at the program's end
    only. Each handler calls the handler before it, so that several robots are all closed.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._before: dict[int, Any] = {}
        self._is_armed = False

    def arm(self) -> None:
        """Install the handlers; safe to call twice."""
        if self._is_armed:
            return
        self._is_armed = True
        atexit.register(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is signal.SIG_DFL or isinstance(getattr(before, "__self__", None), ExitHandler):
                    self._before[number] = before
                    signal.signal(number, self._end)

    def disarm(self) -> None:
        """Remove the handlers; safe to call twice."""
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
        """Close this robot and those armed before, then end, whatever a thread that drives a robot does."""
        before = self._before.get(number)
        if self._is_armed:
            self._at_exit()
        if callable(before):
            before(number, frame)
        sys.exit(128 + number)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals that end the process: a second signal must not interrupt the handling of the first one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
