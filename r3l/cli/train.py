"""Begin a run, or go on with one: everything is checked before anything is written or moves."""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path

from r3l.cli.settings import TrainCommand, deadline, ends_by_time, resolve
from r3l.config.errors import UserError
from r3l.config.schema import MANY, Config
from r3l.models.torch_setup import pick_device
from r3l.run.directory import Run, free_name
from r3l.run.goals import Goals, joined, load_goals
from r3l.task.base import Task
from r3l.task.registry import load_robot, load_task, varied
from r3l.training import preflight
from r3l.training.learner_loop import FailedError
from r3l.training.supervisor import DONE, STOPPED, end_orphans, say, supervise
from r3l.training.sync import train_locked

FAILED_CODE = 3
"""A run that ended since it could not go on; a service does not begin it again."""


@dataclass(frozen=True)
class TrainPlan:
    """What is to be started, not yet checked."""

    command: TrainCommand
    config: Config
    task: Task
    folder: Path
    goals: Path
    ends_epoch_s: float | None
    resumed: Run | None
    """The run to go on with, locked, with --steps not yet saved."""


def reopen(command: TrainCommand) -> Run:
    """Open the run that --resume names, which nobody uses, with --steps not yet saved; the rest of it is decided."""
    assert command.resume is not None
    kept = ("resume", "steps", "check", "runs", "hours", "until", "goals", "rig")
    fresh = TrainCommand(**{name: getattr(command, name) for name in kept})
    for field in fields(TrainCommand):
        if getattr(command, field.name) != getattr(fresh, field.name):
            raise UserError(
                f"a resumed run keeps its {field.name}: --resume goes with --steps, --hours, --until, --goals, "
                "--rig and --check alone"
            )
    run = Run.open(command.resume)
    steps = run.config.steps if command.steps is None else command.steps
    if command.steps is None and ends_by_time(command):
        steps = MANY
    end_orphans(run)
    return Run(run.folder, replace(run.config, steps=steps))


def prepare(command: TrainCommand, stack: ExitStack) -> tuple[Run, float | None, int] | None:
    """Check everything, and make or open the run; return it, when it is to end, and its lock, held by the stack.

    Nothing is written to a run before it is locked. None: nothing is to be started.
    """
    resumed, lock = None, -1
    if command.resume is not None:
        resumed = reopen(command)
        lock = stack.enter_context(resumed.lock())
    launch = plan(command, resumed)
    if resumed and launch.ends_epoch_s is not None and launch.ends_epoch_s <= time.time():
        over = time.strftime("%a %H:%M", time.localtime(launch.ends_epoch_s))
        print(f"the time of {launch.folder} was up at {over}; go on with --hours, --until or --steps")
        return None
    goals = goals_of(launch)
    check(launch, goals)
    if command.check:
        print("nothing was started: --check")
        return None
    if resumed:
        run = extend(launch, resumed, goals)
    else:
        run, lock = create(launch, stack)
    run.set_deadline(launch.ends_epoch_s)
    print(f"run directory: {launch.folder}")
    return run, launch.ends_epoch_s, lock


def plan(command: TrainCommand, resumed: Run | None) -> TrainPlan:
    """Return what a command asks for; UserError where it cannot be."""
    ends_epoch_s = deadline(command, time.time())
    config = resumed.config if resumed else resolve(command)
    if config.sync and ends_by_time(command):
        raise UserError("--sync ends by its steps, not by --hours or --until; leave one of them out")
    task = load_task(config.task)
    pick_device(config.device)
    if resumed:
        ends_epoch_s = ends_epoch_s or (resumed.deadline() if command.steps is None else None)
        return TrainPlan(command, config, task, resumed.folder, resumed.goals, ends_epoch_s, resumed)
    folder = command.runs / command.name if command.name else free_name(command.runs, task.name)
    if not command.check and folder.exists():
        Run.create(folder, config)  # says that it exists
    goals = command.goals or Path("goals") / task.name
    return TrainPlan(command, config, task, folder, goals, ends_epoch_s, None)


