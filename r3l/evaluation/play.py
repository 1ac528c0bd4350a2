"""Play a learned task policy on a robot, from a run or from an exported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from r3l.config.errors import UserError
from r3l.evaluation.export import Exported, read_exported
from r3l.evaluation.policies import TaskPolicy
from r3l.evaluation.rollout import Rollout
from r3l.models.judge import Judge, load_judge
from r3l.models.networks import channels_first
from r3l.models.policy import load_policies
from r3l.robot.base import RobotSpec
from r3l.run.directory import Run
from r3l.run.goals import Goals, GoalsMeta, load_goals
from r3l.task.registry import load_robot, load_task


@dataclass(frozen=True)
class Playable:
    """A policy that can be played."""

    exported: Exported
    judge: Judge | None = None
    """Decides how each episode ended; an exported file has none."""


def exported_of(run: Run, step: int) -> Exported:
    """Return a run's policy as an exported file holds it."""
    task = load_task(run.config.task)
    rig = task.rig
    spec = RobotSpec(rig.limits, rig.control_hz, rig.camera)
    goals = load_goals(run.goals, rig.camera, task.minimum_goals).train
    return Exported(run.config, step, spec, rig.max_step_rad, torch.from_numpy(goals), run.read_weights(step))


def open_run(run: Run, step: int) -> Playable:
    """Return a run's published policy; CheckpointError if it cannot be used."""
    return Playable(exported_of(run, step), load_judge(run))


def open_policy(path: Path, task: str | None = None) -> Playable:
    """Return the policy of an exported file, for `task` or for the file's own task.

    Raises:
        CheckpointError: the file cannot be used.
        UserError: the file's task is a Python file, and `task` is None: reading a policy never runs code it names.
    """
    exported = read_exported(path)
    config = exported.config
    if task is None and config.task.endswith(".py"):
        raise UserError(f"the policy's task is the file {config.task!r}, which would be run; name yours with --task")
    return Playable(replace(exported, config=replace(config, task=task or config.task)))


def play(playable: Playable, robot: str | None, rig: Path | None, episodes: int, say: Callable[[str], None]) -> None:
    """Let a policy act on a robot, episode after episode.

    Args:
        playable: the policy.
        robot: name of a robot; None for the one that the policy was trained on.
        rig: rig file of the robot; None for a robot without one.
        episodes: number of episodes; 0: until interrupted.
        say: tells people how each episode ended.

    Raises:
        UserError: the robot is not like the one that the policy was trained on.
        RobotError: a check fails and does not recover.
    """
    exported, judge = playable.exported, playable.judge
    config, task = exported.config, load_task(exported.config.task)
    is_diagnostic = "diagnostic" in config.state
    body = load_robot(robot or config.robot, task, diagnostic=is_diagnostic, rig=rig)
    policies = load_policies(config, body.spec, exported.weights, torch.device("cpu"))
    found = RobotSpec(task.rig.limits, task.rig.control_hz, task.rig.camera)
    if found != exported.spec:
        raise UserError(
            f"the policy was trained on {_described(exported.spec)}, task {task.name!r} has {_described(found)}, "
            "or other joint limits; use the task that it was trained on"
        )
    images = exported.goals.numpy()
    meta = GoalsMeta(1, task.name, config.robot, images.shape[1:3], len(images), 0, "exported")
    with Rollout(config, task, body, Goals(images, images[:0], meta), say) as rollout:
        say(f"{task.name}: weights of step {exported.step}; Ctrl-C relaxes the robot and ends")
        for number in count(1):
            frames = None
            while frames is None:
                rollout.home()
                frames = rollout.episode(TaskPolicy(policies), task.episode_steps)
            say(f"episode {number}: " + _ending(judge, channels_first(np.stack(frames))))
            if number == episodes:
                return


def _ending(judge: Judge | None, frames: torch.Tensor) -> str:
    if judge is None:
        return "done"
    return "judged a success" if judge.verdict(frames) else "judged no success"


def _described(spec: RobotSpec) -> str:
    return f"{len(spec.joints)} joints, {spec.camera.width}x{spec.camera.height} px, {spec.control_hz:g} Hz"
