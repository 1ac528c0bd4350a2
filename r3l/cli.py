"""The `r3l` command: what a person types. Bad input ends with one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from r3l.checkpoint import CheckpointError
from r3l.commands import (
    CalibrateCommand,
    CheckCommand,
    Command,
    ConfigCommand,
    DoctorCommand,
    EmulateCommand,
    EvaluateCommand,
    ExportCommand,
    FilmCommand,
    GoalsCommand,
    MarkCommand,
    PauseCommand,
    PlayCommand,
    RelaxCommand,
    ReportCommand,
    ResumeCommand,
    RobotsCommand,
    StatusCommand,
    StopCommand,
    TasksCommand,
    TrainCommand,
)
from r3l.config import UserError, nearest, to_dict
from r3l.experience import StoreError
from r3l.goals import Images
from r3l.process import tune_process
from r3l.progress import progress_bar
from r3l.robot import Robot, RobotError, SimulatedRobot
from r3l.run import Run, free_name
from r3l.safety import SafeRobot
from r3l.settings import preset_config
from r3l.task import Task

BY_EYE = "by-eye"
"""Folders of trials in a run directory begin so."""
DESCRIPTION = """R3L: a robot learns a skill overnight from pictures of success, with nobody in the room.

Three steps: `r3l goals TASK`, `r3l train TASK`, `r3l evaluate runs/NAME`; then `r3l report runs/NAME`.
`r3l COMMAND --help` explains each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done or stopped, 2 bad input, 3 a run that failed, 130 Ctrl-C."""
    tune_process()
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        return COMMANDS[type(command)](command)
    except (UserError, CheckpointError, StoreError, RobotError) as error:
        print("r3l: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, head for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:
        print(f"r3l: {error}; check the disk's free space and permissions, then go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("r3l: stopped; nothing acknowledged is lost", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> Any:
    """Return the command's dataclass; UserError in one line where tyro would draw a box."""
    arguments = list(arguments) or ["--help"]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Any = tyro.cli(Command, prog="r3l", description=DESCRIPTION, args=arguments)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_one_line(complaint.getvalue(), arguments)) from end
    if (getattr(command, "seed", None) or 0) < 0:
        raise UserError(f"--seed is {command.seed}, expected 0 or more")
    return command


def _one_line(boxed: str, arguments: Sequence[str]) -> str:
    """Fold a drawn error box into one line that ends with where help is."""
    words = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|-{3,}|(?<!\S)[|+](?!\S)", " ", boxed)
    text = " ".join(words.split()) or "the command line cannot be read"
    names = {kind.__name__.removesuffix("Command").lower(): kind for kind in COMMANDS}
    first = next((word for word in arguments if not word.startswith("-")), "")
    if first not in names:
        known = nearest(first, names) if first else "expected a command first: goals, train, evaluate, …"
        return f"unknown command {first or arguments[0]!r}; {known}; see r3l --help"
    text = re.split(r"\s+(?:For full helptext|Argument helptext:|Got errors:)", text)[0]
    text = re.sub(r"^(?:(?:Parsing|Value) error|Missing argument|Invalid choice|Required options) ", "", text)
    unknown = re.match(r"Unrecognized options.*?: (-\S+?),?(?:\s|$)", text)
    if unknown:
        text = _unknown_option(unknown[1], first, names[first])
    text = re.sub(r"^Unrecognized options.*?: (.*)", r"not understood: \1", text)
    return f"{text.rstrip('.')}; see r3l {first} --help"


def _unknown_option(option: str, name: str, command: type) -> str:
    """Say which option of the command is nearest, or that a positional is written without a name."""
    positional = [field.name for field in fields(command) if "Positional" in str(field.type)]
    options = [f"--{field.name.replace('_', '-')}" for field in fields(command) if field.name not in positional]
    word = option.split("=")[0].removeprefix("--")
    if word in positional:
        return f"unknown option {option!r}; {word} is written without a name: r3l {name} {word.upper()}"
    return f"unknown option {option!r}; {nearest(option, options)}"


