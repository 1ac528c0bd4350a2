"""Policy updates: the weights that act, on their way from the learner process to the actor process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from r3l.config.schema import Config
from r3l.models.policy import Policies, load_policies
from r3l.robot.base import RobotSpec
from r3l.run.tensors import CheckpointError, Tensors
from r3l.run.weights import POLL_S, digest, publish, read
from r3l.training.timer import Timer


class Publication:
    """Publishes the weights that act, once per interval."""

    def __init__(self, path: Path, every_s: float) -> None:
        """Continue from the version at `path`, if there is one."""
        self._path, self._timer = path, Timer(every_s)
        try:
            self.version = read(path).version
        except CheckpointError:  # none are published yet, or they are damaged and replaced soon
            self.version = 0

    def is_due(self) -> bool:
        """Return whether it is time to publish; if so, the next interval starts."""
        return self._timer.is_due()

    def publish(self, weights: Tensors, step: int) -> None:
        """Publish weights that have learned from `step` env steps. Raises OSError where the disk takes nothing."""
        publish(self._path, weights, version=self.version + 1, step=step)
        self.version += 1


class Subscription:
    """Reads published weights on a thread of its own, so that reading never delays the control loop."""

    def __init__(
        self, path: Path, config: Config, spec: RobotSpec, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        """Read `path`; `warn` is told of weights that cannot be used."""
        self._path, self._config, self._spec, self._device, self._warn = path, config, spec, device, warn
        self._seen: tuple[int, int] | None = None
        self._encoder = ""
        self._ready: tuple[Policies, int, bool] | None = None
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self.version = 0
        """The version that acts; 0 before the first."""
        self._thread = threading.Thread(target=self._follow, name="weights", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether newer weights are read and not yet used."""
        return self._ready is not None

    def start(self) -> None:
        """Read the weights now, then whenever they are replaced."""
        self.poll()
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._is_closed.set()

    def update(self, policies: Policies) -> None:
        """Let `policies` act with the newest good weights. Call it between two env steps."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            newest, self.version, encoder_changed = ready
            policies.adopt(newest, encoder_changed=encoder_changed)

    def _follow(self) -> None:
        while not self._is_closed.wait(POLL_S):
            self.poll()

    def poll(self) -> None:
        """Read the weights if the file is a new one."""
        try:
            found = os.stat(self._path)
        except OSError:
            return
        # The version does not tell: a learner that was restarted may count from an older one.
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
