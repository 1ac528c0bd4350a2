"""DYNAMIXEL Protocol 2.0: packets to bytes and back, without any port.

Source: ROBOTIS e-manual, "DYNAMIXEL Protocol 2.0" and "CRC Calculation".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

HEADER = b"\xff\xff\xfd\x00"
BROADCAST_ID = 0xFE
MAX_ID = 0xFC
OVERHEAD = len(HEADER) + 3
"""Bytes before the instruction: header, id, length."""
MAX_LENGTH = 1024
"""Max length field, more than any packet of these servos has: a larger one is damaged."""
ALERT_BIT = 0x80
PATTERN, STUFFED = b"\xff\xff\xfd", b"\xff\xff\xfd\xfd"
CLEAR_REVOLUTIONS = b"\x01\x44\x58\x4c\x22"
"""Parameters of CLEAR: the present position to within one revolution."""


class Instruction(IntEnum):
    """The request of a packet; STATUS marks an answer."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    REBOOT = 0x08
    CLEAR = 0x10
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    BULK_READ = 0x92
    BULK_WRITE = 0x93


class StatusError(IntEnum):
    """Why a servo did not follow a request."""

    RESULT_FAIL = 1
    INSTRUCTION = 2
    CRC = 3
    DATA_RANGE = 4
    DATA_LENGTH = 5
    DATA_LIMIT = 6
    ACCESS = 7


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
        table.append(crc & 0xFFFF)
    return tuple(table)


CRC_TABLE = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """Return the CRC-16 of Protocol 2.0 (polynomial 0x8005, initial value 0, not reflected), or continue one."""
    table = CRC_TABLE
    for byte in data:
        crc = ((crc << 8) & 0xFF00) ^ table[(crc >> 8) ^ byte]
    return crc


@lru_cache(1024)
def _crc_of_head(head: bytes) -> int:
    """Return the checksum of the common first bytes of packets, cached."""
    return crc16(head)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; a status packet's parameters begin with its error byte."""

    id: int
    instruction: int
    parameters: bytes = b""

    @property
    def error(self) -> int:
        """Error number of a status packet: 0, or a StatusError."""
        return self.parameters[0] & ~ALERT_BIT

    @property
    def alert(self) -> bool:
        """Whether the servo of a status packet has a hardware error."""
        return bool(self.parameters[0] & ALERT_BIT)

    @property
    def data(self) -> bytes:
        """The data of a status packet."""
        return self.parameters[1:]


def encode(packet: Packet) -> bytes:
    """Return a packet's bytes.

    Raises:
        ValueError: the id is invalid (0 to 252, or 254 for all), or there are too many parameters.
    """
    if not (0 <= packet.id <= MAX_ID or packet.id == BROADCAST_ID):
        raise ValueError(f"servo id is {packet.id}, expected 0 to {MAX_ID}, or {BROADCAST_ID} for all")
    body = (bytes([packet.instruction]) + packet.parameters).replace(PATTERN, STUFFED)
    if len(body) + 2 > MAX_LENGTH:
        raise ValueError(f"packet has {len(packet.parameters)} parameters, expected at most {MAX_LENGTH - 3}")
    head = HEADER + bytes([packet.id]) + (len(body) + 2).to_bytes(2, "little") + body
    return head + crc16(head).to_bytes(2, "little")