def goals_of(launch: TrainPlan) -> Goals:
    """Return the goal images to train on, those added to a resumed run among them."""
    task, added = launch.task, launch.command.goals
    if not launch.goals.exists():
        raise UserError(
            f"goal folder {launch.goals} is missing; make it with r3l goals {launch.config.task}, or name --goals DIR"
        )
    goals = load_goals(launch.goals, task.rig.camera, task.minimum_goals)
    if launch.resumed and added is not None:
        goals = joined(goals, load_goals(added, task.rig.camera, 0))
    return goals


def check(launch: TrainPlan, goals: Goals) -> None:
    """Print the pre-flight check; UserError where the run would come to nothing."""
    config, task, resumed = launch.config, launch.task, launch.resumed
    hours = None if launch.ends_epoch_s is None else (launch.ends_epoch_s - time.time()) / 3600
    rig = launch.command.rig or (resumed.rig if resumed else None)
    robot = load_robot(config.robot, task, diagnostic=config.reads_truth, rig=rig)
    varied(robot, config.randomize, config.seed)
    # One that is gone on with waits for a robot that is not there yet: after a reboot, with nobody in the room.
    found = preflight.check(config, task, robot, goals, launch.folder, hours=hours, must_answer=resumed is None)
    print("\n".join(found.lines))
    if config.reads_truth:
        print("diagnostic run: it reads the twin's ground truth")
    preflight.require(found)


def extend(launch: TrainPlan, resumed: Run, goals: Goals) -> Run:
    """Return a run that goes on, with the steps, goal images and rig that were named."""
    run = resumed.extended(launch.config.steps)
    if launch.command.goals is not None:
        run.replace_goals(goals)
    if launch.command.rig is not None:
        run.keep_rig(launch.command.rig)
    return run


def create(launch: TrainPlan, stack: ExitStack) -> tuple[Run, int]:
    """Return a new run with its goal images and rig, and its lock, held by the stack; nothing is left if that fails."""
    run = Run.create(launch.folder, launch.config)
    lock = stack.enter_context(run.lock())
    try:
        run.keep_goals(launch.goals)
        if launch.command.rig is not None:
            run.keep_rig(launch.command.rig)
    except BaseException:
        shutil.rmtree(launch.folder)
        raise
    return run, lock


def train_sync(run: Run) -> int:
    """Train in this process; return the exit code."""
    try:
        is_done = train_locked(run)
    except FailedError as error:
        print(f"failed, the robot is relaxed: {error}")
        return FAILED_CODE
    if not is_done:
        print(f"stopped; go on with: r3l train --resume {run.folder}")
        return 0
    print(f"done; next: r3l evaluate {run.folder}; r3l report {run.folder}")
    return 0


def train_supervised(run: Run, ends_epoch_s: float | None, lock: int) -> int:
    """Train in processes of their own, supervised by this one; return the exit code."""
    outcome = supervise(run, ends_epoch_s, lock)
    if outcome == STOPPED:
        say(f"stopped, the robot is relaxed; go on with: r3l train --resume {run.folder}")
    elif outcome == DONE:
        report = f"report: {run.report}; " if run.report.exists() else ""
        say(f"done; {report}next: r3l evaluate {run.folder}")
    else:
        say(f"failed, the robot is relaxed; r3l status {run.folder} says why, r3l train --resume {run.folder} goes on")
    return 0 if outcome in (DONE, STOPPED) else FAILED_CODE


def train(command: TrainCommand) -> int:
    """Begin or resume a run; a signal that comes before the robot moves ends it as any later one does, with 0."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            found = prepare(command, stack)
            if found is None:
                return 0
            run, ends_epoch_s, lock = found
            if not run.config.sync:
                return train_supervised(run, ends_epoch_s, lock)
        except KeyboardInterrupt:
            print("stopped before anything was started")
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)
        return train_sync(run)
