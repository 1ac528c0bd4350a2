"""The weights that act: published by the learner whole or not at all, taken up by the actor only when they are good."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from r3l.run import files
from r3l.run.tensors import CheckpointError, Tensors

MAX_BYTES = 1 << 30
POLL_S = 0.1


@dataclass(frozen=True)
class Published:
    """Weights as they were published."""

    tensors: Tensors
    version: int
    step: int
    """Env steps that they have learned from."""


def digest(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def publish(path: Path, tensors: Tensors, *, version: int, step: int) -> None:
    """Replace the published weights; a reader sees the old ones or the new ones.

    Not synced to the disk: after a power cut the checksum says whether they are whole.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    meta = {"version": str(version), "step": str(step), "sha256": digest(contiguous)}
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".part")
    files.remove(part)
    part.write_bytes(save(contiguous, meta))
    part.rename(path)


def read(path: Path) -> Published:
    """Return published weights whose checksum is right; CheckpointError says what is wrong with others."""
    try:
        content = files.read(path, MAX_BYTES)
        tensors = load(content)
        meta = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found, checksum = Published(tensors, int(meta["version"]), int(meta["step"])), meta["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"weights {path} cannot be read ({error})") from error
    if digest(tensors) != checksum:
        raise CheckpointError(f"weights {path} are damaged: they do not match their checksum")
    return found
