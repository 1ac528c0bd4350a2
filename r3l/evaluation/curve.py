"""The success curve: evaluations of a run's snapshots."""

from __future__ import annotations

import torch
from tqdm import tqdm

from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.policies import TaskPolicy
from r3l.evaluation.statistics import summarise, verdicts
from r3l.models.judge import load_judge
from r3l.models.policy import load_policies
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.jsonl import append_jsonl
from r3l.task.registry import load_task, robot_of


class SuccessCurve:
    """Evaluates snapshots of a run in a simulated robot of its own; call `close` at the end."""

    def __init__(self, run: Run) -> None:
        """Build the robot of `run`, which must be simulated."""
        twin = robot_of(run.config, run.rig)
        assert isinstance(twin, SimulatedRobot)
        self._run, self._evaluator = run, Evaluator(load_task(run.config.task), twin)

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the snapshot of `step`, append the result to the curve, and return its metrics."""
        run, task = self._run, self._evaluator.task
        policies = load_policies(run.config, self._evaluator.spec, run.read_weights(step), torch.device("cpu"))
        episodes = self._evaluator.run(TaskPolicy(policies))
        judge = load_judge(run)
        summary = summarise(episodes, verdicts(judge, episodes) if judge else None, task.other_thresholds)
        append_jsonl(run.evaluations, {"step": step} | summary)
        tqdm.write(f"step {step}: success {summary['success']:.2f} from {len(episodes)} starts")
        metrics = {"evaluation/success": summary["success"], "evaluation/error": summary["median_final_error"]}
        if "judge" in summary:
            metrics["evaluation/judged_success"] = summary["judge"]["judged_success"]
        return metrics

    def close(self) -> None:
        """Release the robot."""
        self._evaluator.close()
