"""`r3l evaluate`, `mark`, `play`, `export`, `report` and `film`: use what a run has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from r3l.cli.options import OptionalInt, OptionalName, OptionalPath, signals_interrupt, typed_lines
from r3l.config.errors import UserError
from r3l.config.schema import Randomization

if TYPE_CHECKING:
    from r3l.robot.base import Robot
    from r3l.run.directory import Run

BY_EYE = "by-eye"
"""Prefix of the folders in a run directory that hold trials."""


def open_run(folder: Path) -> Run:
    """Open a run for a command that computes with its models, and prepare this process for that."""
    from r3l.models.torch_setup import tune_process
    from r3l.run.directory import Run

    tune_process()
    return Run.open(folder)


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a run's task policy from the task's start states.

    Compares the policy with doing nothing and with random actions. Prints the success rate with its 95% interval, the
    final error, the steps to success, and how often the judge, which sees only images, agrees with the ground truth.
    Changes nothing that the run trains on.

    On a real robot, or with --by-eye: a perturbation episode makes each start, the judge says how each episode ended,
    and the last images are kept for `r3l mark`.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    step: OptionalInt = None
    """Env step of the published weights to evaluate; the newest by default."""
    episodes: int = 24
    """Number of start states."""
    seed: int = 0
    """Seed of the start states and finger poses."""
    baselines: bool = True
    """Also evaluate doing nothing and random actions."""
    out: OptionalPath = None
    """Folder for evaluation.json and the film strips; RUN/evaluation by default. An existing folder is replaced."""
    robot: OptionalName = None
    """Robot to evaluate on, with the same joints as the run's; the results go to RUN/evaluation-ROBOT."""
    rig: OptionalPath = None
    """Rig file of the robot, if the robot needs one; the run's copy by default."""
    randomize: Randomization = "none"
    """How much the twin's world varies; shifted differs more than any level for training."""
    by_eye: bool = False
    """Evaluate a simulated robot from images alone too; into RUN/by-eye-1, -2, … by default."""
    against: OptionalInt = None
    """Env step of other published weights to compare with by eye; the two take turns, so that drift affects both."""

    def __call__(self) -> int:
        from r3l.evaluation.evaluator import evaluate_run
        from r3l.robot.base import SimulatedRobot
        from r3l.task.registry import load_robot, load_task, varied

        if self.episodes < 1:
            raise UserError(f"--episodes is {self.episodes}, expected 1 or more")
        run = open_run(self.run)
        step = run.newest_snapshot() if self.step is None else self.step
        config, is_own = run.config, self.robot is None
        rig = self.rig or (run.rig if is_own else None)
        task, diagnostic = load_task(config.task), config.reads_truth and is_own
        robot = load_robot(self.robot or config.robot, task, diagnostic=diagnostic, rig=rig)
        robot = varied(robot, self.randomize, self.seed)
        if self.by_eye or not isinstance(robot, SimulatedRobot):
            return self._by_eye(run, robot, step)
        if self.against is not None:
            raise UserError("--against compares by eye; add --by-eye")
        out = self.out or run.folder / ("evaluation" if is_own else f"evaluation-{self.robot}")
        evaluate_run(run, step, count=self.episodes, seed=self.seed, baselines=self.baselines, out=out, robot=robot)
        return 0

    def _by_eye(self, run: Run, robot: Robot, step: int) -> int:
        """Run trials on a robot and print the judge's verdicts."""
        from r3l.evaluation.labels import compare
        from r3l.evaluation.trials import evaluate_by_eye
        from r3l.run.directory import free_name

        if self.against == step:
            raise UserError(f"--against is {self.against}, the weights to compare with; choose another step")
        weights = [step] if self.against is None else [step, self.against]
        out = self.out or free_name(run.folder, BY_EYE)
        name = self.robot or run.config.robot
        with signals_interrupt():
            folder = evaluate_by_eye(run, robot, name, weights, count=self.episodes, seed=self.seed, out=out, say=print)
        found = folder.read()
        for line in compare(found, {trial.number: trial.judged for trial in found.trials}, "judge"):
            print(line)
        print(f"look at {folder.sheet}; next: r3l mark {run.folder}" + (f" --trials {out}" if self.out else ""))
        return 0


