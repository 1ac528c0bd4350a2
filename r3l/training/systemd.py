"""Notification of systemd: the run is ready, its status, its progress, its end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

WATCHDOG_SHARE = 0.25
"""Min time between two reports of progress, as a share of the time after which systemd calls a service hung."""
STATUS_EVERY_S = 1.0


class Notifier:
    """Notifies systemd if it started this process; else does nothing.

    It never blocks and never raises: the supervisor goes on without systemd.

    Source: sd_notify(3), sd_watchdog_enabled(3).
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._progress_s = self._status_s = float("-inf")
        self.watchdog_s = _watchdog_s(environ)
        """Seconds without a report after which systemd calls this process hung; None if it has no watchdog."""

    def ready(self, status: str) -> None:
        """Report that the service is up, and its status."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Report the status for `systemctl status`, at most once per STATUS_EVERY_S: a socket can fill up."""
        now = self._clock()
        if now - self._status_s >= STATUS_EVERY_S:
            self._status_s = now
            self._send(_status(text))

    def progress(self) -> None:
        """Report progress. Call this after every piece of work, and never without work."""
        now = self._clock()
        if self.watchdog_s is not None and now - self._progress_s >= WATCHDOG_SHARE * self.watchdog_s:
            self._progress_s = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Report that the service is ending: systemd kills what is left of it after TimeoutStopSec."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)


def _address(text: str) -> str | None:
    """Return the address of the socket: a path, or after an @ a name in the abstract namespace."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    try:
        interval_us = int(environ.get("WATCHDOG_USEC", "0"))
        pid = int(environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return interval_us / 1e6 if interval_us > 0 and pid == os.getpid() else None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
