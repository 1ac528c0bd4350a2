"""Salvage: the rows of a damaged experience store, read page by page past everything that is damaged.

Source: https://sqlite.org/fileformat2.html, sections 1.3 (header), 1.6 (b-tree pages), 2.1 (records) and 4 (write-ahead
log). Rows are found in the leaves themselves, so that neither the header nor an inner page need be whole.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from r3l.run.experience import PHASES, SCHEMA, SCHEMA_VERSION

Values = tuple[Any, ...]
"""A row of the store, in the order of its columns."""
PAGE_SIZES = {1 << power for power in range(9, 17)}
USUAL_PAGE_SIZE = 4096
LEAF = 0x0D
FRAME_HEADER, LOG_HEADER = 24, 32
LITTLE_ENDIAN_LOG = bytes.fromhex("377f0682")
COLUMNS = 11
WIDTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)
"""Bytes of the serial types 0 to 11."""
MAX_NUMBERS = 1 << 14
"""In a vector whose length is not known."""
ROOM = 128
"""Bytes that a record takes beside its blobs, at most."""


@dataclass(frozen=True)
class Layout:
    """What a row of a run's store looks like."""

    image_bytes: int
    joints: int | None
    """None: as many as it says, the same in all three vectors."""
    has_diagnostic: bool
    """Diagnostic runs keep ground truth; others keep none."""

    @property
    def largest(self) -> int:
        """Return how many bytes a row takes at most."""
        return self.image_bytes + 12 * (self.joints or MAX_NUMBERS) + 4 * MAX_NUMBERS * self.has_diagnostic + ROOM

    def fault(self, values: Values) -> str | None:
        """Return what is wrong with a row, None where nothing is."""
        sequence, segment, step, phase, image, *vectors, time_s, written_s = values
        if not all(isinstance(each, int) for each in (sequence, segment, step, phase)):
            return "a label is not a number"
        if not (0 <= segment < sequence and 0 <= step < sequence and 0 <= phase < len(PHASES)):
            return f"its labels are segment {segment}, step {step}, phase {phase}"
        if not all(isinstance(each, bytes) for each in (image, *vectors)):
            return "an image or a vector is not a blob"
        if len(image) != self.image_bytes:
            return f"its image has {len(image)} bytes, expected {self.image_bytes}"
        *three, diagnostic = vectors
        lengths = [len(each) for each in three]
        if lengths != 3 * [4 * self.joints if self.joints else lengths[0] // 4 * 4]:
            return f"its vectors have {lengths} bytes, expected {4 * (self.joints or 1)} for each"
        if len(diagnostic) % 4 or bool(diagnostic) != self.has_diagnostic:
            return f"its ground truth has {len(diagnostic)} bytes"
        numbers = np.frombuffer(b"".join(vectors), np.float32)
        if not all(isinstance(each, int | float) for each in (time_s, written_s)):
            return "a time is not a number"
        if not (np.isfinite(numbers).all() and np.isfinite([time_s, written_s]).all()):
            return "a number in it is not finite"
        return None


@dataclass(frozen=True)
class Extent:
    """How far an experience store goes."""

    rows: int = 0
    last: int = 0
    """The newest row's sequence number."""

    @property
    def missing(self) -> int:
        """Return how many rows before the last are gone."""
        return self.last - self.rows


class Labels:
    """Labels rows so that no transition joins across rows that are missing: what follows them is a segment of its own.

    Rows of which none is missing keep their labels.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._now = (-1, 0)

    def of(self, sequence: int, segment: int, step: int) -> tuple[int, int]:
        """Return segment and step for the next row, in the order of sequence numbers."""
        if self._before is not None and (sequence - 1, segment, step - 1) == self._before:
            self._now = (self._now[0], self._now[1] + 1)
        else:
            self._now = (max(segment, self._now[0] + 1), 0)
        self._before = (sequence, segment, step)
        return self._now


class Pages:
    """The pages of a database file, with the committed frames of the write-ahead log beside it laid over them."""

    def __init__(self, path: Path, page_size: int) -> None:
        self.size = page_size
        self._file = open_or_empty(path)
        self._log = None
        self._frames: dict[int, int] = {}
        log = path.with_name(path.name + "-wal")
        if log.exists():
            self._log = log.open("rb")
            self._frames = self._committed()
        self._count = os.fstat(self._file.fileno()).st_size // page_size

    def __len__(self) -> int:
        return max(self._count, max(self._frames, default=0))

    def __getitem__(self, number: int) -> bytes:
        """Return page `number`, counted from 1; nothing where there is none."""
        if self._log is not None and number in self._frames:
            return os.pread(self._log.fileno(), self.size, self._frames[number])
        return os.pread(self._file.fileno(), self.size, (number - 1) * self.size) if number > 0 else b""

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._log is not None:
            self._log.close()

    def _committed(self) -> dict[int, int]:
        """Return where in the log the newest committed version of each page is."""
        assert self._log is not None
        descriptor = self._log.fileno()
        header = os.pread(descriptor, LOG_HEADER, 0)
        first = os.pread(descriptor, FRAME_HEADER + self.size, LOG_HEADER)
        order, is_whole = self._order(header, first)
        if len(header) < LOG_HEADER or (is_whole and int.from_bytes(header[8:12], "big") != self.size):
            return {}
        salt = header[16:24] if is_whole else first[8:16]
        found: dict[int, int] = {}
        pending: dict[int, int] = {}
        at, before = LOG_HEADER, header[24:32]
        while len(frame := os.pread(descriptor, FRAME_HEADER + self.size, at)) == FRAME_HEADER + self.size:
            number, is_commit = struct.unpack(">II", frame[:8])
            # Each checksum goes on from the one before: held against that, one that is wrong costs its own frame alone.
            follows = frame[16:24] == checksum(before, frame[:8] + frame[FRAME_HEADER:], order)
            if frame[8:16] != salt and not follows:  # of an older use of the file
                break
            if follows:
                pending[number] = at + FRAME_HEADER
            at, before = at + len(frame), frame[16:24]
            if is_commit:
                found |= pending
                pending = {}
        return found

    def _order(self, header: bytes, first: bytes) -> tuple[str, bool]:
        """Return the order of bytes in a log's checksums, and whether its header is whole."""
        for order in ("<II", ">II"):
            if len(header) == LOG_HEADER and checksum(bytes(8), header[:24], order) == header[24:32]:
                return order, True
        for order in ("<II", ">II"):  # no byte of the header can be trusted: ask the first frame
            if first[16:24] == checksum(header[24:32], first[:8] + first[FRAME_HEADER:], order):
                return order, False
        return ("<II" if header[:4] == LITTLE_ENDIAN_LOG else ">II"), False


def checksum(before: bytes, content: bytes, order: str) -> bytes:
    """Return the checksum of a log's frame that goes on from the one `before`."""
    first, second = struct.unpack(">II", before)
    for one, other in struct.iter_unpack(order, content):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)


