"""Rollback: the way back from learning that broke, to the last checkpoint that is well."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from r3l.config.schema import NumericsConfig
from r3l.learner.divergence import NumericalWatch
from r3l.learner.learner import Learner
from r3l.run.checkpoint import LATEST, newest_first, read_checkpoint, remove_checkpoint
from r3l.run.experience import ExperienceStore
from r3l.run.files import write_file
from r3l.run.tensors import CheckpointError, require_finite

HOUR_S = 3600.0


class Recovery:
    """Looks after the numbers of a learner, and lets it go back where they broke, so many times an hour."""

    def __init__(self, learner: Learner, folder: Path, tell: Callable[[str, str], None]) -> None:
        """Go back to checkpoints in `folder`; `tell(kind, message)` writes an event."""
        self._learner, self._folder, self._tell = learner, folder, tell
        config = learner.config.numerics
        self._every = config.check_every
        self._watch, self._rollbacks = NumericalWatch(learner, config), Rollbacks(config)
        self.times = 0
        """How often it went back."""
        self.is_going_back = False
        """Whether the learner is in between: no checkpoint may be written of it."""
        self.has_failed = False
        """Whether it may not go back any more, or cannot: the run must end."""

    def after_update(self, metrics: Mapping[str, Tensor | float], store: ExperienceStore) -> bool:
        """Look when it is time; return whether the learner went back."""
        if not self._every or self._learner.updates % self._every:
            return False
        trouble = self._watch.look(metrics)
        return trouble is not None and self.go_back(f"{trouble.name}: {trouble.message}", store)

    def may_save(self, tensors: Mapping[str, Tensor], store: ExperienceStore) -> bool:
        """Return whether a checkpoint of these tensors may be kept; else the learner went back."""
        try:
            require_finite(dict(tensors))
        except CheckpointError as error:
            self.go_back(f"weight: {error}", store)
            return False
        return True

    def saved(self) -> None:
        """Take in that a new checkpoint was written."""
        self._rollbacks.saved()

    def go_back(self, reason: str, store: ExperienceStore) -> bool:
        """Go back to the last good checkpoint and tell; False, and `has_failed`, where that may not or cannot be."""
        if not self._rollbacks.admit(time.monotonic()):
            self._fail(f"{reason}; went back too often (numerics.max_rollbacks_per_hour): ending")
            return False
        self.is_going_back = True
        try:
            update = roll_back(self._learner, store, self._folder, self._warn, skip=self._rollbacks.skip)
        except CheckpointError as error:
            self._fail(f"{reason}; there is no checkpoint to go back to ({error}): ending")
            return False
        self.times, self.is_going_back = self.times + 1, False
        self._tell("numerics", f"{reason}; back to the checkpoint at update {update}")
        return True

    def state(self) -> dict[str, Any]:
        """Return what a new process needs to watch on, as JSON values."""
        return {"well": self._watch.well(), "rollback_ages_s": self._rollbacks.ages_s(time.monotonic())}

    def restore(self, state: object) -> None:
        """Watch on from `state`; what is no such thing is left out."""
        if isinstance(state, dict):
            self._watch.remember(state.get("well"))
            self._rollbacks.remember(state.get("rollback_ages_s"), time.monotonic())

    def _warn(self, message: str) -> None:
        self._tell("checkpoint", message)

    def _fail(self, message: str) -> None:
        self.has_failed = True
        self._tell("numerics", message)


class Rollbacks:
    """Decides whether learning may go back once more, and how far."""

    def __init__(self, config: NumericsConfig) -> None:
        self._limit = config.max_rollbacks_per_hour
        self._times_s: deque[float] = deque()
        self._is_saved = True
        self.skip = 0
        """Good checkpoints to pass over: one where trouble came again before a new one was written."""

    def admit(self, now_s: float) -> bool:
        """Return whether it may go back at this time of a monotonic clock; if so it is counted, and `skip` is set."""
        while self._times_s and now_s - self._times_s[0] >= HOUR_S:
            self._times_s.popleft()
        if len(self._times_s) >= self._limit:
            return False
        self._times_s.append(now_s)
        self.skip, self._is_saved = int(not self._is_saved), False
        return True

    def saved(self) -> None:
        """Take in that a new checkpoint was written."""
        self._is_saved = True

    def ages_s(self, now_s: float) -> list[float]:
        """Return how long ago it went back, each time within the last hour, s."""
        return [now_s - each for each in self._times_s if now_s - each < HOUR_S]

    def remember(self, ages_s: object, now_s: float) -> None:
        """Count what another process did; what is no list of ages is left out."""
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
    """Let a learner go on from the newest checkpoint in `folder` that the watch finds well; return its updates.

    `skip` good ones are passed over, but for the last. What was passed over is removed, so that a new process does
    not begin with it. Later draws differ from those that led into trouble, yet follow from the learner's own random
    state. Rows stored since are left to `learner.follow`.

    Raises:
        CheckpointError: there is none to go back to.
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
        if len(usable) > skip and NumericalWatch(learner, learner.config.numerics).is_well():
            used = path
            break
    if not usable:
        raise CheckpointError(f"no checkpoint in {folder} can be gone back to")
    if used is None:  # none is quite well: as far back as was asked for
        used = usable[min(skip, len(usable) - 1)]
        _restore(learner, store, used)
    _perturb(learner, luck)
    write_file(folder / LATEST, used.name.encode())
    for path in usable[: usable.index(used)]:
        remove_checkpoint(path)
    return learner.updates


def _restore(learner: Learner, store: ExperienceStore, path: Path) -> None:
    """Load one checkpoint's learner, gradients forgotten; CheckpointError where it is damaged or not finite."""
    tensors, meta = read_checkpoint(path)
    require_finite(tensors)
    learner.restore(tensors, meta.get("learner"), store)
    for module in learner.modules().values():
        module.zero_grad(set_to_none=True)


def _perturb(learner: Learner, luck: int) -> None:
    """Let the learner draw other random numbers than it did, the same ones for the same luck."""
    seeds = np.random.SeedSequence([learner.config.seed, learner.updates, luck])
    learner.rng.bit_generator.state = np.random.default_rng(seeds).bit_generator.state
    learner.generator.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
