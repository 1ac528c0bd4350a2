"""Trials: episodes from random starts on any robot, judged from images, kept for a person to mark."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r3l.checkpoint import load_tensors, save_tensors, write_file
from r3l.config import UserError
from r3l.evaluate import Behaviour, TaskPolicy, load_judge, wilson
from r3l.files import read, read_json
from r3l.goals import load_goals
from r3l.judge import Judge
from r3l.networks import channels_first
from r3l.policy import load_policies
from r3l.progress import progress_bar
from r3l.registry import load_task
from r3l.robot import Image, Robot, RobotError, SimulatedRobot
from r3l.run import Run
from r3l.shoot import contact_sheet
from r3l.stage import PerturbationPolicy, Stage

FORMAT_VERSION = 1
TRIALS, SHEET, MARKS, ENDS = "trials.json", "contact-sheet.png", "marks.csv", "ends.safetensors"
YES, NO = ("y", "yes", "1", "true"), ("n", "no", "0", "false")
MOST_TRIES = 5
"""Times that a trial is begun anew because the robot had to pause."""
MOST_PERTURBATIONS = 4
"""Perturbation episodes that may make a start: a success of the trial before must be undone first."""
COLUMNS, SIDE_PX = 6, 160
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Trial:
    """One episode from a random start."""

    number: int
    """From 1, in the order they were made."""
    weights: int
    """Step at which the policy's weights were published."""
    judged: bool
    """The judge's verdict."""
    log_odds: float
    """What it rests on."""
    begun_solved: bool = False
    """Whether its start, too, is a success to the judge: perturbation left the object where it was."""
    success: bool | None = None
    """Whether it was one in truth; None where nobody knows."""


@dataclass(frozen=True)
class Trials:
    """What an evaluation by eye found."""

    task: str
    robot: str
    weights: tuple[int, ...]
    """Steps of the weights that took turns."""
    trials: tuple[Trial, ...] = ()
    version: int = FORMAT_VERSION

    def of(self, weights: int) -> list[Trial]:
        """Return the trials of one policy."""
        return [trial for trial in self.trials if trial.weights == weights]


