"""What watches a run: the success curve, the numbers, the reward's health, the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from r3l.config import Config
from r3l.evaluate import Evaluator, TaskPolicy, load_judge, summarise, verdicts
from r3l.goals import Goals
from r3l.health import RewardHealth
from r3l.jsonl import append_jsonl, read_jsonl
from r3l.learner import Learner
from r3l.metrics import MetricsWriter
from r3l.networks import channels_first
from r3l.policy import load_policies
from r3l.registry import load_task, robot_of
from r3l.robot import SimulatedRobot
from r3l.run import Run

if TYPE_CHECKING:
    from r3l.train import Training

METRICS_EVERY = 250


class Watcher(Protocol):
    """Something that watches a run; the loop does not know what it does."""

    def on_step(self, step: int) -> None:
        """Called after each env step and its updates."""
        ...

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Called with the metrics of some updates."""
        ...


class Learning(Protocol):
    """What learns, in whatever process."""

    run: Run
    config: Config
    goals: Goals
    learner: Learner


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
    twin = robot_of(run)
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


class Numbers:
    """Watches a run: metrics of updates, the reward of the newest steps, the safety counters, a progress bar."""

    def __init__(self, training: Training, metrics: MetricsWriter, bar: tqdm[Any]) -> None:
        self._training, self._metrics, self._bar = training, metrics, bar

    def on_step(self, step: int) -> None:
        """Move the bar; now and then write the numbers."""
        self._bar.update(step - self._bar.n)
        if step % METRICS_EVERY == 0:
            counts = {f"safety/{name}": float(count) for name, count in self._training.safe.counts().items()}
            self._metrics.add(counts | self._training.learner.reward_check())
        self._metrics.on_step(step)

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Take in metrics."""
        self._metrics.add(metrics)


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


class Checkpoints:
    """Watches a run: writes a checkpoint at the configured steps."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_step(self, step: int) -> None:
        """Save when it is time."""
        if step % self._training.config.checkpoint_every == 0:
            self._training.save()

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Nothing to keep."""
