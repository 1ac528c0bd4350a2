"""TODO r3l/cli/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from r3l.cli.options import OptionalInt, OptionalName, OptionalPath, ending_in_order, lines
from r3l.config.errors import UserError
from r3l.config.schema import Randomization
from r3l.evaluation.evaluator import evaluate_run
from r3l.evaluation.export import export as write
from r3l.evaluation.film import film as write_film
from r3l.evaluation.labels import compare
from r3l.evaluation.labels import mark as take
from r3l.evaluation.play import exported_of, open_policy, open_run
from r3l.evaluation.play import play as act
from r3l.evaluation.report.document import write_report
from r3l.evaluation.trials import evaluate_by_eye
from r3l.evaluation.trials_folder import TrialsFolder
from r3l.robot.base import Robot, SimulatedRobot
from r3l.run.directory import Run, free_name
from r3l.task.registry import load_robot, load_task, varied

BY_EYE = "by-eye"
"""Folders of trials in a run directory begin so."""


def evaluate(command: EvaluateCommand) -> int:
    """Evaluate a run and print what was found."""

    if command.episodes < 1:
        raise UserError(f"--episodes is {command.episodes}, expected 1 or more")
    run = Run.open(command.run)
    step = run.newest_snapshot() if command.step is None else command.step
    robot = varied(robot_for(run, command.robot, command.rig), command.randomize, command.seed)
    if command.by_eye or not isinstance(robot, SimulatedRobot):
        return _evaluate_by_eye(command, run, robot, step)
    if command.against is not None:
        raise UserError("--against compares by eye; add --by-eye")
    evaluate_run(
        run,
        step,
        count=command.episodes,
        seed=command.seed,
        baselines=command.baselines,
        out=command.out or run.folder / ("evaluation" + (f"-{command.robot}" if command.robot else "")),
        robot=robot,
    )
    return 0


def _evaluate_by_eye(command: EvaluateCommand, run: Run, robot: Robot, step: int) -> int:
    """Make trials and say what the judge makes of them."""

    weights = [step] if command.against is None else [step, command.against]
    if len(set(weights)) < len(weights):
        raise UserError(f"--against is {command.against}, the weights to compare with; choose another step")
    out = command.out or free_name(run.folder, BY_EYE)
    with ending_in_order():
        name = command.robot or run.config.robot
        folder = evaluate_by_eye(
            run, robot, name, weights, count=command.episodes, seed=command.seed, out=out, say=print
        )
    found = folder.read()
    for line in compare(found, {trial.number: trial.judged for trial in found.trials}, "judge"):
        print(line)
    print(f"look at {folder.sheet}; next: r3l mark {run.folder}" + (f" --trials {out}" if command.out else ""))
    return 0


def mark(command: MarkCommand) -> int:
    """Take a person's marks."""

    run = Run.open(command.run)
    numbers = [path.name.removeprefix(f"{BY_EYE}-") for path in run.folder.glob(f"{BY_EYE}-*")]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    if command.trials is None and not newest:
        raise UserError(f"{run.folder} has no trials to mark; r3l evaluate {run.folder} --by-eye makes them")
    folder = TrialsFolder(command.trials or run.folder / f"{BY_EYE}-{newest}")
    take(run, folder, lines(), print, sets_judge=command.set_judge)
    return 0


def play(command: PlayCommand) -> int:
    """Let a policy act."""

    if command.episodes < 0:
        raise UserError(f"--episodes is {command.episodes}, expected 0 (until Ctrl-C) or more")
    if command.source.is_dir():
        if command.task is not None:
            raise UserError(f"--task goes with an exported file; {command.source} is a run, which has its task")
        run = Run.open(command.source)
        playable = open_run(run, run.newest_snapshot() if command.step is None else command.step)
        rig = command.rig or (run.rig if command.robot is None else None)
    elif command.step is not None:
        raise UserError(f"--step goes with a run directory; {command.source} holds one policy")
    else:
        playable, rig = open_policy(command.source, command.task), command.rig
    with ending_in_order():
        act(playable, command.robot, rig, command.episodes, print)
    return 0


def export(command: ExportCommand) -> int:
    """Write a policy file."""

    run = Run.open(command.run)
    step = run.newest_snapshot() if command.step is None else command.step
    out = command.out or run.folder / f"policy-{step:08d}.safetensors"
    write(exported_of(run, step), out)
    print(f"policy: {out}; next: r3l play {out}, or r3l.load_policy in a program of yours")
    return 0


