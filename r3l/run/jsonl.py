"""Files of JSON lines that survive a crash in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r3l.config.errors import UserError
from r3l.run.files import GIB, MIB, open_sized

MAX_BYTES, MAX_LINE_BYTES = GIB // 4, MIB


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record on a line of its own, also after a line that a crash cut off."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the records that are of an env step; what says no whole number for it is left out."""
    return [record for record in read_jsonl(path) if type(record.get("step")) is int and record["step"] >= 0]


def read_tail(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """Return the newest records of a JSON-lines file, in order; no file and a damaged line are no record."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - max_bytes, 0))
            lines = file.read(max_bytes).splitlines()
    except OSError:
        return []
    return _records(lines)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a line that holds none, cut off by a crash, is left out.

    No file is no record. UserError where it is larger than any run's.
    """
    try:
        file = open_sized(path, MAX_BYTES)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; move it away") from error
    with file:
        return _records(iter(lambda: file.readline(MAX_LINE_BYTES), b""))


def _records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the JSON objects among some lines."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
