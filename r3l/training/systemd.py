"""Notification of systemd: that a run is ready, how it is, that it still makes progress."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

SHARE_OF_WATCHDOG = 0.25
"""Progress is told at most this often, as a share of the time after which systemd takes a silent service for hung."""
STATUS_EVERY_S = 1.0


class Notifier:
    """Tells systemd what it asked to know when it started this process; without systemd it does nothing.

    Never blocks and never raises: a supervisor that cannot tell how it is goes on all the same.

    Source: sd_notify(3), sd_watchdog_enabled(3).
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._told_s = self._status_s = float("-inf")
        self.watchdog_s = _watchdog_s(environ)
        """Seconds of silence after which systemd takes this process for hung; None: it does not look."""

    def ready(self, status: str) -> None:
        """Say that the service is up, and how it is."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Say how the service is, for `systemctl status`: once a second, or the socket would be full."""
        now = self._clock()
        if now - self._status_s >= STATUS_EVERY_S:
            self._status_s = now
            self._send(_status(text))

    def progress(self) -> None:
        """Say that the service got on with its work; call it only when it really did, as often as that is."""
        now = self._clock()
        if self.watchdog_s is not None and now - self._told_s >= SHARE_OF_WATCHDOG * self.watchdog_s:
            self._told_s = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service is about to end: systemd kills what is left of it TimeoutStopSec later."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)


def _address(text: str) -> str | None:
    """Return the socket's address: a path, or a name in the abstract namespace, which is written with an @."""
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
