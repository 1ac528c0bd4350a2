"""Files of a run directory, which may have any origin: sizes are checked before reading, and links are refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

MIB, GIB = 1 << 20, 1 << 30
MAX_JSON_BYTES = 16 * MIB
MAX_LINE_BYTES = 256
"""Max size of a file that holds a name or a number."""


def open_sized(path: Path, max_bytes: int) -> BufferedReader:
    """Open a file to be read, in bytes.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a pipe, a device or a folder, or has more than `max_bytes`.
    """
    # Without O_NONBLOCK, opening a pipe without a writer blocks.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
    try:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is no file")
        if found.st_size > max_bytes:
            raise ValueError(f"{path.name} is larger than {_amount(max_bytes)}, which none of a run is")
    except BaseException:
        file.close()
        raise
    return file


def read(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file; raises what `open_sized` does, before anything is read."""
    with open_sized(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # read(max_bytes) would allocate max_bytes


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the JSON in a file; raises what `open_sized` does, and ValueError if the file holds no JSON."""
    try:
        return json.loads(read(path, max_bytes))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def is_inside(folder: Path, path: Path) -> bool:
    """Return whether a path, all links followed, is `folder` or below it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def strangers(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every link, pipe and device in a run directory, and what to do with it.

    The folder itself may be reached through a link. Files that vanish meanwhile are left out.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(mode):  # a link inside the run would make two files one
                where = "a link" if is_inside(folder, path) else "a link out of the run directory"
                yield path, f"it is {where}; put there what it leads to"
            elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                yield path, "it is neither a file nor a folder; remove it"


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link without its target; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _amount(size: int) -> str:
    return f"{size} bytes" if size < MIB else f"{size / MIB:.0f} MiB"


def write_file(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """Write a file whole or not at all.

    Not synced to the disk, the file may be damaged after a power cut, and needs a checksum.
    """
    part = path.with_name(path.name + ".part")
    remove(part)
    with part.open("xb") as file:
        file.write(content)
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    part.rename(path)
    if is_synced:
        sync_folder(path.parent)


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
