"""Trials: episodes from random starts on any robot, judged from images, kept for a person to mark."""

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
"""Times that a trial is begun anew because the robot had to pause."""
MAX_PERTURBATIONS = 4
"""Perturbation episodes that may make a start: a success of the trial before must be undone first."""


def make_trials(
    stage: Rollout,
    policies: Mapping[int, Behaviour],
    perturb: Behaviour,
    judge: Judge,
    *,
    count: int,
    rng: np.random.Generator,
    on_trial: Callable[[Trial, list[Image]], None],
) -> None:
    """Make `count` trials of each policy, taking turns, so that none has the warmer motors or the evening light.

    Args:
        stage: where they are made.
        policies: by the step of their weights.
        perturb: acts before each trial, whoever's it is: that is the random start.
        judge: says how each ended.
        count: of each policy.
        rng: draws who comes first in each turn.
        on_trial: takes a trial and its last images.

    Raises:
        RobotError: the robot cannot go on.
    """
    number = 0
    for _ in range(count):
        for weights in rng.permutation(list(policies)).tolist():
            frames = _perform(stage, perturb, policies[weights], judge)
            number += 1
            last = judge.config.frames
            ends = [*frames[:1] * last, *frames][-last:]  # checks may have left most of them out
            log_odds = judge.end_log_odds(channels_first(np.stack(ends)))
            judged = log_odds >= judge.calibration.threshold
            on_trial(Trial(number, weights, judged, log_odds, _is_solved(judge, frames[:1]), _truth(stage)), ends)


def _perform(stage: Rollout, perturb: Behaviour, policy: Behaviour, judge: Judge) -> list[Image]:
    """Perturb, again where that leaves a success, then let a policy act; return what was seen."""
    for _ in range(MAX_TRIES):
        for _ in range(MAX_PERTURBATIONS):
            stage.home()
            moved = stage.episode(perturb, stage.config.phases.perturbation_steps)
            if moved is None or not _is_solved(judge, moved[-judge.config.frames :]):
                break
        if moved is None:
            continue
        stage.home()
        frames = stage.episode(policy, stage.task.episode_steps)
        if frames is not None:
            return frames
    raise RobotError(f"the robot had to pause in {MAX_TRIES} trials in a row; see what was said, mend it, begin again")


def _is_solved(judge: Judge, frames: list[Image]) -> bool:
    return judge.verdict(channels_first(np.stack(frames)))


def _truth(stage: Rollout) -> bool | None:
    """Return whether an episode just ended in success, where ground truth can be known."""
    robot = stage.robot
    return robot.truth()["error"] <= stage.task.success_error if isinstance(robot, SimulatedRobot) else None


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
    """Make `count` trials with each of the published weights on a robot of this name, and keep them in `out`.

    Whatever ends this early, the trials made until then are kept.

    Raises:
        UserError: `out` exists, or the run has no judge yet.
        RobotError: the robot cannot go on.
    """
    config, task = run.config, load_task(run.config.task)
    judge = load_judge(run)
    if judge is None:
        raise UserError(f"{run.folder} has no judge yet: it is made when exploration ends; train it further first")
    goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
    device = torch.device("cpu")
    loaded = {step: load_policies(config, robot.spec, run.read_weights(step), device) for step in weights}
    perturb = PerturbationPolicy(loaded[weights[0]], seed)
    folder = TrialsFolder(out)
    folder.create()
    found, ends = Trials(task.name, name, tuple(weights)), list[NDArray[np.uint8]]()
    with (
        Rollout(config, task, robot, goals, say) as stage,
        progress_bar("evaluate", "trial", count * len(weights)) as bar,
    ):

        def keep(trial: Trial, frames: list[Image]) -> None:
            nonlocal found
            found = replace(found, trials=(*found.trials, trial))
            ends.append(np.stack(frames))
            folder.keep(found, np.stack(ends))
            bar.update()

        policies = {step: TaskPolicy(policies) for step, policies in loaded.items()}
        make_trials(stage, policies, perturb, judge, count=count, rng=np.random.default_rng(seed), on_trial=keep)
    return folder
