"""The judge's verdicts on the newest task episodes, from images alone."""

from __future__ import annotations

from collections import deque

import torch

from r3l.learner.replay import Replay
from r3l.models.judge import Judge

NEWEST = 20
"""Episodes per average."""


class JudgedEpisodes:
    """Follows a replay and judges each task episode once the row after its end has arrived."""

    def __init__(self, replay: Replay, judge: Judge) -> None:
        """Judge episodes that end from now on."""
        self._replay, self._judge = replay, judge
        self._seen = replay.added
        self._verdicts: deque[bool] = deque(maxlen=NEWEST)

    def follow(self) -> None:
        """Judge the episodes that ended since the last call."""
        replay = self._replay
        self._seen = min(max(self._seen, replay.added - len(replay) + 1), replay.added)
        for row in range(self._seen, replay.added):
            phase, step = replay.label(row)
            before, steps = replay.label(row - 1)
            if before == "task" and (step == 0 or phase != "task") and steps >= self._judge.config.frames:
                last = torch.arange(row - self._judge.config.frames, row) % replay.capacity
                self._verdicts.append(self._judge.verdict(replay.images[last]))
        self._seen = replay.added

    def metrics(self) -> dict[str, float]:
        """Return the share of success among the newest episodes; nothing before the first."""
        if not self._verdicts:
            return {}
        return {"judged/episode_success": sum(self._verdicts) / len(self._verdicts)}
