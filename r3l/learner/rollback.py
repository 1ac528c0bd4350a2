"""Rollback: the return from diverged learning to the last good checkpoint."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from r3l.config.schema import NumericsConfig
from r3l.learner.divergence import DivergenceMonitor
from r3l.learner.learner import Learner
from r3l.run.checkpoint import LATEST, newest_first, read_checkpoint, remove_checkpoint
from r3l.run.experience import ExperienceStore
from r3l.run.files import write_file
from r3l.run.tensors import CheckpointError, require_finite

HOUR_S = 3600.0


class Recovery:
    """Returns a diverged learner to its last good checkpoint, at most so many times per hour."""

    def __init__(self, learner: Learner, folder: Path, tell: Callable[[str, str], None]) -> None:
        """Use the checkpoints in `folder`; `tell(kind, message)` writes an event."""
        self._learner, self._folder, self._tell = learner, folder, tell
        config = learner.config.numerics
        self._every = config.check_every
        self.monitor, self.rollbacks = DivergenceMonitor(learner, config), Rollbacks(config)
        self.times = 0
        """Rollbacks of this process."""
        self.is_going_back = False
        """Whether a rollback is going on: no checkpoint may be written of the learner."""
        self.has_failed = False
        """Whether no further rollback is allowed or possible: the run must end."""

    def after_update(self, metrics: Mapping[str, Tensor | float], store: ExperienceStore) -> bool:
        """Check at the configured interval; return whether the learner went back."""
        if not self._every or self._learner.updates % self._every:
            return False
        found = self.monitor.check(metrics)
        return found is not None and self.go_back(f"{found.name}: {found.message}", store)

    def may_save(self, tensors: Mapping[str, Tensor], store: ExperienceStore) -> bool:
        """Return whether these tensors are finite and may be saved; if not, the learner goes back."""
        try:
            require_finite(dict(tensors))
        except CheckpointError as error:
            self.go_back(f"weight: {error}", store)
            return False
        return True

    def saved(self) -> None:
        """Note that a new checkpoint was written."""
        self.rollbacks.saved()

    def go_back(self, reason: str, store: ExperienceStore) -> bool:
        """Go back to the last good checkpoint and write an event; False and `has_failed` if that is impossible."""
        if not self.rollbacks.admit(time.monotonic()):
            self._fail(f"{reason}; went back too often (numerics.max_rollbacks_per_hour): ending")
            return False
        self.is_going_back = True
        try:
            update = roll_back(self._learner, store, self._folder, self._warn, skip=self.rollbacks.skip)
        except CheckpointError as error:
            self._fail(f"{reason}; there is no checkpoint to go back to ({error}): ending")
            return False
        self.times, self.is_going_back = self.times + 1, False
        self._tell("numerics", f"{reason}; back to the checkpoint at update {update}")
        return True

    def state(self) -> dict[str, Any]:
        """Return what a new process needs to continue, as JSON values."""
        return {"well": self.monitor.well(), "rollback_ages_s": self.rollbacks.ages_s(time.monotonic())}

    def restore(self, state: object) -> None:
        """Continue from `state`; anything else is ignored."""
        if isinstance(state, dict):
            self.monitor.remember(state.get("well"))
            self.rollbacks.remember(state.get("rollback_ages_s"), time.monotonic())

    def _warn(self, message: str) -> None:
        self._tell("checkpoint", message)

    def _fail(self, message: str) -> None:
        self.has_failed = True
        self._tell("numerics", message)


class Rollbacks:
    """Decides whether a rollback is allowed, and how far it goes."""

    def __init__(self, config: NumericsConfig) -> None:
        self._limit = config.max_rollbacks_per_hour
        self._times_s: deque[float] = deque()
        self._is_saved = True
        self.skip = 0
        """Good checkpoints to pass over: one if learning diverged again before a new checkpoint was written."""

    def admit(self, now_s: float) -> bool:
        """Return whether a rollback is allowed at this monotonic time; if so, count it and set `skip`."""
        while self._times_s and now_s - self._times_s[0] >= HOUR_S:
            self._times_s.popleft()
        if len(self._times_s) >= self._limit:
            return False
        self._times_s.append(now_s)
        self.skip, self._is_saved = int(not self._is_saved), False
        return True

    def saved(self) -> None:
        """Note that a new checkpoint was written."""
        self._is_saved = True

    def ages_s(self, now_s: float) -> list[float]:
        """Return the age of each rollback of the last hour, s."""
        return [now_s - each for each in self._times_s if now_s - each < HOUR_S]

    def remember(self, ages_s: object, now_s: float) -> None:
        """Take over the result of `ages_s` from an earlier process; anything but a list is ignored."""
        ages = [each for each in ages_s if isinstance(each, int | float)] if isinstance(ages_s, list) else []
        known = sorted(now_s - each for each in ages if 0 <= each < HOUR_S)[-self._limit :] if self._limit else []
        self._times_s = deque(known)


def roll_back(
    learner: Learner,
    store: ExperienceStore,
    folder: Path,
    warn: Callable[[str], None],
    *,
    skip: int,
) -> int:
    """Restore a learner from the newest checkpoint in `folder` that passes all checks; return its updates.

    `skip` good checkpoints are passed over, but never the last one. Checkpoints passed over are removed, so that a new
    process does not start from them. Later random draws differ from those before the divergence, yet follow from the
    learner's own random state. Rows stored since are left to `learner.follow`.

    Raises:
        CheckpointError: there is no usable checkpoint.
    """
    luck = int(learner.rng.integers(2**63))
    usable: list[Path] = []
    used: Path | None = None
    for path in newest_first(folder):
        try:
            _restore(learner, store, path)
        except CheckpointError as error:
            warn(f"{error}; using the one before")
            continue
        usable.append(path)
        if len(usable) > skip and DivergenceMonitor(learner, learner.config.numerics).is_well():
            used = path
            break
    if not usable:
        raise CheckpointError(f"no checkpoint in {folder} can be gone back to")
    if used is None:  # no checkpoint passes all checks: go back as far as `skip` asks
        used = usable[min(skip, len(usable) - 1)]
        _restore(learner, store, used)
    _perturb(learner, luck)
    write_file(folder / LATEST, used.name.encode())
    for path in usable[: usable.index(used)]:
        remove_checkpoint(path)
    return learner.updates


def _restore(learner: Learner, store: ExperienceStore, path: Path) -> None:
    """Load one checkpoint and clear the gradients; CheckpointError if it is damaged or not finite."""
    tensors, meta = read_checkpoint(path)
    require_finite(tensors)
    learner.restore(tensors, meta.get("learner"), store)
    for module in learner.modules().values():
        module.zero_grad(set_to_none=True)


def _perturb(learner: Learner, luck: int) -> None:
    """Reseed the learner: other random numbers than before, the same ones for the same `luck`."""
    seeds = np.random.SeedSequence([learner.config.seed, learner.updates, luck])
    learner.rng.bit_generator.state = np.random.default_rng(seeds).bit_generator.state
    learner.generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