class Decoder:
    """Finds packets in a stream of bytes that may be missing, damaged or inserted.

    A packet with a wrong checksum is skipped, and the search continues right behind its first byte: a damaged length
    hides no packet that follows.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.left_out = 0
        """Bytes that belonged to no packet."""

    def feed(self, data: bytes) -> list[Packet]:
        """Add bytes; return the packets that are complete now, in order."""
        self._bytes += data
        return self._packets(at_end=False)

    def finish(self) -> list[Packet]:
        """Return the packets behind one that will never be complete, and drop all bytes."""
        found = self._packets(at_end=True)
        self.left_out += len(self._bytes)
        self._bytes.clear()
        return found

    def _packets(self, *, at_end: bool) -> list[Packet]:
        found: list[Packet] = []
        stream, at = self._bytes, 0
        while (start := stream.find(HEADER, at)) >= 0:
            self.left_out += start - at
            size = self._size(start)
            if size and start + size > len(stream) and not at_end:
                at = start
                break
            packet = self._decoded(start, size) if start + size <= len(stream) else None
            if packet:
                found.append(packet)
            else:
                self.left_out += 1
            at = start + (size if packet else 1)
        else:
            kept = _begun(stream[at:])
            self.left_out += len(stream) - at - kept
            at = len(stream) - kept
        del stream[:at]
        return found

    def _size(self, start: int) -> int:
        """Return the bytes of the packet at `start`, as far as known; 0 if there can be none."""
        stream = self._bytes
        if len(stream) - start < OVERHEAD:
            return OVERHEAD + 3
        length = stream[start + 5] | stream[start + 6] << 8
        return OVERHEAD + length if 3 <= length <= MAX_LENGTH else 0

    def _decoded(self, start: int, size: int) -> Packet | None:
        if not size:
            return None
        packet = bytes(self._bytes[start : start + size])
        if crc16(packet[OVERHEAD:-2], _crc_of_head(packet[:OVERHEAD])) != packet[-2] | packet[-1] << 8:
            return None
        body = packet[OVERHEAD:-2]
        if PATTERN in body:
            body = body.replace(STUFFED, PATTERN)
        return Packet(packet[4], body[0], body[1:])


def _begun(stream: bytes | bytearray) -> int:
    """Return how many bytes at the end of a stream may start a header."""
    return next((size for size in (3, 2, 1) if stream.endswith(HEADER[:size])), 0)


def ping(servo: int = BROADCAST_ID) -> bytes:
    """Ask one servo, or all, for model number and firmware."""
    return encode(Packet(servo, Instruction.PING))


def read(servo: int, address: int, size: int) -> bytes:
    """Ask a servo for `size` bytes of its control table."""
    return encode(Packet(servo, Instruction.READ, _u16(address) + _u16(size)))


def write(servo: int, address: int, data: bytes) -> bytes:
    """Write bytes to a servo's control table."""
    return encode(Packet(servo, Instruction.WRITE, _u16(address) + data))


def sync_read(servos: Sequence[int], address: int, size: int) -> bytes:
    """Ask several servos for the same `size` bytes."""
    return encode(Packet(BROADCAST_ID, Instruction.SYNC_READ, _u16(address) + _u16(size) + bytes(servos)))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """Write to the same address of several servos, by servo id, without an answer.

    Raises:
        ValueError: the servos have data of different sizes.
    """
    sizes = {len(each) for each in data.values()}
    if len(sizes) != 1:
        raise ValueError(f"a sync write has data of {sorted(sizes)} bytes, expected one size")
    body = b"".join(bytes([servo]) + each for servo, each in data.items())
    return encode(Packet(BROADCAST_ID, Instruction.SYNC_WRITE, _u16(address) + _u16(sizes.pop()) + body))


def bulk_read(blocks: Mapping[int, tuple[int, int]]) -> bytes:
    """Ask servos for a block each: by servo id, (address, size)."""
    body = b"".join(bytes([servo]) + _u16(address) + _u16(size) for servo, (address, size) in blocks.items())
    return encode(Packet(BROADCAST_ID, Instruction.BULK_READ, body))


def reboot(servo: int) -> bytes:
    """Reboot a servo: the only way to clear what its shutdown latched."""
    return encode(Packet(servo, Instruction.REBOOT))


def clear(servo: int) -> bytes:
    """Bring a resting servo's position to within one revolution."""
    return encode(Packet(servo, Instruction.CLEAR, CLEAR_REVOLUTIONS))


def status(servo: int, data: bytes = b"", *, error: int = 0, alert: bool = False) -> bytes:
    """Answer as a servo does."""
    return encode(Packet(servo, Instruction.STATUS, bytes([error | (ALERT_BIT if alert else 0)]) + data))


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "little")
