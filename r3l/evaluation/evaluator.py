"""Evaluate a policy from a task's start states in a simulated robot, and compare the judge with the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from r3l.evaluation.episode import run_episode
from r3l.evaluation.policies import Behaviour, DoNothing, RandomPolicy, TaskPolicy
from r3l.evaluation.statistics import EvaluatedEpisode, summarise, verdicts
from r3l.models.judge import load_judge
from r3l.models.policy import load_policies
from r3l.robot.base import FloatArray, SimulatedRobot
from r3l.robot.env import RobotEnv
from r3l.robot.safety import make_safe
from r3l.run.directory import Run
from r3l.run.files import write_file
from r3l.run.progress import progress_bar
from r3l.task.base import Task
from r3l.task.registry import load_task

STARTS, POSE_SEED = 24, 7


class Evaluator:
    """Runs episodes from the task's start states in its own simulated robot, never in the one that trains."""

    def __init__(self, task: Task, robot: SimulatedRobot) -> None:
        self.task, self.spec, self._robot = task, robot.spec, robot
        self._env = RobotEnv(make_safe(robot, task.rig))
        self._env.observe()

    def run(
        self,
        behaviour: Behaviour,
        *,
        count: int = STARTS,
        seed: int = 0,
        on_episode: Callable[[], object] = lambda: None,
    ) -> list[EvaluatedEpisode]:
        """Run `count` episodes; the same seed gives the same starts and finger poses."""
        rng = np.random.default_rng((seed, POSE_SEED))
        episodes = []
        for start in self.task.start_states(count, seed):
            self._env.robot.place(start, rng)
            episodes.append(self._episode(behaviour, start))
            on_episode()
        return episodes

    def close(self) -> None:
        """Release the robot."""
        self._env.close()

    def _episode(self, behaviour: Behaviour, start: FloatArray) -> EvaluatedEpisode:
        frames, errors = [], []
        for seen, _ in run_episode(self._env, behaviour, self.task.episode_steps):
            frames.append(seen.observation.image)
            truth = self._robot.truth()
            errors.append(truth["error"])
        return EvaluatedEpisode(start.tolist(), errors[1:], np.stack(frames), self.task.success_error, truth)


def evaluate_run(
    run: Run, step: int, *, count: int, seed: int, baselines: bool, out: Path, robot: SimulatedRobot
) -> dict[str, Any]:
    """Evaluate published weights and the baselines; print the result, and write it with film strips to `out`.

    `robot` is the run's robot, or another one with the same joints.
    """
    config = run.config
    task = load_task(config.task)
    policies = load_policies(config, robot.spec, run.read_weights(step), torch.device("cpu"))
    behaviours: dict[str, Behaviour] = {"policy": TaskPolicy(policies)}
    if baselines:
        untrained = load_policies(config, robot.spec, run.read_weights(0), torch.device("cpu"))
        behaviours |= {"untrained": TaskPolicy(untrained), "do-nothing": DoNothing(), "random": RandomPolicy(seed)}
    judge = load_judge(run)
    found: dict[str, Any] = {"run": run.folder.name, "task": task.name, "step": step, "unit": task.error_unit}
    episodes: dict[str, list[EvaluatedEpisode]] = {}
    with (
        closing(Evaluator(task, robot)) as evaluator,
        progress_bar("evaluate", "episode", count * len(behaviours)) as bar,
    ):
        for name, behaviour in behaviours.items():
            episodes[name] = evaluator.run(behaviour, count=count, seed=seed, on_episode=bar.update)
            judged = verdicts(judge, episodes[name]) if judge else None
            found[name] = summarise(episodes[name], judged, task.other_thresholds)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "evaluation.json", json.dumps(found, indent=2).encode())
    for index, episode in enumerate(episodes["policy"]):
        write_film(out / f"film-{index:02d}.png", episode)
    print_evaluation(found, list(behaviours))
    print(f"figures: {out / 'evaluation.json'}; films beside them")
    return found


def write_film(path: Path, episode: EvaluatedEpisode, shots: int = 9) -> None:
    """Write evenly spaced frames of an episode side by side, from the first to the last."""
    chosen = np.linspace(0, len(episode.frames) - 1, shots).round().astype(int)
    PIL.Image.fromarray(np.concatenate(list(episode.frames[chosen]), axis=1)).save(path)


def print_evaluation(found: dict[str, Any], names: Sequence[str]) -> None:
    """Print a table of the policy's starts, then the success of each behaviour."""
    print(f"{'start':>8} {'success':>8} {'final error':>12} {'steps':>6} {'judged':>7}   ({found['unit']})")
    for entry in found["policy"]["starts"]:
        start = " ".join(f"{value:.2f}" for value in entry["start"])
        judged = {True: "yes", False: "no", None: "-"}[entry.get("judged_success")]
        steps = entry["steps_to_success"] or "-"
        verdict = "yes" if entry["success"] else "no"
        print(f"{start:>8} {verdict:>8} {entry['final_error']:>12.3f} {steps:>6} {judged:>7}")
    for name in names:
        summary = found[name]
        low, high = summary["success_interval"]
        print(
            f"{name}: success {summary['success']:.2f} (95% interval {low:.2f} to {high:.2f}, {summary['episodes']} "
            f"episodes), median final error {summary['median_final_error']:.3f} {found['unit']}"
            + "".join(f", {share:.2f} within {limit} {found['unit']}" for limit, share in summary["success_at"].items())
        )
    judge = found["policy"].get("judge")
    if judge:
        print(
            f"judge: success {judge['judged_success']:.2f}; right {judge['true_positive'] + judge['true_negative']}, "
            f"false alarms {judge['false_positive']}, missed {judge['false_negative']}"
        )
