"""Evaluated episodes and their statistics: success with its interval, and the judge compared with the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from r3l.models.judge import Judge
from r3l.models.networks import channels_first
from r3l.robot.base import Truth


@dataclass(frozen=True)
class EvaluatedEpisode:
    """One episode of an evaluation, with its ground truth."""

    start: list[float]
    """The object's state at the start."""
    errors: list[float]
    """True error after each env step, in the task's unit."""
    frames: NDArray[np.uint8]
    """[T + 1, H, W, 3]."""
    threshold: float
    """Largest error of a success."""
    truth: Truth = field(default_factory=dict)
    """Ground truth at the end, with the parts of the error."""

    @property
    def final_error(self) -> float:
        """True error at the end."""
        return self.errors[-1]

    @property
    def success(self) -> bool:
        """Whether the episode ended in success."""
        return self.final_error <= self.threshold

    @property
    def steps_to_success(self) -> int | None:
        """Env steps until the error stayed within the threshold; None if it did not."""
        missed = [step for step, error in enumerate(self.errors, 1) if error > self.threshold]
        steps = (missed[-1] if missed else 0) + 1
        return steps if steps <= len(self.errors) else None


def summarise(
    episodes: Sequence[EvaluatedEpisode], verdicts: Sequence[bool] | None = None, thresholds: Sequence[float] = ()
) -> dict[str, Any]:
    """Return the result of an evaluation as JSON values.

    `success_interval` is the 95% Wilson interval, `success_at` the success at other `thresholds` of the final error,
    `judge` the confusion matrix of the judge's verdicts and the truth.
    """
    successes = [episode.success for episode in episodes]
    summary: dict[str, Any] = {
        "episodes": len(episodes),
        "success": float(np.mean(successes)),
        "success_interval": wilson(successes),
        "success_at": {
            f"{threshold:g}": float(np.mean([episode.final_error <= threshold for episode in episodes]))
            for threshold in thresholds
        },
        "median_final_error": float(np.median([episode.final_error for episode in episodes])),
        "starts": [
            {
                "start": episode.start,
                "success": episode.success,
                "final_error": episode.final_error,
                "steps_to_success": episode.steps_to_success,
                "truth": episode.truth,
            }
            for episode in episodes
        ],
    }
    if verdicts is not None:
        for entry, verdict in zip(summary["starts"], verdicts, strict=True):
            entry["judged_success"] = verdict
        summary["judge"] = confusion(successes, verdicts)
    return summary


def wilson(successes: Sequence[bool]) -> list[float]:
    """Return the 95% Wilson interval of a share of successes."""
    interval = binomtest(sum(successes), len(successes)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def confusion(successes: Sequence[bool], verdicts: Sequence[bool]) -> dict[str, float | int | None]:
    """Return the judge's counts against the truth, and its balanced accuracy (None with one class alone)."""
    pairs = list(zip(successes, verdicts, strict=True))
    counts = {
        "true_positive": sum(s and v for s, v in pairs),
        "false_positive": sum(not s and v for s, v in pairs),
        "true_negative": sum(not s and not v for s, v in pairs),
        "false_negative": sum(s and not v for s, v in pairs),
    }
    positives, negatives = sum(successes), len(successes) - sum(successes)
    balanced = None
    if positives and negatives:
        balanced = (counts["true_positive"] / positives + counts["true_negative"] / negatives) / 2
    return counts | {"judged_success": sum(verdicts) / len(verdicts), "balanced_accuracy": balanced}


def verdicts(judge: Judge, episodes: Sequence[EvaluatedEpisode]) -> list[bool]:
    """Return the judge's verdict on the end of each episode."""
    return [judge.verdict(channels_first(episode.frames[-judge.config.frames :])) for episode in episodes]


def difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Return the difference of two success rates and its 95% interval: difference, low, high.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    p, (p_low, p_high) = float(np.mean(first)), wilson(first)
    q, (q_low, q_high) = float(np.mean(second)), wilson(second)
    apart = p - q
    return apart, apart - math.hypot(p - p_low, q_high - q), apart + math.hypot(p_high - p, q - q_low)