def goals(command: GoalsCommand) -> int:
    """Collect goal images into a folder."""
    from r3l.goals import read_folder, save_goals, split, variety_warnings
    from r3l.registry import load_robot, load_task, varied
    from r3l.shoot import contact_sheet

    task = load_task(command.task)
    out = command.out or Path("goals") / task.name
    if out.exists():
        raise UserError(f"goal folder {out} exists and is never overwritten; remove it, or choose another --out")
    rng = np.random.default_rng(command.seed)
    settings: dict[str, tuple[float, ...]] = {}
    if command.from_folder is not None:
        size = task.rig.camera
        images = read_folder(command.from_folder, (size.height, size.width), task.minimum_goals)
        source = command.from_folder.name
    else:
        robot = varied(load_robot(command.robot, task, rig=command.rig), command.randomize, command.seed)
        images, source = _collect(command, task, robot, rng)
        settings = robot.camera_settings
    for warning in variety_warnings(images):
        print(f"warning: {warning}")
    train_images, held_out = split(images, command.held_out, rng)
    save_goals(out, train_images, held_out, task=task.name, robot=command.robot, source=source, camera=settings)
    contact_sheet(images, out / "contact-sheet.png")
    print(f"{len(train_images)} goal images for training and {len(held_out)} held out are in {out}")
    print(f"look at {out / 'contact-sheet.png'}; next: r3l train {command.task}")
    return 0


def _collect(command: GoalsCommand, task: Task, robot: Robot, rng: np.random.Generator) -> tuple[Images, str]:
    """Take goal images on a robot; return them [N, H, W, 3] and who took them."""
    from r3l.goals import TWIN_SOURCE, collect_on_twin
    from r3l.shoot import HELP, Shoot, take_pictures

    if isinstance(robot, SimulatedRobot) and not command.by_hand:
        if command.count < task.minimum_goals:
            raise UserError(f"--count {command.count} is too few goal images, expected {task.minimum_goals} or more")
        with robot, progress_bar("goal images", "image", command.count) as bar:
            found = collect_on_twin(task, robot, command.count, rng, lambda: bar.update() and None)
        return np.stack(found), TWIN_SOURCE
    safe, shoot = SafeRobot(robot, task.rig.limits, task.rig.max_step_rad), Shoot(task.minimum_goals)
    with ending_in_order(), safe:
        print(f"Arrange the object as a success looks, {task.minimum_goals} times or more. {HELP}", flush=True)
        take_pictures(safe, shoot, lines(), print, rng, _arranging(task, safe, robot, rng))
    if not shoot.is_enough:
        raise UserError(
            f"{len(shoot.images)} goal images were taken, expected {task.minimum_goals} or more; none is kept "
            "(pictures taken elsewhere: --from-folder)"
        )
    return np.stack(shoot.images), "by hand"


def _arranging(task: Task, safe: SafeRobot, robot: Robot, rng: np.random.Generator) -> Callable[[], None] | None:
    """Return what arranges the object on a simulated robot; None where a person does."""
    if not isinstance(robot, SimulatedRobot):
        return None

    def arrange() -> None:
        robot.place(task.goal_states(1, rng)[0], rng)
        safe.forget()

    return arrange


def lines() -> Iterator[str]:
    """Yield what a person types, line by line, until they end it."""
    for line in sys.stdin or ():
        yield line.strip().lower()


def train(command: TrainCommand) -> int:
    """Begin or resume a run; a signal that comes before the robot moves ends it as any later one does, with 0."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            from r3l import launch

            found = launch.prepare(command, stack)
            if found is None:
                return 0
            run, ends_epoch_s, lock = found
            if not run.config.sync:
                return launch.train_supervised(run, ends_epoch_s, lock)
        except KeyboardInterrupt:
            print("stopped before anything was started")
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)
        return launch.train_sync(run)


def evaluate(command: EvaluateCommand) -> int:
    """Evaluate a run and print what was found."""
    from r3l.evaluate import evaluate_run
    from r3l.registry import varied

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
    from r3l.marking import compare
    from r3l.trials import evaluate_by_eye

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
    from r3l.marking import mark as take
    from r3l.trials import TrialsFolder

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
    from r3l.play import open_policy, open_run
    from r3l.play import play as act

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
    from r3l.exported import export as write
    from r3l.play import exported_of

    run = Run.open(command.run)
    step = run.newest_snapshot() if command.step is None else command.step
    out = command.out or run.folder / f"policy-{step:08d}.safetensors"
    write(exported_of(run, step), out)
    print(f"policy: {out}; next: r3l play {out}, or r3l.exported.load_policy in a program of yours")
    return 0


def robot_for(run: Run, name: str | None, rig: Path | None) -> Robot:
    """Return a run's robot, or another one, with the rig file that people name or the run's own; its world as it is."""
    from r3l.registry import load_robot, load_task

    config = run.config
    if name is None:
        rig = rig or run.rig
    diagnostic = config.reads_truth and name is None
    return load_robot(name or config.robot, load_task(config.task), diagnostic=diagnostic, rig=rig)


def report(command: ReportCommand) -> int:
    """Write the report of a run."""
    from r3l.report import write_report

    run = Run.open(command.run)
    path = command.out or run.report
    write_report(run, path)
    print(f"report: {path}")
    return 0


def film(command: FilmCommand) -> int:
    """Write an animation of a run."""
    from r3l.film import film as write_film

    if command.starts < 1:
        raise UserError(f"--starts is {command.starts}, expected 1 or more")
    run = Run.open(command.run)
    known = run.snapshots()
    steps = command.steps or (known[0], min(known, key=lambda step: abs(step - known[-1] / 2)), known[-1])
    path = command.out or run.folder / "film.webp"
    print(f"film: {write_film(run, steps, path, starts=command.starts, seed=command.seed)}")
    return 0


def status(command: StatusCommand) -> int:
    """Show how a run is doing."""
    from r3l.processes.status import show

    return show(Run.open(command.run), watch=command.watch, as_json=command.json)


def check(command: CheckCommand) -> int:
    """Verify and mend a run directory."""
    from r3l.verify import check as verify

    return verify(command.run, is_dry=command.dry_run)


def tell(command: PauseCommand | ResumeCommand | RelaxCommand | StopCommand) -> int:
    """Tell a running run's supervisor what people want."""
    from r3l.processes.control import ask

    word = type(command).__name__.removesuffix("Command").lower()
    print(ask(Run.open(command.run).folder, word))
    return 0