def salvage(damaged: Path, fresh: Path, layout: Layout) -> Extent:
    """Write every row that is still whole into a new store `fresh`; return how far it goes.

    Rows keep their sequence numbers, by which checkpoints know them.
    """
    labels, count, last = Labels(), 0, 0
    fresh.unlink(missing_ok=True)
    with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;" + SCHEMA)
        connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", (SCHEMA_VERSION,))
        for sequence, segment, step, *rest in rows(damaged, layout):
            values = (sequence, *labels.of(sequence, segment, step), *rest)
            connection.execute(f"INSERT INTO observation VALUES ({', '.join('?' * COLUMNS)})", values)
            count, last = count + 1, sequence
        connection.execute("COMMIT")
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    return Extent(count, last)


def rows(path: Path, layout: Layout) -> Iterator[Values]:
    """Yield the whole rows in the leaves of a store, in their order, whatever else in the file is damaged."""
    with open_or_empty(path) as file:
        said = int.from_bytes(file.read(18)[16:], "big")
    best: dict[int, list[tuple[int, int]]] = {}
    for size in {USUAL_PAGE_SIZE, 65536 if said == 1 else said} & PAGE_SIZES:
        with closing(Pages(path, size)) as pages:
            found = find(pages, layout)
        if len(found) > len(best):
            best, page_size = found, size
    if not best:
        return
    with closing(Pages(path, page_size)) as pages:
        for sequence in sorted(best):
            # More than one only after a power cut; then the first that is whole.
            read = (decoded(sequence, payload(pages, *place)) for place in best[sequence])
            whole = (values for values in read if values is not None and layout.fault(values) is None)
            yield from islice(whole, 1)


