"""Checkpoints: tensors and JSON, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

LATEST = "latest"
FILES = {"tensors.safetensors", "meta.json"}
Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says which and why."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it exists whole, on the disk, or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    _sync_folder(path.parent)


def save_tensors(path: Path, tensors: Tensors, meta: dict[str, Any]) -> None:
    """Write tensors and JSON into one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(contiguous, {"meta": json.dumps(meta)}))


def save_checkpoint(folder: Path, step: int, tensors: Tensors, meta: dict[str, Any], *, keep: int) -> Path:
    """Write checkpoint `step` below `folder`, point `latest` at it, and keep the newest `keep` (1 at least).

    Every file is synced, its SHA-256 goes into a manifest, the folder is renamed into place and the pointer is
    written last: a crash at any moment leaves the previous checkpoint in use.
    """
    final = _free(folder / f"step-{step:08d}")
    part = folder / f".{final.name}.part"
    for left_over in folder.glob(".step-*.part"):
        shutil.rmtree(left_over)
    part.mkdir(parents=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files = {"tensors.safetensors": save(contiguous), "meta.json": json.dumps(meta).encode()}
    for name, content in files.items():
        write_file(part / name, content)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_file(part / "manifest.json", json.dumps(manifest).encode())
    part.rename(final)
    _sync_folder(folder)
    write_file(folder / LATEST, final.name.encode())
    for old in _newest_first(folder)[max(keep, 1) :]:
        shutil.rmtree(old)
    return final


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[Tensors, dict[str, Any]] | None:
    """Return the newest checkpoint below `folder` that verifies, or None where there is none at all.

    `warn` is told of each one that does not. Raises CheckpointError when there are checkpoints and none verifies.
    """
    candidates = _newest_first(folder)
    for path in candidates:
        try:
            return _read(path)
        except CheckpointError as error:
            warn(f"{error}; using the previous one")
    if candidates:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in {folder} can be used; see events.jsonl")
    return None


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    try:
        manifest = dict(json.loads((path / "manifest.json").read_text()))
        if set(manifest) != FILES:
            raise CheckpointError(f"checkpoint {path} is corrupt: its manifest does not list {sorted(FILES)}")
        for name, expected in manifest.items():
            found = hashlib.sha256((path / name).read_bytes()).hexdigest()
            if found != expected:
                raise CheckpointError(f"checkpoint {path} is corrupt: {name} does not match its checksum")
        return load_file(path / "tensors.safetensors"), json.loads((path / "meta.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt or incomplete ({error})") from error


def _free(path: Path) -> Path:
    """Return `path`, or beside it a name that is free: what exists is not removed before its successor is in use."""
    names = [path.name, *(f"{path.name}.{number}" for number in range(1, 1000))]
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())


def _newest_first(folder: Path) -> list[Path]:
    found = sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)
    try:
        latest = (folder / LATEST).read_text().strip()
    except (OSError, ValueError):
        return found
    return sorted(found, key=lambda path: path.name == latest, reverse=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return an optimiser's state as tensors named INDEX.KEY, its parameters counted in order."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore what `optimiser_tensors` returned."""
    whole = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors renamed PREFIX/NAME."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors below PREFIX/ without it."""
    start = prefix + "/"
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def missing_keys(tensors: Tensors, prefixes: Iterable[str]) -> list[str]:
    """Return the prefixes below which there is no tensor."""
    return [prefix for prefix in prefixes if not under_prefix(prefix, tensors)]