def doctor(command: DoctorCommand) -> int:
    """Look at a rig."""
    with needing("dynamixel"):
        from r3l.goals import read_goals
        from r3l.hardware.dclaw.doctor import examine
        from r3l.hardware.dclaw.rig import read_rig

    has_failed = False
    with ending_in_order():
        rig, goals = read_rig(command.rig), read_goals(command.goals) if command.goals else None
        found = examine(rig, command.runs, goals=goals, wiggles=command.wiggle, reboots=command.reboot)
        for line in found:
            has_failed |= line.level == "FAIL"
            print(line, flush=True)
    return 2 if has_failed else 0


def calibrate(command: CalibrateCommand) -> int:
    """Calibrate a hand and write its rig."""
    with needing("dynamixel"):
        from r3l.hardware.dclaw.calibrate import calibrate as read_off
        from r3l.hardware.dclaw.rig import default_rig, problems, read_rig, write_rig

    rig = read_rig(command.rig) if command.rig.exists() else default_rig()
    given = {"port": command.port, "baud_rate": command.baud, "model": command.model}
    rig = replace(rig, bus=replace(rig.bus, **{key: value for key, value in given.items() if value is not None}))
    problem = next(problems(rig), None)
    if problem is not None:
        raise UserError(problem)
    with ending_in_order():
        rig = read_off(rig, until_enter, print, command.only)
    command.rig.parent.mkdir(parents=True, exist_ok=True)
    write_rig(command.rig, rig)
    print(f"rig: {command.rig}; next: r3l doctor {command.rig}")
    return 0


def until_enter(text: str) -> Iterator[None]:
    """Tell a person what to do, and yield until they press Enter."""
    print(text, flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        yield
    if not sys.stdin.readline():
        raise UserError("nobody is at the terminal: calibration needs a person who moves the fingers")


def emulate(command: EmulateCommand) -> int:
    """Emulate servos."""
    with needing("dynamixel"):
        from r3l.hardware.dynamixel.emulate import emulate as run_emulator

    code: int = run_emulator(command)
    return code


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what an extra of this package brings; UserError names the extra where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"package {error.name!r} is not installed; pip install 'r3l[{extra}]'") from error


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, do what Ctrl-C does: whatever holds a robot lets it go."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def config(command: ConfigCommand) -> int:
    """Print a config."""
    print(json.dumps(to_dict(preset_config(command.preset, command.variant)), indent=2))
    return 0


def tasks(command: TasksCommand) -> int:
    """List tasks."""
    from r3l.registry import load_task, task_names

    for name in task_names():
        print(f"{name:16} {load_task(name).description}")
    return 0


def robots(command: RobotsCommand) -> int:
    """List robots."""
    from r3l.registry import robot_names

    for name in robot_names():
        print(name)
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {
    GoalsCommand: goals,
    TrainCommand: train,
    EvaluateCommand: evaluate,
    MarkCommand: mark,
    PlayCommand: play,
    ExportCommand: export,
    ReportCommand: report,
    FilmCommand: film,
    StatusCommand: status,
    CheckCommand: check,
    PauseCommand: tell,
    ResumeCommand: tell,
    RelaxCommand: tell,
    StopCommand: tell,
    DoctorCommand: doctor,
    CalibrateCommand: calibrate,
    EmulateCommand: emulate,
    ConfigCommand: config,
    TasksCommand: tasks,
    RobotsCommand: robots,
}

if __name__ == "__main__":
    sys.exit(main())