@dataclass(frozen=True)
class MarkCommand:
    """Mark which trials of an evaluation by eye ended in success.

    Look at the trials' contact-sheet.png and type the marks, or fill in marks.csv first. Prints how often the judge
    agrees with the marks, and then calibrates the run's judge with them.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    trials: OptionalPath = None
    """Folder of trials; the run's newest by default."""
    set_judge: bool = True
    """Calibrate the judge with the marks; the folder of trials keeps the judge as it was."""

    def __call__(self) -> int:
        from r3l.evaluation.labels import mark
        from r3l.evaluation.trials_folder import TrialsFolder

        run = open_run(self.run)
        numbers = [path.name.removeprefix(f"{BY_EYE}-") for path in run.folder.glob(f"{BY_EYE}-*")]
        newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
        if self.trials is None and not newest:
            raise UserError(f"{run.folder} has no trials to mark; r3l evaluate {run.folder} --by-eye makes them")
        folder = TrialsFolder(self.trials or run.folder / f"{BY_EYE}-{newest}")
        mark(run, folder, typed_lines(), print, sets_judge=self.set_judge)
        return 0


@dataclass(frozen=True)
class PlayCommand:
    """Let a learned task policy act until Ctrl-C; nothing is stored or learned.

    The run's checks stay on. The robot is relaxed at the end, whatever ends the command.
    """

    source: tyro.conf.Positional[Path]
    """Run directory, or a file that `r3l export` wrote."""
    step: OptionalInt = None
    """Env step of a run's published weights; the newest by default."""
    task: OptionalName = None
    """Task of an exported policy; needed if the task is a Python file."""
    episodes: int = 0
    """Number of episodes to play; 0 plays until Ctrl-C."""
    robot: OptionalName = None
    """Robot to play on, with the same joints as the run's; the run's robot by default."""
    rig: OptionalPath = None
    """Rig file of the robot, if the robot needs one; the run's copy by default."""

    def __call__(self) -> int:
        from r3l.evaluation import play
        from r3l.models.torch_setup import tune_process

        if self.episodes < 0:
            raise UserError(f"--episodes is {self.episodes}, expected 0 (until Ctrl-C) or more")
        tune_process()
        rig = self.rig
        if self.source.is_dir():
            if self.task is not None:
                raise UserError(f"--task goes with an exported file; {self.source} is a run, which has its task")
            run = open_run(self.source)
            playable = play.open_run(run, run.newest_snapshot() if self.step is None else self.step)
            rig = rig or (run.rig if self.robot is None else None)
        elif self.step is not None:
            raise UserError(f"--step goes with a run directory; {self.source} holds one policy")
        else:
            playable = play.open_policy(self.source, self.task)
        with signals_interrupt():
            play.play(playable, self.robot, rig, self.episodes, print)
        return 0


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's task policy into one file, for `r3l play` or your own program.

    `r3l.load_policy(FILE)` returns joint targets for images and joints. It needs no run, no simulator and no extra.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write; RUN/policy-STEP.safetensors by default. An existing file is never overwritten."""
    step: OptionalInt = None
    """Env step of the published weights; the newest by default."""

    def __call__(self) -> int:
        from r3l.evaluation.export import export
        from r3l.evaluation.play import exported_of

        run = open_run(self.run)
        step = run.newest_snapshot() if self.step is None else self.step
        out = self.out or run.folder / f"policy-{step:08d}.safetensors"
        export(exported_of(run, step), out)
        print(f"policy: {out}; next: r3l play {out}, or r3l.load_policy in your own program")
        return 0


@dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML page about a run.

    The page shows curves, films, reconstructions, rewards, coverage and settings.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write; RUN/report.html by default."""

    def __call__(self) -> int:
        from r3l.evaluation.report.document import write_report

        run = open_run(self.run)
        path = self.out or run.report
        write_report(run, path)
        print(f"report: {path}")
        return 0


@dataclass(frozen=True)
class FilmCommand:
    """Write a small animation of a run's policy before, during and after training.

    All three policies begin at the same start states.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write, an animated WebP under 2 MB; RUN/film.webp by default."""
    steps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[INT …]", help_behavior_hint="")] = ()
    """Env steps of the published weights to show; the first, the middle and the last by default."""
    starts: int = 3
    """Number of start states."""
    seed: int = 0
    """Seed of the start states and finger poses."""

    def __call__(self) -> int:
        from r3l.evaluation.film import film

        if self.starts < 1:
            raise UserError(f"--starts is {self.starts}, expected 1 or more")
        run = open_run(self.run)
        known = run.snapshots()
        steps = self.steps or (known[0], min(known, key=lambda step: abs(step - known[-1] / 2)), known[-1])
        path = self.out or run.folder / "film.webp"
        print(f"film: {film(run, steps, path, starts=self.starts, seed=self.seed)}")
        return 0
