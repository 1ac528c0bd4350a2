"""A farewell: what is done when this process is told to end, or simply ends, before a robot was closed."""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from r3l.robot import RobotError

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Farewell:
    """Calls `close` at the process's end. SIGTERM and SIGHUP end it in order, where nobody else handles them."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._handled: list[signal.Signals] = []

    def arm(self) -> None:
        """Begin to listen; safe to call twice."""
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._end)
                    self._handled.append(number)

    def disarm(self) -> None:
        """Listen no longer; safe to call twice."""
        atexit.unregister(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            while self._handled:
                signal.signal(self._handled.pop(), signal.SIG_DFL)

    def _at_exit(self) -> None:
        with contextlib.suppress(RobotError):
            self._close()

    def _end(self, number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)
