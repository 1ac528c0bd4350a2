"""Checkpoints: tensors and JSON, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from r3l.run.files import (
    MAX_JSON_BYTES,
    MAX_LINE_BYTES,
    one_line,
    open_sized,
    read,
    read_json,
    remove,
    sync_folder,
    write_file,
)
from r3l.run.tensors import MAX_TENSOR_BYTES, CheckpointError, Tensors, encode_tensors, load_tensors

LATEST, MANIFEST, TENSORS, META = "latest", "manifest.json", "tensors.safetensors", "meta.json"
MAX_BYTES = {TENSORS: MAX_TENSOR_BYTES, META: MAX_JSON_BYTES}
"""The files that a manifest lists, and their max size."""
NAME = re.compile(r"step-([0-9]{8,18})(?:\.([0-9]{1,9}))?")
T = TypeVar("T")


def save_checkpoint(folder: Path, step: int, tensors: Tensors, meta: dict[str, Any], *, keep: int) -> Path:
    """Write checkpoint `step` below `folder`, point `latest` at it, and keep the newest `keep` (at least 1).

    Every file is synced and its SHA-256 goes into a manifest. The folder is renamed into place, and the pointer is
    written last: a crash at any moment leaves the previous checkpoint in use. Old checkpoints are removed when the
    pointer is on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    for left_over in folder.glob(".step-*.part"):
        remove(left_over)
    final = _free(folder, step)
    part = _hidden(final)
    part.mkdir()
    files = {TENSORS: encode_tensors(tensors), META: json.dumps(meta).encode()}
    for name, content in files.items():
        write_file(part / name, content)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_file(part / MANIFEST, json.dumps(manifest).encode())
    part.rename(final)
    sync_folder(folder)
    write_file(folder / LATEST, final.name.encode())
    for old in newest_first(folder)[max(keep, 1) :]:
        remove_checkpoint(old)
    return final


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, renamed first: after a crash it is whole or hidden, and the next save removes the rest."""
    hidden = _hidden(path)
    remove(hidden)
    path.rename(hidden)
    remove(hidden)


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[Tensors, dict[str, Any]] | None:
    """Return the newest checkpoint below `folder` that verifies; None where the folder has no checkpoint.

    `warn` gets a message for each newer checkpoint, which does not verify. CheckpointError where none verifies.
    """
    found = _first_usable(folder, warn, read_checkpoint)
    return found[0] if found else None


def restore_newest(
    folder: Path, warn: Callable[[str], None], restore: Callable[[Tensors, dict[str, Any]], None]
) -> bool:
    """Pass the newest checkpoint that verifies to `restore`; return False where the folder has no checkpoint.

    A checkpoint that does not verify, or for which `restore` raises CheckpointError, is passed over: `warn` gets a
    message, and the checkpoint is renamed so that it counts among the newest no more. CheckpointError if none is left.
    """
    found = _first_usable(folder, warn, lambda path: restore(*read_checkpoint(path)))
    if found is None:
        return False
    for passed in found[1]:
        with suppress(OSError):
            passed.rename(passed.with_name(f".{passed.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"))
    return True


def _first_usable(folder: Path, warn: Callable[[str], None], use: Callable[[Path], T]) -> tuple[T, list[Path]] | None:
    """Return `use(path)` of the newest checkpoint for which it does not raise CheckpointError, and the newer ones.

    None where the folder has no checkpoint.
    """
    candidates, passed = newest_first(folder), list[Path]()
    for path in candidates:
        try:
            return use(path), passed
        except CheckpointError as error:
            warn(f"{error}; using the previous one")
            passed.append(path)
    if candidates:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in {folder} can be used; see events.jsonl")
    return None


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return a checkpoint's tensors and JSON; CheckpointError where a file is damaged or a link."""
    try:
        for each in (path, path / MANIFEST, *(path / name for name in MAX_BYTES)):
            if each.is_symlink():
                raise ValueError(f"{each.name} is a link, expected what a run wrote")
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or manifest.keys() != MAX_BYTES.keys():
            raise ValueError(f"its manifest does not list {sorted(MAX_BYTES)}")
        for name, max_bytes in MAX_BYTES.items():
            if _checksum(path / name, max_bytes) != manifest[name]:
                raise ValueError(f"{name} does not match its checksum")
        meta = read_json(path / META)
        if not isinstance(meta, dict):
            raise ValueError(f"{META} is not a table")
        return load_tensors(path / TENSORS)[0], meta
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt or incomplete ({one_line(error)})") from error


def _checksum(path: Path, max_bytes: int) -> str:
    with open_sized(path, max_bytes) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(path: Path) -> Path:
    """Return a checkpoint's name before it is complete, and while it is removed."""
    return path.with_name(f".{path.name}.part")


def _free(folder: Path, step: int) -> Path:
    """Return a new name for checkpoint `step`: one that exists stays until its successor is in use."""
    taken = [rank(path.name) for path in folder.iterdir()]
    numbers = [number for taken_step, number in taken if taken_step == step]
    return folder / (f"step-{step:08d}.{max(numbers) + 1}" if numbers else f"step-{step:08d}")


def rank(name: str) -> tuple[int, int]:
    """Return a checkpoint's step and its number among those of this step; (-1, -1) for any other name."""
    found = NAME.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, -1)


def newest_first(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints: the one that `latest` names, then by falling steps."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    try:
        latest = read(folder / LATEST, MAX_LINE_BYTES).decode().strip()
    except (OSError, ValueError):
        latest = ""
    return sorted(found, key=lambda path: (path.name == latest, rank(path.name)), reverse=True)
