"""Weights of the policies: what the actor follows, and what is evaluated."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from r3l.run.files import GIB
from r3l.run.tensors import CheckpointError, Tensors, load_tensors, save_tensors

MAX_BYTES = GIB
POLL_S = 0.1
"""Time between two checks of the actor for newer weights."""


@dataclass(frozen=True)
class Published:
    """Weights as they were published."""

    tensors: Tensors
    version: int
    """0 for the weights to be evaluated, which have no version."""
    step: int
    """Env steps that the weights have learned from."""


def digest(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and bytes."""
    import torch  # on use: `r3l status` does without it

    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def publish(path: Path, tensors: Tensors, *, version: int, step: int) -> None:
    """Replace the weights that the actor follows; a reader sees the old ones or the new ones.

    The file is not synced to the disk: after a power cut the checksum tells whether it is whole.
    """
    path.parent.mkdir(exist_ok=True)
    save_tensors(path, tensors, {"step": step, "version": version, "sha256": digest(tensors)}, is_synced=False)


def read(path: Path) -> Published:
    """Return published weights; CheckpointError where they are damaged."""
    try:
        tensors, texts = load_tensors(path, MAX_BYTES)
        # R3L 0.1.0 wrote the texts of the actor's weights without "meta".
        meta = json.loads(texts["meta"]) if "meta" in texts else texts
        if meta.keys() == {"step"}:
            return Published(tensors, 0, int(meta["step"]))
        found, checksum = Published(tensors, int(meta["version"]), int(meta["step"])), meta["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"weights {path} cannot be read ({error})") from error
    if digest(tensors) != checksum:
        raise CheckpointError(f"weights {path} are damaged: they do not match their checksum")
    return found
