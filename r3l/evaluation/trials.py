"""Make trials: episodes from random starts on any robot, judged from images, kept for a person to mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from r3l.config.errors import UserError
from r3l.evaluation.policies import Behaviour, PerturbationPolicy, TaskPolicy
from r3l.evaluation.rollout import Rollout
from r3l.evaluation.trials_folder import Trial, Trials, TrialsFolder
from r3l.models.judge import Judge, load_judge
from r3l.models.networks import channels_first
from r3l.models.policy import load_policies
from r3l.robot.base import Image, Robot, RobotError, SimulatedRobot
from r3l.run.directory import Run
from r3l.run.goals import load_goals
from r3l.run.progress import progress_bar
from r3l.task.registry import load_task

MAX_TRIES = 5
"""Attempts at a trial if the robot has to pause."""
MAX_PERTURBATIONS = 4
"""Perturbation episodes per start: the success of the trial before must be undone."""


def make_trials(
    rollout: Rollout,
    policies: Mapping[int, Behaviour],
    perturb: Behaviour,
    judge: Judge,
    *,
    count: int,
    rng: np.random.Generator,
    on_trial: Callable[[Trial, list[Image]], None],
) -> None:
    """Make `count` trials of each policy in turns, so that warm motors or evening light favour none.

    Args:
        rollout: the robot.
        policies: by the step of their weights.
        perturb: acts before each trial to make a random start; the same for all policies.
        judge: decides how each trial ended.
        count: trials per policy.
        rng: draws the order of the policies in each turn.
        on_trial: receives each trial and its last images.

    Raises:
        RobotError: the robot cannot go on.
    """
    number = 0
    for _ in range(count):
        for weights in rng.permutation(list(policies)).tolist():
            frames = _perform(rollout, perturb, policies[weights], judge)
            number += 1
            last = judge.config.frames
            ends = [*frames[:1] * last, *frames][-last:]  # checks may have left out most images
            log_odds = judge.end_log_odds(channels_first(np.stack(ends)))
            judged = log_odds >= judge.calibration.threshold
            on_trial(Trial(number, weights, judged, log_odds, _is_solved(judge, frames[:1]), _truth(rollout)), ends)


def _perform(rollout: Rollout, perturb: Behaviour, policy: Behaviour, judge: Judge) -> list[Image]:
    """Perturb until the start is no success, then run a policy; return the images of its episode."""
    for _ in range(MAX_TRIES):
        for _ in range(MAX_PERTURBATIONS):
            rollout.home()
            moved = rollout.episode(perturb, rollout.config.phases.perturbation_steps)
            if moved is None or not _is_solved(judge, moved[-judge.config.frames :]):
                break
        if moved is None:
            continue
        rollout.home()
        frames = rollout.episode(policy, rollout.task.episode_steps)
        if frames is not None:
            return frames
    raise RobotError(f"the robot had to pause in {MAX_TRIES} trials in a row; remove the cause, then start again")


def _is_solved(judge: Judge, frames: list[Image]) -> bool:
    return judge.verdict(channels_first(np.stack(frames)))


def _truth(rollout: Rollout) -> bool | None:
    """Return whether the episode just ended in success; None for a robot without ground truth."""
    robot = rollout.robot
    return robot.truth()["error"] <= rollout.task.success_error if isinstance(robot, SimulatedRobot) else None


def evaluate_by_eye(
    run: Run,
    robot: Robot,
    name: str,
    weights: Sequence[int],
    *,
    count: int,
    seed: int,
    out: Path,
    say: Callable[[str], None],
) -> TrialsFolder:
    """Make `count` trials with each of the published weights on the robot `name`, and keep them in `out`.

    If this ends early, the trials made until then are kept.

    Raises:
        UserError: `out` exists, or the run has no judge yet.
        RobotError: the robot cannot go on.
    """
    config, task = run.config, load_task(run.config.task)
    judge = load_judge(run)
    if judge is None:
        raise UserError(f"{run.folder} has no judge yet: it is fitted when exploration ends; train the run further")
    goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
    device = torch.device("cpu")
    loaded = {step: load_policies(config, robot.spec, run.read_weights(step), device) for step in weights}
    perturb = PerturbationPolicy(loaded[weights[0]], seed)
    folder = TrialsFolder(out)
    folder.create()
    found, ends = Trials(task.name, name, tuple(weights)), list[NDArray[np.uint8]]()
    with (
        Rollout(config, task, robot, goals, say) as rollout,
        progress_bar("evaluate", "trial", count * len(weights)) as bar,
    ):

        def keep(trial: Trial, frames: list[Image]) -> None:
            nonlocal found
            found = replace(found, trials=(*found.trials, trial))
            ends.append(np.stack(frames))
            folder.keep(found, np.stack(ends))
            bar.update()

        policies = {step: TaskPolicy(policies) for step, policies in loaded.items()}
        make_trials(rollout, policies, perturb, judge, count=count, rng=np.random.default_rng(seed), on_trial=keep)
    return folder
