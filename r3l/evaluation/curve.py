"""TODO r3l/evaluation/curve.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.policies import TaskPolicy
from r3l.evaluation.statistics import summarise, verdicts
from r3l.models.judge import load_judge
from r3l.models.policy import load_policies
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.jsonl import append_jsonl
from r3l.run.metrics import MetricsWriter
from r3l.task.registry import load_task, robot_of

if TYPE_CHECKING:
    from r3l.training.sync import Training


class Curves:
    """Watches a run: publishes weights, evaluates them in a second simulated robot, keeps the success curve."""

    def __init__(self, training: Training, metrics: MetricsWriter) -> None:
        self._training, self._metrics = training, metrics
        self._every = training.config.evaluate_every
        self._evaluator: Evaluator | None = None
        if self._every and isinstance(training.robot, SimulatedRobot):
            self._evaluator = make_evaluator(training.run)

    def on_step(self, step: int) -> None:
        """Publish and evaluate when it is time."""
        if self._every and step % self._every == 0:
            self.evaluate()

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Nothing to keep."""

    def evaluate(self) -> None:
        """Publish the weights and evaluate the published file."""
        training = self._training
        step = training.publish()
        if self._evaluator is None:
            return
        summary = evaluate_snapshot(training.run, step, self._evaluator)
        shown = {"evaluation/success": summary["success"], "evaluation/error": summary["median_final_error"]}
        if "judge" in summary:
            shown["evaluation/judged_success"] = summary["judge"]["judged_success"]
        self._metrics.write(step, shown)

    def close(self) -> None:
        """Release the second robot."""
        if self._evaluator is not None:
            self._evaluator.close()


def make_evaluator(run: Run) -> Evaluator:
    """Return what evaluates a run's weights, in a simulated robot of its own."""
    task = load_task(run.config.task)
    twin = robot_of(run.config, run.rig)
    assert isinstance(twin, SimulatedRobot)
    return Evaluator(task, twin)


def evaluate_snapshot(run: Run, step: int, evaluator: Evaluator) -> dict[str, Any]:
    """Evaluate the weights published at `step`, and append what was found to the success curve."""
    task, spec = evaluator.task, evaluator.spec
    policies = load_policies(run.config, spec, run.read_weights(step), torch.device("cpu"))
    episodes = evaluator.run(TaskPolicy(policies))
    judge = load_judge(run)
    judged = verdicts(judge, episodes) if judge else None
    summary = summarise(episodes, judged, task.other_thresholds)
    append_jsonl(run.evaluations, {"step": step} | summary)
    tqdm.write(f"step {step}: success {summary['success']:.2f} from {len(episodes)} starts")
    return summary