def robot_for(run: Run, name: str | None, rig: Path | None) -> Robot:
    """Return a run's robot, or another one, with the rig file that people name or the run's own; its world as it is."""

    config = run.config
    if name is None:
        rig = rig or run.rig
    diagnostic = config.reads_truth and name is None
    return load_robot(name or config.robot, load_task(config.task), diagnostic=diagnostic, rig=rig)


def report(command: ReportCommand) -> int:
    """Write the report of a run."""

    run = Run.open(command.run)
    path = command.out or run.report
    write_report(run, path)
    print(f"report: {path}")
    return 0


def film(command: FilmCommand) -> int:
    """Write an animation of a run."""

    if command.starts < 1:
        raise UserError(f"--starts is {command.starts}, expected 1 or more")
    run = Run.open(command.run)
    known = run.snapshots()
    steps = command.steps or (known[0], min(known, key=lambda step: abs(step - known[-1] / 2)), known[-1])
    path = command.out or run.folder / "film.webp"
    print(f"film: {write_film(run, steps, path, starts=command.starts, seed=command.seed)}")
    return 0


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a run's task policy from the task's start states, beside doing nothing and acting at random.

    Prints success with its 95% interval, the final error, steps to success, and how far the judge, which sees only
    images, agrees with the ground truth. Changes nothing that the run trains on.

    On a robot that is not simulated, and with --by-eye: each start is what a perturbation episode leaves, the judge
    says how each episode ended, and last images are kept for you to mark (`r3l mark`).
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    step: OptionalInt = None
    """Published weights to evaluate; the newest by default."""
    episodes: int = 24
    """Start states."""
    seed: int = 0
    """Of the start states and finger poses."""
    baselines: bool = True
    """Also evaluate the do-nothing and the random policy."""
    out: OptionalPath = None
    """Folder for evaluation.json and the film strips; RUN/evaluation by default, replaced when it exists."""
    robot: OptionalName = None
    """Another robot than the run's to evaluate on, with the same joints; its results go to RUN/evaluation-ROBOT."""
    rig: OptionalPath = None
    """Its rig file, where it has one; the run's copy by default."""
    randomize: Randomization = "none"
    """How much the twin's world varies meanwhile; shifted is farther from it than any level for training."""
    by_eye: bool = False
    """From images alone on a simulated robot, too; into RUN/by-eye-1, -2, … where --out names no folder."""
    against: OptionalInt = None
    """Other published weights to compare with, by eye: the two take turns, so that no drift of the robot decides."""


@dataclass(frozen=True)
class MarkCommand:
    """Say of the trials of an evaluation by eye which ended in success, and see how far the judge agrees.

    Look at its contact-sheet.png meanwhile; or fill in its marks.csv first. Then the run's judge is set by your marks.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    trials: OptionalPath = None
    """Folder of trials; the run's newest by default."""
    set_judge: bool = True
    """Set the judge by the marks; the judge as it was stays in the folder of trials."""


@dataclass(frozen=True)
class PlayCommand:
    """Let a learned task policy act, again and again, until Ctrl-C: nothing is stored, nothing is learned.

    The run's checks look after the robot; it is relaxed however this ends.
    """

    source: tyro.conf.Positional[Path]
    """Run directory, or a file that `r3l export` wrote."""
    step: OptionalInt = None
    """Published weights of a run; the newest by default."""
    task: OptionalName = None
    """Task of an exported policy; needed where that is a Python file."""
    episodes: int = 0
    """Episodes to play; 0: until Ctrl-C."""
    robot: OptionalName = None
    """Another robot than the run's, with the same joints."""
    rig: OptionalPath = None
    """Its rig file, where it has one; the run's copy by default."""


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's task policy into one file, for `r3l play` or for a program of yours.

    `r3l.load_policy(FILE)` gives joint targets for images and joints, with no run, no simulator and no extra.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write; RUN/policy-STEP.safetensors by default. One that exists is never overwritten."""
    step: OptionalInt = None
    """Published weights; the newest by default."""


@dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML page about a run: curves, films, reconstructions, rewards, coverage, settings."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write; RUN/report.html by default."""


@dataclass(frozen=True)
class FilmCommand:
    """Write one small animation of a run's policy before, during and after training, from the same starts."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write, an animated WebP under 2 MB; RUN/film.webp by default."""
    steps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[INT …]", help_behavior_hint="")] = ()
    """Env steps of the published weights to show; the first, the middle and the last by default."""
    starts: int = 3
    """Start states."""
    seed: int = 0
    """Of the start states and finger poses."""
