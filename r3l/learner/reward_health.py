"""Reward health: whether the success classifier still ranks goal images above other frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from r3l.config.schema import HealthConfig
from r3l.learner.learner import Learner
from r3l.models.judge import Judge

Scores = NDArray[np.float64]
MAX_OTHER, MAX_NEWEST = 400, 250
"""Frames of exploration, and newest frames, that are scored per check."""


@dataclass(frozen=True)
class Check:
    """One check of the success classifier: mean probabilities of success, and how well they rank."""

    held_out: float
    """Mean over the held-out goal images."""
    elsewhere: float
    """Mean over frames of exploration, or of perturbation if the replay has none of exploration."""
    auc: float
    average_precision: float
    rewarded: float
    """Share of the newest frames that score at least half of the mean over held-out goal images."""


def check(goals: Scores, elsewhere: Scores, newest: Scores) -> Check:
    """Compare the scores of held-out goal images [N] with those of other frames [M] and of the newest frames [K]."""
    labels = np.concatenate([np.ones(len(goals)), np.zeros(len(elsewhere))])
    scores = np.concatenate([goals, elsewhere])
    return Check(
        held_out=float(goals.mean()),
        elsewhere=float(elsewhere.mean()),
        auc=float(roc_auc_score(labels, scores)),
        average_precision=float(average_precision_score(labels, scores)),
        rewarded=float((newest >= 0.5 * goals.mean()).mean()),
    )


def problems(found: Check, best_held_out: float, config: HealthConfig) -> dict[str, str]:
    """Return the messages of the limits that a check exceeds, by name; none for a healthy reward."""
    wrong = {}
    advice = "the task policy learns from a wrong reward: look at the goal images, see r3l report"
    if found.auc < config.min_auc:
        wrong["ranking"] = (
            f"the classifier ranks held-out goal images hardly above other frames: ROC-AUC {found.auc:.2f}, expected "
            f"at least {config.min_auc:.2f} (health.min_auc); {advice}"
        )
    if found.held_out < config.min_score * best_held_out:
        wrong["score"] = (
            f"the score of held-out goal images fell to {found.held_out:.2f} from {best_held_out:.2f}, expected at "
            f"least {config.min_score:.2f} of it (health.min_score); {advice}"
        )
    if found.elsewhere > config.max_elsewhere * found.held_out:
        wrong["everything"] = (
            f"the classifier takes everything for success: {found.elsewhere:.2f} for other frames, "
            f"{found.held_out:.2f} for held-out goal images, expected at most {config.max_elsewhere:.2f} of it "
            f"(health.max_elsewhere); {advice}"
        )
    return wrong


class RewardHealth:
    """Checks the success classifier. Each problem is told once when it begins and once when it is over.

    A check draws no random number, so that it changes no weight.
    """

    def __init__(
        self, learner: Learner, held_out: Tensor, config: HealthConfig, tell: Callable[[str, str], None]
    ) -> None:
        """Check `learner` with held-out goal images, uint8 [N, 3, H, W]; `tell(kind, message)` writes an event."""
        self._learner, self._held_out, self._config, self._tell = learner, held_out, config, tell
        self._best = 0.0
        self._was_well = False
        self._wrong: set[str] = set()

    def recall(self, past: Iterable[Mapping[str, float]]) -> None:
        """Continue after the checks of an earlier process: lines of metrics as `measure` returned them, with steps."""
        for line in past:
            found = Check(**{name: line[f"health/{name}"] for name in Check.__dataclass_fields__})
            self._judge(found, line["step"] >= self._config.grace_steps, lambda kind, message: None)

    def is_due(self, step: int) -> bool:
        """Return whether to check after this env step."""
        every = self._config.check_every
        learns = self._learner.is_pretrained and self._learner.config.reward == "classifier"
        return bool(every) and learns and step % every == 0

    def measure(self, judge: Judge | None = None) -> dict[str, float]:
        """Check the classifier, tell what changed, and return the metrics."""
        learner, replay = self._learner, self._learner.replay
        rows = replay.rows_of("exploration")
        if not len(rows):
            rows = replay.rows_of("perturbation")
        others = rows[torch.linspace(0, len(rows) - 1, min(MAX_OTHER, len(rows))).long()]
        newest = replay.newest(MAX_NEWEST)
        found = check(
            _array(learner.success_of_images(self._held_out)),
            _array(learner.rewards.success(others)),
            _array(learner.rewards.success(newest)),
        )
        had_time = learner.updates >= self._config.grace_steps * learner.config.update_ratio
        self._judge(found, had_time, self._tell)
        metrics = {f"health/{name}": value for name, value in vars(found).items()}
        if judge is not None:
            metrics["health/judged_success"] = float(judge.accepts(replay.images[newest]).float().mean())
        return metrics

    def _judge(self, found: Check, had_time: bool, tell: Callable[[str, str], None]) -> None:
        """Tell which problems began and which are over, once the reward was healthy or had its time to become so."""
        self._best = max(self._best, found.held_out)
        wrong = problems(found, self._best, self._config)
        self._was_well |= not wrong
        if not (self._was_well or had_time):
            return
        for name in sorted(wrong.keys() - self._wrong):
            tell(f"reward-{name}", wrong[name])
        for name in sorted(self._wrong - wrong.keys()):
            tell(f"reward-{name}", "over: the check passes again")
        self._wrong = set(wrong)


def _array(scores: Tensor) -> Scores:
    array: Scores = scores.cpu().numpy().astype(np.float64)
    return array