def make_trials(
    stage: Stage,
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


def _perform(stage: Stage, perturb: Behaviour, policy: Behaviour, judge: Judge) -> list[Image]:
    """Perturb, again where that leaves a success, then let a policy act; return what was seen."""
    for _ in range(MOST_TRIES):
        for _ in range(MOST_PERTURBATIONS):
            stage.home()
            moved = stage.episode(perturb, stage.body.config.phases.perturbation_steps)
            if moved is None or not _is_solved(judge, moved[-judge.config.frames :]):
                break
        if moved is None:
            continue
        stage.home()
        frames = stage.episode(policy, stage.task.episode_steps)
        if frames is not None:
            return frames
    raise RobotError(f"the robot had to pause in {MOST_TRIES} trials in a row; see what was said, mend it, begin again")


def _is_solved(judge: Judge, frames: list[Image]) -> bool:
    return judge.verdict(channels_first(np.stack(frames)))


def _truth(stage: Stage) -> bool | None:
    """Return whether an episode just ended in success, where ground truth can be known."""
    robot = stage.body.robot
    return robot.truth()["error"] <= stage.task.success_error if isinstance(robot, SimulatedRobot) else None


class TrialsFolder:
    """A folder of trials: trials.json, the last images of each, a contact sheet, and the table that a person marks.

    Neither sheet nor table tells whose trial it was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sheet, self.marks = folder / SHEET, folder / MARKS

    def create(self) -> None:
        """Make the folder; one that exists is never overwritten."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(f"{self.folder} exists and is never overwritten; choose another --out") from error

    def keep(self, found: Trials, ends: NDArray[np.uint8]) -> None:
        """Write what there is so far, with the last images of each trial, [N, F, H, W, 3]."""
        save_tensors(self.folder / ENDS, {"ends": torch.from_numpy(ends)}, {"version": FORMAT_VERSION})
        contact_sheet(list(ends[:, -1]), self.sheet, COLUMNS, SIDE_PX, is_numbered=True)
        self.write_marks({trial.number: None for trial in found.trials})
        write_file(self.folder / TRIALS, json.dumps(asdict(found), indent=2).encode())

    def read(self) -> Trials:
        """Return the trials; UserError where there are none."""
        path = self.folder / TRIALS
        try:
            found = read_json(path)
            if found["version"] != FORMAT_VERSION:
                raise UserError(f"{path} has format {found['version']!r:.20}, expected {FORMAT_VERSION}")
            trials = tuple(_trial(values) for values in found["trials"])
            return Trials(str(found["task"]), str(found["robot"]), tuple(map(int, found["weights"])), trials)
        except OSError as error:
            raise UserError(f"{self.folder} has no readable {TRIALS}; r3l evaluate RUN --by-eye makes it") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); make the trials again") from error

    def ends(self) -> Tensor:
        """Return the last images of all trials, uint8 [N, F, 3, H, W]; UserError where they cannot be read."""
        path = self.folder / ENDS
        try:
            ends = load_tensors(path)[0]["ends"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); make the trials again") from error
        if ends.dtype != torch.uint8 or ends.dim() != 5 or ends.shape[-1] != 3:
            raise UserError(f"{path} holds {ends.dtype} {list(ends.shape)}, expected images; make the trials again")
        return ends.movedim(-1, 2)

    def log_odds(self, found: Trials, judge: Judge) -> dict[int, float]:
        """Return what a judge makes of the last images of each trial, by its number."""
        ends = self.ends()
        if len(ends) < len(found.trials):  # one more where writing was broken off
            raise UserError(f"{self.folder} has images of {len(ends)} trials, expected {len(found.trials)}")
        return {trial.number: judge.end_log_odds(end) for trial, end in zip(found.trials, ends, strict=False)}

    def write_marks(self, marks: Mapping[int, bool | None]) -> None:
        """Write the table that a person fills in, or what they said: trial, success."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "success"])
        writer.writerows([number, {True: "yes", False: "no", None: ""}[mark]] for number, mark in marks.items())
        write_file(self.marks, text.getvalue().encode())

    def read_marks(self, found: Trials) -> dict[int, bool | None]:
        """Return a person's marks by trial, None where there is none; UserError says which line cannot be read."""
        marks: dict[int, bool | None] = {trial.number: None for trial in found.trials}
        try:
            lines = list(csv.reader(io.StringIO(read(self.marks, MOST_BYTES).decode("utf-8-sig"))))
        except OSError:
            return marks
        except (ValueError, csv.Error) as error:
            raise UserError(f"{self.marks} cannot be read ({error}); expected a table of trial,success") from error
        for at, cells in enumerate(lines[1:], 2):
            words = [cell.strip().lower() for cell in cells]
            if not any(words):
                continue
            number, mark = (*words, "")[:2]
            if not number.isdecimal() or int(number) not in marks or mark not in ("", *YES, *NO):
                raise UserError(
                    f"{self.marks}, line {at}: {','.join(cells)!r:.60}, expected the number of a trial and yes or no"
                )
            marks[int(number)] = None if not mark else mark in YES
        return marks


def _trial(values: Mapping[str, Any]) -> Trial:
    """Return a trial from its JSON values."""
    success = values["success"]
    return Trial(
        int(values["number"]),
        int(values["weights"]),
        bool(values["judged"]),
        float(values["log_odds"]),
        bool(values["begun_solved"]),
        None if success is None else bool(success),
    )


def difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Return by how much the first succeeds more often than the second, and the 95% interval of that.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    p, (p_low, p_high) = float(np.mean(first)), wilson(first)
    q, (q_low, q_high) = float(np.mean(second)), wilson(second)
    apart = p - q
    return apart, apart - math.hypot(p - p_low, q_high - q), apart + math.hypot(p_high - p, q - q_low)


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
        Stage(config, task, robot, goals, say) as stage,
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
