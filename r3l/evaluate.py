"""Evaluate a policy from a task's start states in a simulated world, and the judge beside the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from r3l.actor import HOLD_STEPS
from r3l.checkpoint import write_file
from r3l.env import RobotEnv
from r3l.judge import Judge
from r3l.networks import channels_first
from r3l.policy import Policies, load_policies
from r3l.progress import progress_bar
from r3l.registry import load_task
from r3l.robot import FloatArray, Image, SimulatedRobot, Truth
from r3l.run import Run
from r3l.safety import SafeRobot
from r3l.task import Task

STARTS, POSE_SEED = 24, 7


class Behaviour(Protocol):
    """Something that acts for an episode."""

    def begin(self) -> None:
        """Forget the last episode."""
        ...

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Take in an observation."""
        ...

    def choose(self) -> FloatArray:
        """Return an action [A] in [-1, 1]."""
        ...


class TaskPolicy:
    """The learned task policy, deterministic."""

    def __init__(self, policies: Policies) -> None:
        self.begin, self.see, self._policies = policies.begin, policies.see, policies

    def choose(self) -> FloatArray:
        """Return the mean action."""
        return self._policies.act("task")


class DoNothing:
    """Baseline: hold the pose that the episode began with."""

    def __init__(self) -> None:
        self._pose: FloatArray | None = None

    def begin(self) -> None:
        """Forget the pose."""
        self._pose = None

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Keep the first pose."""
        if self._pose is None:
            self._pose = np.clip(proprioception, -1, 1)

    def choose(self) -> FloatArray:
        """Return the first pose."""
        assert self._pose is not None
        return self._pose


class RandomPolicy:
    """Baseline: uniformly random targets, each held as long as in exploration."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._step, self._action = 0, np.zeros(0, np.float32)

    def begin(self) -> None:
        """Draw anew."""
        self._step = 0

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Learn the number of joints."""
        if self._step % HOLD_STEPS == 0:
            self._action = self._rng.uniform(-1, 1, applied.shape).astype(np.float32)
        self._step += 1

    def choose(self) -> FloatArray:
        """Return the held action."""
        return self._action


@dataclass(frozen=True)
class Episode:
    """One evaluation episode."""

    start: list[float]
    """The object's state at the start."""
    errors: list[float]
    """True error after each env step, in the task's unit."""
    frames: NDArray[np.uint8]
    """[T + 1, H, W, 3]."""
    threshold: float
    """Largest error of a success."""
    truth: Truth = field(default_factory=dict)
    """All that is true at the end, the parts of the error among it."""

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
        """Env steps until the error came, and stayed, within the threshold; None where it did not."""
        missed = [step for step, error in enumerate(self.errors, 1) if error > self.threshold]
        steps = (missed[-1] if missed else 0) + 1
        return steps if steps <= len(self.errors) else None


class Evaluator:
    """Runs episodes from the task's start states in a simulated robot of its own, never the one that trains."""

    def __init__(self, task: Task, robot: SimulatedRobot) -> None:
        rig = task.rig
        self.task, self.spec, self._robot = task, robot.spec, robot
        self._env = RobotEnv(SafeRobot(robot, rig.limits, rig.max_step_rad))
        self._env.reset()

    def run(
        self, behaviour: Behaviour, *, count: int = STARTS, seed: int = 0, on_episode: Callable[[], None] = lambda: None
    ) -> list[Episode]:
        """Run `count` episodes; the same seed gives the same starts and finger poses."""
        rng = np.random.default_rng((seed, POSE_SEED))
        episodes = []
        for start in self.task.start_states(count, seed):
            self._robot.place(start, rng)
            self._env.robot.forget()
            episodes.append(self._episode(behaviour, start))
            on_episode()
        return episodes

    def close(self) -> None:
        """Release the robot."""
        self._env.close()

    def _episode(self, behaviour: Behaviour, start: FloatArray) -> Episode:
        observed, info = self._env.reset()
        behaviour.begin()
        frames, errors = [observed["image"]], []
        joints = len(info["applied"])
        for _ in range(self.task.episode_steps):
            proprioception = observed["proprioception"][:joints]
            behaviour.see(observed["image"], proprioception, info["applied"], info["diagnostic"])
            observed, _, _, _, info = self._env.step(behaviour.choose())
            frames.append(observed["image"])
            truth = self._robot.truth()
            errors.append(truth["error"])
        return Episode(start.tolist(), errors, np.stack(frames), self.task.success_error, truth)


def summarise(
    episodes: Sequence[Episode], verdicts: Sequence[bool] | None = None, thresholds: Sequence[float] = ()
) -> dict[str, Any]:
    """Return what an evaluation found, as JSON values.

    `success_interval` is the 95% Wilson interval; `success_at` the success at other `thresholds` of the final error;
    `judge` the confusion of the judge's verdicts with the truth.
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


def evaluate_run(
    run: Run, step: int, *, count: int, seed: int, baselines: bool, out: Path, robot: SimulatedRobot
) -> dict[str, Any]:
    """Evaluate published weights beside the baselines; print, and write evaluation.json and film strips to `out`.

    On the run's robot, or on another one with the same joints.
    """
    config = run.config
    task = load_task(config.task)
    policies = load_policies(config, robot.spec, run.read_weights(step), torch.device("cpu"))
    behaviours: dict[str, Behaviour] = {"policy": TaskPolicy(policies)}
    if baselines:
        untrained = load_policies(config, robot.spec, run.read_weights(0), torch.device("cpu"))
        behaviours |= {
            "untrained": TaskPolicy(untrained),
            "do-nothing": DoNothing(),
            "random": RandomPolicy(seed),
        }
    judge = load_judge(run)
    found: dict[str, Any] = {"run": run.folder.name, "task": task.name, "step": step, "unit": task.error_unit}
    evaluator = Evaluator(task, robot)
    try:
        with progress_bar("evaluate", "episode", count * len(behaviours)) as bar:
            for name, behaviour in behaviours.items():
                episodes = evaluator.run(behaviour, count=count, seed=seed, on_episode=lambda: bar.update() and None)
                judged = verdicts(judge, episodes) if judge else None
                found[name] = summarise(episodes, judged, task.other_thresholds)
                if name == "policy":
                    learned = episodes
    finally:
        evaluator.close()
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "evaluation.json", json.dumps(found, indent=2).encode())
    for index, episode in enumerate(learned):
        write_film(out / f"film-{index:02d}.png", episode)
    print_evaluation(found, list(behaviours))
    print(f"figures: {out / 'evaluation.json'}; films beside them")
    return found


def load_judge(run: Run) -> Judge | None:
    """Return the run's judge, None before it is made."""
    return Judge.load(run.judge) if run.judge.exists() else None


def verdicts(judge: Judge, episodes: Sequence[Episode]) -> list[bool]:
    """Return the judge's verdict on the end of each episode."""
    return [judge.verdict(channels_first(episode.frames[-judge.config.frames :])) for episode in episodes]


def write_film(path: Path, episode: Episode, shots: int = 9) -> None:
    """Write evenly spaced frames of an episode side by side, first and last among them."""
    chosen = np.linspace(0, len(episode.frames) - 1, shots).round().astype(int)
    PIL.Image.fromarray(np.concatenate(list(episode.frames[chosen]), axis=1)).save(path)


def print_evaluation(found: dict[str, Any], names: Sequence[str]) -> None:
    """Print the table of an evaluation, the policy's starts first."""
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
