"""Emulated servos on a pseudo-terminal, with faults on demand: a test partner for a bus."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import time
import tty
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .control_table import BAUD_RATES
from .protocol import BROADCAST_ID, Decoder, Instruction, Packet
from .servo import Servo

IDLE_S = 0.01
"""Time between two updates of the servos without requests."""
TCGETS2 = 0x802C542A
"""Linux' request for the state of a terminal, `struct termios2`."""
MAX_S = 0.1
"""A longer time is simulated in parts."""


@dataclass
class Faults:
    """Faults of the wire; probabilities are per packet."""

    drop: float = 0.0
    """A packet is lost, in either direction."""
    corrupt: float = 0.0
    """A bit of a packet flips, in either direction."""
    duplicate: float = 0.0
    """An answer comes twice."""
    garbage: float = 0.0
    """Up to sixteen bytes of noise come before an answer."""
    late: float = 0.0
    """An answer comes `late_s` later, and so do the answers behind it."""
    late_s: float = 0.1
    echo: bool = False
    """The adapter sends back what it is sent."""
    silent: set[int] = field(default_factory=set)
    """Servos that hear everything and answer nothing."""


class Emulator:
    """Servos on a pseudo-terminal, in a thread of their own. Use as a context manager, or call `start` and `close`.

    A bus opens `port`. With `link` it is a symbolic link that stays the same when the adapter is unplugged, as
    /dev/serial/by-id does.
    """

    def __init__(
        self, servos: Sequence[Servo], *, link: Path | None = None, faults: Faults | None = None, seed: int = 0
    ) -> None:
        self.servos = {servo.id: servo for servo in servos}
        self.chain = list(servos)
        """All servos; `servos` holds one servo per id."""
        self.faults = faults or Faults()
        self.heard: deque[Packet] = deque(maxlen=4096)
        """The newest packets that arrived."""
        self.lock = threading.RLock()
        """Held while the servos change."""
        self.advances = True
        """Whether time passes for the servos."""
        self._link, self._rng = link, np.random.default_rng(seed)
        self._master = self._slave = -1
        self._port = ""
        self._later: deque[tuple[float, bytes]] = deque()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> str:
        """Path of the port."""
        return str(self._link or self._port)

    def start(self) -> None:
        """Plug the adapter in and start the servos."""
        self.plug_in()
        self._is_over.clear()
        self._thread = threading.Thread(target=self._live, name="emulator", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; safe to call twice."""
        self._is_over.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self.unplug()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_plugged_in(self) -> bool:
        """Whether there is a port."""
        return self._master >= 0

    def plug_in(self) -> None:
        """Create the port."""
        with self.lock:
            if self._master >= 0:
                return
            self._master, self._slave = os.openpty()
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            self._port = os.ttyname(self._slave)
            if self._link:
                with contextlib.suppress(FileNotFoundError):
                    self._link.unlink()
                self._link.symlink_to(self._port)

    def unplug(self) -> None:
        """Unplug the adapter: the port is lost. The servos keep their power."""
        with self.lock:
            if self._master < 0:
                return
            os.close(self._slave)
            os.close(self._master)
            self._master = self._slave = -1
            self._later.clear()
            if self._link:
                with contextlib.suppress(FileNotFoundError):
                    self._link.unlink()

    def brown_out(self, servos: Iterable[int] = ()) -> None:
        """Cut the power of servos, of all by default, and restore it at once."""
        with self.lock:
            for servo in [self.servos[each] for each in servos] or self.chain:
                servo.brown_out()
                servo.power_on()

    def _live(self) -> None:
        decoder, then_s = Decoder(), time.monotonic()
        while not self._is_over.is_set():
            wait_s = min(self._later[0][0] - time.monotonic(), IDLE_S) if self._later else IDLE_S
            with contextlib.suppress(OSError, ValueError):  # unplugged meanwhile
                if self._master >= 0:
                    select.select([self._master], [], [], max(wait_s, 0))
                else:
                    time.sleep(IDLE_S)
            with self.lock:
                now_s = time.monotonic()
                self._advance(now_s - then_s)
                then_s = now_s
                self._send_late(now_s)
                for packet in decoder.feed(self._received()):
                    self._hear(packet)
                decoder.finish()

    def _advance(self, seconds: float) -> None:
        while self.advances and seconds > 0:
            for servo in self.chain:
                servo.advance(min(seconds, MAX_S))
            seconds -= MAX_S

    def _received(self) -> bytes:
        """Return the bytes on the wire, as the servos hear them."""
        try:
            data = os.read(self._master, 65536) if self._master >= 0 else b""
        except OSError:  # no process has the port open, or nothing came
            return b""
        if data and self.faults.echo:
            self._write(data)
        if data and self._rng.random() < self.faults.drop:
            return b""
        return self._damaged(data)

    def _damaged(self, data: bytes) -> bytes:
        if not data or self._rng.random() >= self.faults.corrupt:
            return data
        damaged = bytearray(data)
        damaged[self._rng.integers(len(damaged))] ^= 1 << int(self._rng.integers(8))
        return bytes(damaged)

    def _baud_rate(self) -> int:
        """Return the port's rate as a value of the register `baud_rate`; -1 for a rate that servos do not know."""
        with contextlib.suppress(OSError):
            state = fcntl.ioctl(self._slave, TCGETS2, bytes(44))
            speed = int.from_bytes(state[40:44], "little")  # as a number, whichever way it was set
            return BAUD_RATES.index(speed) if speed in BAUD_RATES else -1
        return -1

    def _hear(self, packet: Packet) -> None:
        self.heard.append(packet)
        rate = self._baud_rate()
        hearing = [servo for servo in self.chain if servo.is_powered and servo.counts("baud_rate") == rate]
        for servo in hearing:
            servo.hear()
        if packet.instruction == Instruction.STATUS:
            return
        for servo, answer in self.answers(packet, hearing):
            if servo.id not in self.faults.silent:
                self._reply(answer)
        self.servos = {servo.id: servo for servo in self.chain}

    def answers(self, packet: Packet, hearing: Sequence[Servo]) -> Iterable[tuple[Servo, bytes]]:
        """Yield the answers, in the order of the wire. Two servos with one id both answer."""
        for servo, part in _parts(packet, hearing):
            answer = servo.answer(part)
            if answer is not None and (part is packet or packet.instruction in READS):
                yield servo, answer

    def _reply(self, answer: bytes) -> None:
        faults, rng = self.faults, self._rng
        if rng.random() < faults.drop:
            return
        data = self._damaged(answer)
        if rng.random() < faults.garbage:
            data = rng.bytes(int(rng.integers(1, 17))) + data
        if rng.random() < faults.duplicate:
            data += data
        if self._later:  # answers keep their order
            self._later.append((self._later[-1][0], data))
        elif rng.random() < faults.late:
            self._later.append((time.monotonic() + faults.late_s, data))
        else:
            self._write(data)

    def _send_late(self, now_s: float) -> None:
        while self._later and self._later[0][0] <= now_s:
            self._write(self._later.popleft()[1])

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # no process reads
            os.write(self._master, data)


READS = {Instruction.SYNC_READ, Instruction.BULK_READ}


def _parts(packet: Packet, servos: Sequence[Servo]) -> Iterable[tuple[Servo, Packet]]:
    """Yield the request to each servo in a packet, as packets of their own."""
    given = packet.parameters
    match packet.instruction:
        case Instruction.SYNC_READ if len(given) > 4:
            wanted = [(each, Packet(each, Instruction.READ, given[:4])) for each in given[4:]]
        case Instruction.BULK_READ:
            blocks = [given[at : at + 5] for at in range(0, len(given) - 4, 5)]
            wanted = [(block[0], Packet(block[0], Instruction.READ, block[1:])) for block in blocks]
        case Instruction.SYNC_WRITE if len(given) > 4:
            size = given[2] | given[3] << 8
            blocks = [given[at : at + 1 + size] for at in range(4, len(given) - size, 1 + size)]
            wanted = [(block[0], Packet(block[0], Instruction.WRITE, given[:2] + block[1:])) for block in blocks]
        case Instruction.BULK_WRITE:
            wanted = list(_bulk_writes(given))
        case _:
            yield from ((servo, packet) for servo in servos if packet.id in {servo.id, BROADCAST_ID})
            return
    for number, part in wanted:
        yield from ((servo, part) for servo in servos if servo.id == number)


def _bulk_writes(given: bytes) -> Iterable[tuple[int, Packet]]:
    at = 0
    while at + 5 <= len(given):
        size = given[at + 3] | given[at + 4] << 8
        yield given[at], Packet(given[at], Instruction.WRITE, given[at + 1 : at + 3] + given[at + 5 : at + 5 + size])
        at += 5 + size
