"""The bus: requests to servos and their answers, each servo by itself, each request with a deadline."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from r3l.robot import RobotError

from . import protocol
from .control_table import Register
from .outstanding import Outstanding
from .port import Port
from .protocol import Decoder, Instruction, Packet, StatusError

DEADLINE_S = 0.05
"""Default time of a request with all its repetitions."""
SETTING_S = 0.5
"""The same for one register of one servo: no control loop waits for it, and a busy computer may stall for longer."""
QUIET_S = 0.005
"""Silence, beside the delay of adapter and wire, after which a servo will not answer."""
ATTEMPTS = 4
"""Times that a request is repeated within its deadline."""
GRACE_S = 0.001
"""Extra bytes of an answer with stuffed bytes."""
REGION_BEGIN, REGION_END = 120, 148
"""Registers that every servo has without a gap and that the driver never writes: reads of any size fit in there."""
Block = tuple[int, int]
"""Address and size in bytes of a part of a control table."""
MAX_LATE_BYTES = 8192
"""More bytes than servos can owe."""
STATUS_BYTES = 11
"""Bytes of a status packet without data."""


class BusError(RobotError):
    """A servo did not do what was asked; the message names servo, request and next step."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of one servo."""

    data: bytes
    error: int = 0
    """0, or a StatusError."""
    alert: bool = False
    """Whether the servo has a hardware error (register hardware_error_status)."""


@dataclass(frozen=True, slots=True)
class Pong:
    """A servo that answers."""

    model: int
    firmware: int
    alert: bool = False


