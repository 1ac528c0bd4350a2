"""The weights that act: published by the learner whole or not at all, taken up by the actor only when they are good."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from r3l import files
from r3l.checkpoint import CheckpointError, Tensors
from r3l.config import Config
from r3l.policy import Policies, load_policies
from r3l.robot import RobotSpec

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


class Subscription:
    """Follows the published weights on a thread of its own, so that reading them never holds the control loop up."""

    def __init__(
        self, path: Path, config: Config, spec: RobotSpec, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        self._path, self._config, self._spec, self._device, self._warn = path, config, spec, device, warn
        self._seen: tuple[int, int] | None = None
        self._encoder = ""
        self._ready: tuple[Policies, int, bool] | None = None
        self._lock, self._end = threading.Lock(), threading.Event()
        self.version = 0
        """The version that acts; 0 before the first."""
        self._thread = threading.Thread(target=self._follow, name="weights", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether newer weights wait to be taken up."""
        return self._ready is not None

    def start(self) -> None:
        """Look once, now, then keep looking."""
        self._look()
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._end.set()

    def update(self, policies: Policies) -> None:
        """Let `policies` act with the newest good weights: called between two env steps."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            newest, self.version, encoder_changed = ready
            policies.adopt(newest, encoder_changed=encoder_changed)

    def _follow(self) -> None:
        while not self._end.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        try:
            found = os.stat(self._path)
        except OSError:
            return
        # A file is new when it is another one: a learner that was restarted may count versions from an older one.
        identity = (found.st_ino, found.st_mtime_ns)
        if identity == self._seen:
            return
        self._seen = identity
        try:
            published = read(self._path)
            policies = load_policies(self._config, self._spec, published.tensors, self._device)
        except CheckpointError as error:
            self._warn(f"{error}; the last good weights act on")
            return
        encoder = digest({name: tensor for name, tensor in published.tensors.items() if name.startswith("vae/")})
        with self._lock:
            changed = encoder != self._encoder or (self._ready is not None and self._ready[2])
            self._ready = (policies, published.version, changed)
        self._encoder = encoder
