"""The serial port of a servo bus: opened exclusively, read and written with deadlines."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import serial

from r3l.robot import RobotError

READ_BYTES = 4096
LATENCY_S = 0.016
"""Default time for which an FTDI adapter keeps a short answer."""


class PortError(RobotError):
    """A port cannot be opened, or is lost; the message names the port and the next step."""


class Port:
    """A serial port. A constructor stores, `open` does I/O; an error during use closes the port."""

    def __init__(self, path: str, baud_rate: int) -> None:
        self.path, self.baud_rate = path, baud_rate
        self.latency_s = 0.0
        """Max time for which the adapter keeps an answer."""
        self._serial: serial.Serial | None = None
        self._fd = -1
        self._poll = select.poll()

    @property
    def is_open(self) -> bool:
        """Whether the port can be used."""
        return self._fd >= 0

    def open(self) -> None:
        """Open the port exclusively; without effect on an open port.

        Raises:
            PortError: the port does not exist, another process has it open, or this user may not open it.
        """
        if self.is_open:
            return
        try:
            opened = serial.Serial(self.path, self.baud_rate, timeout=0, write_timeout=0, exclusive=True)
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
            raise PortError(self._why(error)) from error
        with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
            opened.set_low_latency_mode(True)  # a pseudo-terminal has no latency setting
        self._serial, self._fd = opened, opened.fileno()
        self._poll = select.poll()  # select knows no descriptor above 1023
        self._poll.register(self._fd)
        self.latency_s = self._latency_s()

    def close(self) -> None:
        """Close the port; safe to call twice."""
        opened, self._serial, self._fd = self._serial, None, -1
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.close()

    def write(self, data: bytes, deadline_s: float) -> None:
        """Write all bytes by a deadline of the monotonic clock.

        Raises:
            PortError: the port is lost, or accepts nothing.
        """
        while data:
            with self._lost():
                if not self._is_ready(select.POLLOUT, deadline_s):
                    raise TimeoutError("it takes no bytes")
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self._fd, data) :]

    def read(self, deadline_s: float) -> bytes:
        """Return bytes as soon as there are any; empty if none came by a deadline of the monotonic clock.

        Raises:
            PortError: the port is lost.
        """
        with self._lost():
            if not self._is_ready(select.POLLIN, deadline_s):
                return b""
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return b""
            if not data:
                raise OSError("the device is gone")
            return data

    def flush(self) -> None:
        """Discard unread bytes. PortError if the port is lost."""
        with self._lost():
            try:
                termios.tcflush(self._fd, termios.TCIFLUSH)
            except termios.error as error:
                raise OSError(str(error)) from error

    def _is_ready(self, event: int, deadline_s: float) -> bool:
        """Wait until the port can be read or written, by a deadline of the monotonic clock."""
        self._poll.modify(self._fd, event)
        return bool(self._poll.poll(max(1000 * (deadline_s - time.monotonic()), 0)))

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        if not self.is_open:
            raise PortError(f"port {self.path} is not open; plug it in")
        try:
            yield
        except OSError as error:
            self.close()
            raise PortError(f"port {self.path} is gone ({error}); check cable and power") from error

    def _why(self, error: Exception) -> str:
        """Return why a port cannot be opened, and the next step."""
        place = Path(self.path)
        if "\0" in self.path:
            return f"port {self.path!r} is no name of a file; mend the rig"
        if isinstance(error, ValueError):
            return f"port {self.path} cannot do {self.baud_rate} baud; set the baud rate of the servos"
        if not place.exists():
            found = sorted(str(each) for each in Path("/dev/serial/by-id").glob("*"))
            ports = f"there are {', '.join(found)}" if found else "no serial adapter is plugged in"
            return f"port {self.path} is not there; {ports}"
        if getattr(error, "errno", None) in {13, 1}:
            return f"port {self.path} may not be opened by this user; sudo usermod -aG dialout $USER, and log in again"
        if getattr(error, "errno", None) in {11, 16} or "exclusively lock" in str(error):
            return f"port {self.path} is in use by another process; stop that one first (fuser {self.path} names it)"
        why = " ".join(str(error).split())
        return f"port {self.path} cannot be opened ({why}); is it a serial port? ls /dev/serial/by-id lists some"

    def _latency_s(self) -> float:
        """Return the adapter's latency, s; 0 if the port is no USB adapter."""
        try:
            name = Path(os.path.realpath(self.path)).name
        except OSError:
            return LATENCY_S
        if not name.startswith("ttyUSB"):
            return 0.0
        try:
            return int(Path(f"/sys/bus/usb-serial/devices/{name}/latency_timer").read_text()) / 1000
        except (OSError, ValueError):
            return LATENCY_S
