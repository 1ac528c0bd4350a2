"""TODO r3l/training/policy_updates.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from r3l.config.schema import Config
from r3l.models.policy import Policies, load_policies
from r3l.robot.base import RobotSpec
from r3l.run.tensors import CheckpointError
from r3l.run.weights import POLL_S, digest, read


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
