"""Files of JSON lines: one record per line, readable after a crash in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from r3l.config.errors import UserError
from r3l.run.files import GIB, MIB, open_sized

MAX_BYTES, MAX_LINE_BYTES = GIB // 4, MIB

Record = dict[str, Any]


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record on a line of its own, also after a line that a crash cut off."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def read_jsonl(path: Path) -> list[Record]:
    """Return the records of a file; lines without a record are left out.

    A file that does not exist has no records. UserError where the file is larger than any that a run writes.
    """
    try:
        return list(records(lines(path)))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; move it away") from error


def read_steps(path: Path) -> list[Record]:
    """Return the records of a file that name an env step."""
    return [record for record in read_jsonl(path) if type(record.get("step")) is int and record["step"] >= 0]


def read_tail(path: Path, max_bytes: int) -> list[Record]:
    """Return the newest records of a file, in order; a file that cannot be read has no records."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - max_bytes, 0))
            return list(records(file.read(max_bytes).splitlines()))
    except OSError:
        return []


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, longer ones in pieces of MAX_LINE_BYTES; raises what `open_sized` does."""
    with open_sized(path, MAX_BYTES) as file:
        while line := file.readline(MAX_LINE_BYTES):
            yield line


def records(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records on lines; lines without a record are left out."""
    for line in lines:
        with suppress(ValueError):
            record = parse(line)
            if record is not None:
                yield record


def parse(line: bytes) -> Record | None:
    """Return the record on a line, None on a blank line.

    Raises:
        json.JSONDecodeError: the line was cut off.
        ValueError: the line holds anything else.
    """
    text = line.decode()
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("the line is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("the line holds no record")
    return record
