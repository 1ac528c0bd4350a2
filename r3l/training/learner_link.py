"""The learner process as the actor process knows it."""

from __future__ import annotations

import time

import torch

from r3l.robot.pacing import keeps_real_time
from r3l.training.parts import Parts
from r3l.training.policy_updates import Subscription
from r3l.training.shared_status import State

MAX_UPDATE_GAP_S = 1.0
"""In real time the actor does not wait for a learner that made no update for longer: it re-encodes or is gone."""


class LearnerLink:
    """The learner's newest weights, and whether the actor must wait for the learner."""

    def __init__(self, parts: Parts) -> None:
        self._status, self._config = parts.status, parts.config
        self._keeps_real_time = keeps_real_time(parts.config, parts.robot)
        path, device = parts.run.acting_weights, torch.device("cpu")
        spec, tell = parts.robot.spec, parts.tell
        self.weights = Subscription(path, parts.config, spec, device, lambda message: tell("weights", message))
        self._counts: dict[str, tuple[float, float]] = {}
        """The value of a counter in the status, and when it changed last, s."""

    def hold(self, steps: int, *, in_episode: bool) -> State | None:
        """Return why the actor must wait for the learner after `steps` env steps; None where it may act."""
        has_explored = steps >= self._config.phases.exploration_steps
        if has_explored and not self.weights.version and not self.weights.is_ready:
            return State.WAITING_FOR_WEIGHTS
        if self._idle_s("learner.progress") > self._config.supervision.learner_away_s:
            return State.LEARNER_AWAY
        if has_explored and self._is_ahead(steps, in_episode):
            return State.WAITING_FOR_LEARNER
        return None

    def _is_ahead(self, steps: int, in_episode: bool) -> bool:
        """Return whether the learner's updates must catch up first.

        In real time the actor waits only between two episodes, and only for a learner that makes updates.
        """
        is_ready = bool(self._status["learner.ready"])
        if self._keeps_real_time:
            is_away = not is_ready or self._idle_s("learner.updates") > MAX_UPDATE_GAP_S
            if is_away or in_episode:
                return False
        if not self._config.update_ratio:
            return False
        learned = self._config.phases.exploration_steps + self._status["learner.updates"] / self._config.update_ratio
        return not is_ready or steps >= learned + self._config.supervision.lead_steps

    def _idle_s(self, slot: str) -> float:
        """Return the seconds since a counter in the status changed."""
        count, now = self._status[slot], time.monotonic()
        if count != self._counts.get(slot, (-1.0, now))[0]:
            self._counts[slot] = (count, now)
        return now - self._counts[slot][1]