def open_or_empty(path: Path) -> IO[bytes]:
    """Open a file to be read; one that is not there, though its log may be, is empty."""
    return open(path if path.exists() else os.devnull, "rb")


def find(pages: Pages, layout: Layout) -> dict[int, list[tuple[int, int]]]:
    """Return by sequence number the page and the place in it of every cell as long as a row is."""
    found: dict[int, list[tuple[int, int]]] = {}
    for number in range(2, len(pages) + 1):  # page 1 holds the schema
        page = pages[number]
        if len(page) < pages.size or page[0] != LEAF:
            continue
        count = min(int.from_bytes(page[3:5], "big"), pages.size // 2)
        for (at,) in struct.iter_unpack(">H", page[8 : 8 + 2 * count]):
            length, then = varint(page, at)
            sequence, _ = varint(page, then)
            if layout.image_bytes < length <= layout.largest and sequence > 0:
                found.setdefault(sequence, []).append((number, at))
    return found


def payload(pages: Pages, number: int, at: int) -> bytes:
    """Return what the cell at a place of a leaf holds, collected from its overflow pages."""
    page, usable = pages[number], pages.size
    length, at = varint(page, at)
    _, at = varint(page, at)
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    if length <= most:
        return page[at : at + length]
    local = least + (length - least) % (usable - 4)
    local = local if local <= most else least
    parts, left = [page[at : at + local]], length - local
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    while left > 0:
        page = pages[following]
        if len(page) < usable:
            break
        parts.append(page[4 : 4 + left])
        left -= usable - 4
        following = int.from_bytes(page[:4], "big")
    return b"".join(parts)


def decoded(sequence: int, record: bytes) -> Values | None:
    """Return the row that a record holds, None where it holds none: its lengths must add up."""
    end, at = varint(record, 0)
    kinds = []
    while at < end <= len(record):
        kind, at = varint(record, at)
        kinds.append(kind)
    if len(kinds) != COLUMNS or end + sum(map(width, kinds)) != len(record):
        return None
    values: list[Any] = []
    for kind in kinds:
        values.append(value(kind, record[end : end + width(kind)]))
        end += width(kind)
    return (sequence, *values[1:])


def width(kind: int) -> int:
    """Return how many bytes a value of a serial type takes."""
    return (kind - 12) // 2 if kind >= 12 else WIDTHS[kind]


def value(kind: int, content: bytes) -> int | float | bytes | None:
    """Return the value of a serial type; texts, of which the store has none, as None."""
    if kind >= 12:
        return None if kind % 2 else content
    if kind == 7:
        return float(struct.unpack(">d", content)[0])
    if kind in (8, 9):
        return kind - 8
    return int.from_bytes(content, "big", signed=True) if content else None


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length integer at a place, and the place behind it; (0, at) beyond the end."""
    found = 0
    for index in range(at, min(at + 9, len(content))):
        byte = content[index]
        if index == at + 8:
            return found << 8 | byte, index + 1
        found = found << 7 | byte & 0x7F
        if byte < 0x80:
            return found, index + 1
    return 0, at
