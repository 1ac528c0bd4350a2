"""Recovery of the rows of a damaged experience store.

SQLite itself reads every row, from a copy of the database in which nothing can keep it from doing so: the pages of the
write-ahead log are in their places, page 1 (header and schema) is that of an empty store, and each leaf page in turn
takes the place of the table's root page. So only damage to a row itself, or to its leaf page's header, costs rows.

Source: https://sqlite.org/fileformat2.html, sections 1.3 (header), 1.6 (b-tree pages) and 4 (write-ahead log).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from r3l.run.experience import SCHEMA, SCHEMA_VERSION
from r3l.run.repair.audit import UNREADABLE, DamagedError, Extent, Labels, Layout, Values
from r3l.run.sqlite import open_readonly, sibling

PAGE_SIZES = [1 << power for power in range(9, 16)]
DEFAULT_PAGE_SIZE = 4096
LEAF = b"\x0d"
LOG_HEADER, FRAME_HEADER = 32, 24
COPY = "experience.copy.part"
COLUMNS = 11


def recover(damaged: Path, fresh: Path, layout: Layout) -> Extent:
    """Write every whole row of a damaged store into a new store `fresh`; return the extent of the new store.

    Rows keep their sequence numbers, by which checkpoints know them. A copy of the store is made beside `fresh` and
    removed again.
    """
    copy = fresh.with_name(COPY)
    fresh.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(fresh, isolation_level=None)) as store:
            size = page_size(damaged)
            store.executescript(f"PRAGMA page_size={size}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {SCHEMA}")
            store.execute("INSERT INTO meta VALUES ('schema_version', ?)", (SCHEMA_VERSION,))
            (root,) = store.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'observation'").fetchone()
            pages = copy_pages(damaged, copy, fresh.read_bytes()[:size])
            store.execute("BEGIN")
            # A power cut may leave two versions of a row: the first whole one is kept.
            statement = f"INSERT OR IGNORE INTO observation VALUES ({', '.join('?' * COLUMNS)})"
            store.executemany(statement, rows(copy, pages, root, size, layout))
            extent = relabel(store)
            store.execute("COMMIT")
    finally:
        copy.unlink(missing_ok=True)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    return extent


def require_whole_log(path: Path) -> None:
    """Raise DamagedError if a store's write-ahead log is damaged before its last commit: SQLite ignores the rest."""
    with open_or_empty(sibling(path, "-wal")) as log:
        _, damaged = read_log(log, page_size(path))
    if damaged:
        raise DamagedError(f"its write-ahead log is damaged in {damaged} places before its end")


def page_size(path: Path) -> int:
    """Return the page size that a database states, or the default where it states none that is possible."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        stated = int.from_bytes(file.read(18)[16:], "big")
        return stated if stated in PAGE_SIZES else DEFAULT_PAGE_SIZE
    return DEFAULT_PAGE_SIZE


def copy_pages(damaged: Path, copy: Path, first_page: bytes) -> set[int]:
    """Copy a database with the newest pages of its write-ahead log and another page 1; return its page numbers."""
    size, log = len(first_page), sibling(damaged, "-wal")
    with open_or_empty(damaged) as source, open_or_empty(log) as frames, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
        pages = set(range(1, target.tell() // size + 1))
        newest, _ = read_log(frames, size)
        for number, offset in newest.items():
            os.pwrite(target.fileno(), os.pread(frames.fileno(), size, offset), (number - 1) * size)
        pages |= newest.keys()
        target.truncate(max(pages, default=0) * size)
        os.pwrite(target.fileno(), first_page[:28] + max(pages, default=0).to_bytes(4, "big") + first_page[32:], 0)
    return pages


def read_log(log: BinaryIO, size: int) -> tuple[dict[int, int], int]:
    """Return where in a write-ahead log the newest committed version of each page begins, and the count of damage.

    SQLite ignores what follows damage in a log. Here a damaged frame costs the page in it alone: its checksum
    continues the checksum that is stored in the frame before.
    """
    header = log.read(LOG_HEADER)
    if len(header) < LOG_HEADER:
        return {}, 0
    is_whole = checksum(bytes(8), header[:24]) == header[24:]
    before, salt = header[24:], header[16:24] if is_whole else b""
    newest, pending, damaged, found, is_ours = dict[int, int](), dict[int, int](), 0, int(not is_whole), True
    while len(frame := log.read(FRAME_HEADER + size)) == FRAME_HEADER + size:
        number, is_commit = struct.unpack(">II", frame[:8])
        is_sound = frame[16:24] == checksum(before, frame[:8] + frame[FRAME_HEADER:])
        salt, before = salt or frame[8:16], frame[16:24]
        found += frame[8:16] != salt or not is_sound
        # Frames with another salt are left from an earlier use of the log, unless the checksum continues this one.
        is_ours = frame[8:16] == salt or (is_ours and is_sound)
        if is_ours and is_sound and number > 0:
            pending[number] = log.tell() - size
        if is_ours and is_commit:
            newest.update(pending)
            pending.clear()
            damaged = found if is_sound else damaged
    return newest, damaged


def checksum(before: bytes, content: bytes) -> bytes:
    """Return the checksum that a frame of a log must have after the checksum `before`."""
    first, second = struct.unpack(">II", before)
    for one, other in struct.iter_unpack("=II", content):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)


def rows(copy: Path, pages: set[int], root: int, size: int, layout: Layout) -> Iterator[Values]:
    """Yield the whole rows of every leaf page: SQLite reads each leaf as if it were all of the table."""
    with copy.open("r+b") as file:
        for number in (root, *sorted(pages - {1, root})):
            page = os.pread(file.fileno(), size, (number - 1) * size)
            if page[:1] == LEAF:
                os.pwrite(file.fileno(), page, (root - 1) * size)
                cells = min(int.from_bytes(page[3:5], "big"), size // 8)
                with closing(open_readonly(copy, is_closed=True)) as connection:
                    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, layout.max_row_bytes)
                    yield from filter(None, (read_cell(connection, index, layout) for index in range(cells)))


def read_cell(connection: sqlite3.Connection, index: int, layout: Layout) -> Values | None:
    """Return one row by its place; None where it cannot be read or is not whole."""
    with suppress(*UNREADABLE):
        values: Values | None = connection.execute("SELECT * FROM observation LIMIT 1 OFFSET ?", (index,)).fetchone()
        return values if values and layout.fault(values) is None else None
    return None


def relabel(store: sqlite3.Connection) -> Extent:
    """Begin a new segment wherever rows are missing; return how far the store goes."""
    labels, changes, count, last = Labels(), list[tuple[int, int, int]](), 0, 0
    for sequence, segment, step in store.execute("SELECT sequence, segment, step FROM observation ORDER BY sequence"):
        found = labels.of(sequence, segment, step)
        if found != (segment, step):
            changes.append((*found, sequence))
        count, last = count + 1, sequence
    store.executemany("UPDATE observation SET segment = ?, step = ? WHERE sequence = ?", changes)
    return Extent(count, last)


def open_or_empty(path: Path) -> BinaryIO:
    """Open a file for reading; one that does not exist is empty."""
    return open(path if path.exists() else os.devnull, "rb")
