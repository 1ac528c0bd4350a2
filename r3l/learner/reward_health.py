"""Reward health: whether the success classifier still tells success from anything else, and an event when not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from tqdm import tqdm

from r3l.config.schema import Config, HealthConfig
from r3l.learner.learner import Learner
from r3l.models.judge import Judge, load_judge
from r3l.models.networks import channels_first
from r3l.run.directory import Run
from r3l.run.goals import Goals
from r3l.run.jsonl import read_jsonl
from r3l.run.metrics import MetricsWriter

Scores = NDArray[np.float64]
REFERENCE, NEWEST = 400, 250
"""How many frames stand for `anything else`, and how many for what the robot does now."""


@dataclass(frozen=True)
class Check:
    """One look at the success classifier: probabilities of success, and how well they rank."""

    held_out: float
    """Mean over the held-out goal images."""
    elsewhere: float
    """Mean over frames of exploration, or of perturbation where the replay forgot exploration."""
    auc: float
    average_precision: float
    rewarded: float
    """Share of the newest frames that score at least half as high as held-out goal images do."""


def check(goals: Scores, elsewhere: Scores, newest: Scores) -> Check:
    """Measure the scores of held-out goal images [N] against those of other frames [M] and of the newest ones [K]."""
    labels = np.concatenate([np.ones(len(goals)), np.zeros(len(elsewhere))])
    scores = np.concatenate([goals, elsewhere])
    return Check(
        held_out=float(goals.mean()),
        elsewhere=float(elsewhere.mean()),
        auc=float(roc_auc_score(labels, scores)),
        average_precision=float(average_precision_score(labels, scores)),
        rewarded=float((newest >= 0.5 * goals.mean()).mean()),
    )


def ailments(found: Check, best_held_out: float, config: HealthConfig) -> dict[str, str]:
    """Return what is wrong by name, each with its figures and what to do; nothing for a healthy reward."""
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
    """Looks at the success classifier now and then; says so once when something goes wrong, and when it is over.

    Draws no random number, so that looking changes nothing.
    """

    def __init__(
        self,
        learner: Learner,
        held_out: Tensor,
        config: HealthConfig,
        on_event: Callable[[str, str], None],
    ) -> None:
        """Watch `learner` with the held-out goal images: uint8 [N, 3, H, W]."""
        self._learner, self._held_out, self._config, self._on_event = learner, held_out, config, on_event
        self._best = 0.0
        self._was_well = False
        self._wrong: set[str] = set()

    def recall(self, past: Iterable[Mapping[str, float]]) -> None:
        """Take up what an earlier process measured: lines of metrics, as `look` returned them, each with its step."""
        for line in past:
            found = Check(**{name: line[f"health/{name}"] for name in Check.__dataclass_fields__})
            self._judge(found, line["step"] >= self._config.grace_steps, lambda kind, message: None)

    def is_due(self, step: int) -> bool:
        """Return whether to look at this env step."""
        every = self._config.check_every
        learns = self._learner.is_pretrained and self._learner.config.reward == "classifier"
        return bool(every) and learns and step % every == 0

    def look(self, judge: Judge | None = None) -> dict[str, float]:
        """Measure, raise events, return the metrics."""
        learner = self._learner
        elsewhere = learner.replay.rows_of("exploration")
        if not len(elsewhere):
            elsewhere = learner.replay.rows_of("perturbation")
        chosen = elsewhere[torch.linspace(0, len(elsewhere) - 1, min(REFERENCE, len(elsewhere))).long()]
        newest = learner.replay.newest(NEWEST)
        found = check(
            _array(learner.success_of_images(self._held_out)),
            _array(learner.rewards.success(chosen)),
            _array(learner.rewards.success(newest)),
        )
        had_time = learner.updates >= self._config.grace_steps * learner.config.update_ratio
        self._judge(found, had_time, self._on_event)
        metrics = {f"health/{name}": value for name, value in vars(found).items()}
        if judge is not None:
            metrics["health/judged_success"] = float(judge.accepts(learner.replay.images[newest]).float().mean())
        return metrics

    def _judge(self, found: Check, had_time: bool, tell: Callable[[str, str], None]) -> None:
        """Tell what began to be wrong and what is over, once the reward was well or had its time to become so."""
        self._best = max(self._best, found.held_out)
        wrong = ailments(found, self._best, self._config)
        self._was_well |= not wrong
        if not (self._was_well or had_time):
            return
        for name in sorted(wrong.keys() - self._wrong):
            tell(f"reward-{name}", wrong[name])
        for name in sorted(self._wrong - wrong.keys()):
            tell(f"reward-{name}", "over: the check passes again")
        self._wrong = set(wrong)


def _array(scores: Tensor) -> Scores:
    found: Scores = scores.cpu().numpy().astype(np.float64)
    return found


class Learning(Protocol):
    """What learns, in whatever process."""

    run: Run
    config: Config
    goals: Goals
    learner: Learner


class Health:
    """Watches a run: looks after the learned reward, and tells the run's events when it drifts."""

    def __init__(self, training: Learning, metrics: MetricsWriter) -> None:
        self._run, self._metrics = training.run, metrics
        held_out = channels_first(training.goals.held_out)
        self._health = RewardHealth(training.learner, held_out, training.config.health, self._tell)
        self._health.recall(line for line in read_jsonl(training.run.metrics) if "health/auc" in line)

    def on_step(self, step: int) -> None:
        """Look when it is time."""
        if self._health.is_due(step):
            self._metrics.write(step, self._health.look(load_judge(self._run)))

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Nothing to keep."""

    def _tell(self, kind: str, message: str) -> None:
        self._run.event(kind, message)
        tqdm.write(f"{kind}: {message}")