class Bus:
    """Servos on one port. Use as a context manager, or call `open` and `close`.

    A status packet does not name the request that it answers. A late answer must never pass for another one: a servo
    that owes an answer is asked for another number of bytes than it owes. An answer of that size shows that older ones,
    which servos send in order, are over.
    """

    def __init__(self, port: str, baud_rate: int = 1_000_000, *, quiet_s: float = QUIET_S) -> None:
        self.port = Port(port, baud_rate)
        self.counts: Counter[str] = Counter()
        """Requests, repetitions, missing answers, useless bytes, late answers."""
        self._quiet_s = quiet_s
        self._outstanding = Outstanding()

    def open(self) -> None:
        """Open the port. Raises PortError if that fails."""
        self.port.open()
        self._outstanding.clear()

    def close(self) -> None:
        """Close the port; safe to call twice."""
        self.port.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ping(self, servo: int, *, deadline_s: float = DEADLINE_S) -> Pong | None:
        """Return a servo's model and firmware; None if no servo answers."""
        reply = self._command(servo, protocol.ping(servo), 3, deadline_s)
        return _pong(reply) if reply else None

    def scan(self, deadline_s: float = 3.0) -> dict[int, list[Pong]]:
        """Ask all servos at once for their model and firmware: by id, several entries for a duplicate id."""
        self._drain()
        until_s = time.monotonic() + deadline_s
        self.port.write(protocol.ping(), until_s)
        decoder, found = Decoder(), defaultdict[int, list[Pong]](list)
        while data := self.port.read(until_s):
            for packet in decoder.feed(data):
                if packet.instruction == Instruction.STATUS and len(packet.data) == 3:
                    found[packet.id].append(_pong(Reply(packet.data, packet.error, packet.alert)))
        return dict(found)

    def read(self, servo: int, register: Register, *, deadline_s: float = SETTING_S) -> float:
        """Return one register of one servo, in SI units.

        Raises:
            BusError: the servo does not answer, or refuses.
        """
        reply = self._read_one(servo, register, time.monotonic() + deadline_s)
        if reply is None:
            raise BusError(f"servo {servo} does not answer a read of {register.name}; check its cable and power")
        if reply.error:
            raise BusError(f"servo {servo} refuses a read of {register.name} ({_named(reply.error)})")
        return register.decode(reply.data)

    def write(self, servo: int, register: Register, value: float, *, deadline_s: float = SETTING_S) -> None:
        """Set one register of one servo, in SI units, and read it back.

        Raises:
            BusError: the servo does not answer, refuses, or reads as another value afterwards.
            ValueError: the value is outside the register's range.
        """
        data, request = register.encode(value), protocol.write(servo, register.address, register.encode(value))
        until_s = time.monotonic() + deadline_s
        while True:
            reply = self._command(servo, request, 0, min(deadline_s, DEADLINE_S))
            if reply and reply.error:
                raise BusError(f"servo {servo} refuses {register.name} = {value:.4g} ({_named(reply.error)})")
            read = self._read_one(servo, register, until_s)
            if read is None or read.error:
                raise BusError(f"servo {servo} does not answer a write of {register.name}; check its cable and power")
            if read.data == data:
                return
            if reply or time.monotonic() >= until_s:
                has = register.decode(read.data)
                raise BusError(f"servo {servo} has {register.name} = {has:.4g} after {value:.4g} was written")

    def _read_one(self, servo: int, register: Register, until_s: float) -> Reply | None:
        """Return a servo's answer to a read of a register, asked repeatedly until it answers or the time is up."""
        while True:
            left_s = until_s - time.monotonic()
            found = self.sync_read([servo], register.address, register.size, deadline_s=min(left_s, DEADLINE_S))
            if found or time.monotonic() >= until_s:
                return found.get(servo)

    def sync_read(
        self, servos: Sequence[int], address: int, size: int, *, deadline_s: float = DEADLINE_S
    ) -> dict[int, Reply]:
        """Return the servos' answers to a read of `size` bytes each; a servo that did not answer is left out.

        Raises:
            PortError: the port is lost.
        """
        return self.bulk_read(dict.fromkeys(servos, (address, size)), deadline_s=deadline_s)

    def bulk_read(self, blocks: Mapping[int, Block], *, deadline_s: float = DEADLINE_S) -> dict[int, Reply]:
        """Return the servos' answers to a read of a block each, (address, size); silent servos are left out.

        Raises:
            PortError: the port is lost.
        """
        until_s = time.monotonic() + deadline_s
        found: dict[int, Reply] = {}
        for attempt in range(ATTEMPTS):
            missing = {servo: block for servo, block in blocks.items() if servo not in found}
            if not missing or (attempt and time.monotonic() >= until_s):
                break
            tagged = self._tagged(missing)
            if tangled := [servo for servo in missing if servo not in tagged]:
                self._settle(tangled, until_s)
                tagged = self._tagged(missing)
            if tagged:
                answers = self._exchange(
                    _request(tagged), {servo: size for servo, (_, size) in tagged.items()}, until_s
                )
                found |= {servo: _cut(answers[servo], tagged[servo], missing[servo]) for servo in answers}
        return found

    def sync_write(self, register: Register, values: Mapping[int, float]) -> None:
        """Set a register of several servos at once, in SI units. Servos do not answer.

        Raises:
            PortError: the port is lost.
            ValueError: a value is outside the register's range; nothing is sent then.
        """
        data = {servo: register.encode(value) for servo, value in values.items()}
        self.port.write(protocol.sync_write(register.address, data), time.monotonic() + DEADLINE_S)

    def reboot(self, servo: int) -> None:
        """Reboot a servo. BusError if it does not answer."""
        if self._command(servo, protocol.reboot(servo), 0, DEADLINE_S) is None:
            raise BusError(f"servo {servo} does not answer a reboot; check its cable and power")

    def clear(self, servo: int) -> None:
        """Bring a resting servo's position to within one revolution. BusError if it refuses."""
        reply = self._command(servo, protocol.clear(servo), 0, DEADLINE_S)
        if reply is None or reply.error:
            why = _named(reply.error) if reply else "no answer"
            raise BusError(f"servo {servo} does not clear its revolutions ({why}); it must rest")

    def _command(self, servo: int, request: bytes, size: int, deadline_s: float) -> Reply | None:
        """Make a request that one servo answers with `size` bytes; None if it does not answer in time."""
        until_s = time.monotonic() + deadline_s
        for _ in range(ATTEMPTS):
            if not self._outstanding.is_free(servo, size, time.monotonic()):
                self._settle([servo], until_s)
            if time.monotonic() >= until_s:
                break
            if self._outstanding.is_free(servo, size, time.monotonic()):
                found = self._exchange(request, {servo: size}, until_s)
                if servo in found and found[servo].error != StatusError.CRC:
                    return found[servo]
        return None

    def _settle(self, servos: Sequence[int], until_s: float) -> None:
        """Let servos answer a read whose size differs from every answer that they owe."""
        now_s = time.monotonic()
        size = self._outstanding.size_for(servos, range(4, REGION_END - REGION_BEGIN + 1), now_s)
        if size is not None:
            self._exchange(protocol.sync_read(servos, REGION_BEGIN, size), dict.fromkeys(servos, size), until_s)

    def _tagged(self, blocks: Mapping[int, Block]) -> dict[int, Block]:
        """Return blocks that contain the wanted ones, of sizes that tell their answers from late ones.

        Servos that must answer an older request first are left out.
        """
        now_s = time.monotonic()
        found: dict[int, Block] = {}
        for block in set(blocks.values()):
            servos = [servo for servo, each in blocks.items() if each == block]
            found |= self._tagged_alike(servos, block, now_s)
        return found

    def _tagged_alike(self, servos: Sequence[int], block: Block, now_s: float) -> dict[int, Block]:
        address, size = block
        if address < REGION_BEGIN or address + size > REGION_END:
            return {servo: block for servo in servos if self._outstanding.is_free(servo, size, now_s)}
        sizes = range(size, REGION_END - REGION_BEGIN + 1)
        common = self._outstanding.size_for(servos, sizes, now_s)
        chosen = {servo: common or self._outstanding.size_for([servo], sizes, now_s) for servo in servos}
        return {servo: (min(address, REGION_END - each), each) for servo, each in chosen.items() if each}

    def _exchange(self, request: bytes, sizes: Mapping[int, int], until_s: float) -> dict[int, Reply]:
        """Send a request; return the answers of the expected sizes that came in time, by servo."""
        self._drain()
        self.counts["requests"] += 1
        self.port.write(request, until_s)
        expected = sum(sizes.values()) + STATUS_BYTES * len(sizes)
        patience_s = self._quiet_s + self.port.latency_s + 10 * (expected + len(request)) / self.port.baud_rate
        decoder, found, received = Decoder(), dict[int, Reply](), 0
        while len(found) < len(sizes):
            # As many bytes as all answers have: a damaged answer is among them, and few bytes can still come.
            wait_s = patience_s if received < expected else GRACE_S + self.port.latency_s
            data = self.port.read(min(until_s, time.monotonic() + wait_s))
            if not data:
                break
            received += len(data)
            self._sort(decoder.feed(data), sizes, found)
            if received > expected + MAX_LATE_BYTES:  # a device sends without end
                self.port.flush()
                break
        if len(found) < len(sizes):
            self._sort(decoder.finish(), sizes, found)
            self._miss(sizes, found)
        if decoder.left_out:
            self.counts["useless_bytes"] += decoder.left_out
        for servo in found:
            self._outstanding.answered(servo, sizes[servo])
        return found

    def _sort(self, packets: Iterable[Packet], sizes: Mapping[int, int], found: dict[int, Reply]) -> None:
        """Add the packets that answer the request to `found`."""
        for packet in packets:
            if packet.instruction != Instruction.STATUS or not packet.parameters:
                continue  # an echo of the request itself
            servo, data = packet.id, packet.data
            is_refusal = packet.error and not data and self._outstanding.is_free(servo, 0, time.monotonic())
            if servo in sizes and servo not in found and (len(data) == sizes[servo] or is_refusal):
                found[servo] = Reply(data, packet.error, packet.alert)
            else:
                self.counts["stray_answers"] += 1
                self._outstanding.missed(servo, len(data), time.monotonic())

    def _miss(self, sizes: Mapping[int, int], found: Mapping[int, Reply]) -> None:
        now_s = time.monotonic()
        for servo, size in sizes.items():
            if servo not in found:
                self.counts["missed_answers"] += 1
                self._outstanding.missed(servo, size, now_s)

    def _drain(self) -> None:
        """Discard bytes that came since the last request: they answer no later request."""
        decoder, left = Decoder(), MAX_LATE_BYTES
        while left > 0 and (data := self.port.read(0.0)):
            self.counts["late_bytes"] += len(data)
            left -= len(data)
            self._sort(decoder.feed(data), {}, {})
        if left <= 0:  # a device sends without end
            self.port.flush()


def _request(blocks: Mapping[int, Block]) -> bytes:
    different = set(blocks.values())
    if len(different) > 1:
        return protocol.bulk_read(blocks)
    address, size = different.pop()
    return protocol.sync_read(list(blocks), address, size)


def _cut(reply: Reply, asked: Block, wanted: Block) -> Reply:
    """Return the wanted block of an answer to a larger one."""
    begin = wanted[0] - asked[0]
    return Reply(reply.data[begin : begin + wanted[1]], reply.error, reply.alert)


def _pong(reply: Reply) -> Pong:
    return Pong(int.from_bytes(reply.data[:2], "little"), reply.data[2], reply.alert)


def _named(error: int) -> str:
    return StatusError(error).name.lower().replace("_", " ") if error in set(StatusError) else f"error {error}"
