"""Prepare and start a run: everything is checked before anything is written or moves."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path

from r3l.cli.settings import TrainOptions, deadline, ends_by_time, resolve
from r3l.config.errors import UserError
from r3l.config.schema import MANY, Config
from r3l.models.torch_setup import pick_device, tune_process
from r3l.run.directory import Run, free_name
from r3l.run.goals import Goals, joined, load_goals
from r3l.task.base import Task
from r3l.task.registry import load_robot, load_task, varied
from r3l.training import preflight
from r3l.training.orphans import end_orphans
from r3l.training.supervisor import DONE, STOPPED, say, supervise
from r3l.training.sync import FailedError, train_locked

FAILED_CODE = 3
"""Exit code of a run that cannot go on; a service does not restart it."""


@dataclass(frozen=True)
class TrainPlan:
    """A requested run, not yet checked."""

    command: TrainOptions
    config: Config
    task: Task
    folder: Path
    goals: Path
    ends_epoch_s: float | None
    """When the run ends, seconds since 1970; None if only its steps end it."""
    resumed: Run | None
    """The run to resume, locked; its config has the new --steps, its file does not yet."""


def prepare(command: TrainOptions, stack: ExitStack) -> tuple[Run, float | None, int] | None:
    """Check everything, then create or open the run.

    Returns: the run, when it ends (seconds since 1970) and its lock, which the stack holds; None if nothing is to be
        started. Nothing is written to a run before it is locked.
    """
    tune_process()
    resumed, lock = None, -1
    if command.resume is not None:
        resumed = _open_resumed(command)
        lock = stack.enter_context(resumed.lock())
    plan = _make_plan(command, resumed)
    if resumed and plan.ends_epoch_s is not None and plan.ends_epoch_s <= time.time():
        over = time.strftime("%a %H:%M", time.localtime(plan.ends_epoch_s))
        print(f"the time of {plan.folder} was up at {over}; go on with --hours, --until or --steps")
        return None
    goals = _load_goals(plan)
    _check(plan, goals)
    if command.check:
        print("nothing was started: --check")
        return None
    if resumed:
        run = _extend(plan, resumed, goals)
    else:
        run, lock = _create(plan, stack)
    run.set_deadline(plan.ends_epoch_s)
    print(f"run directory: {plan.folder}")
    return run, plan.ends_epoch_s, lock


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
    """Train in separate processes that this process supervises; return the exit code."""
    outcome = supervise(run, ends_epoch_s, lock)
    if outcome == STOPPED:
        say(f"stopped, the robot is relaxed; go on with: r3l train --resume {run.folder}")
    elif outcome == DONE:
        report = f"report: {run.report}; " if run.report.exists() else ""
        say(f"done; {report}next: r3l evaluate {run.folder}")
    else:
        say(f"failed, the robot is relaxed; r3l status {run.folder} says why, r3l train --resume {run.folder} goes on")
    return 0 if outcome in (DONE, STOPPED) else FAILED_CODE


def _open_resumed(command: TrainOptions) -> Run:
    """Open the run that --resume names, with the new --steps in its config; UserError if another setting changes."""
    assert command.resume is not None
    kept = ("resume", "steps", "check", "runs", "hours", "until", "goals", "rig")
    fresh = TrainOptions(**{name: getattr(command, name) for name in kept})
    for field in fields(TrainOptions):
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


def _make_plan(command: TrainOptions, resumed: Run | None) -> TrainPlan:
    """Return what the command asks for; UserError if its options contradict each other."""
    ends_epoch_s = deadline(command, time.time())
    config = resumed.config if resumed else resolve(command)
    if config.sync and ends_by_time(command):
        raise UserError("--sync ends by its steps, not by --hours or --until; leave one of them out")
    task = load_task(config.task)
    pick_device(config.device)  # UserError if the device is missing
    if resumed:
        ends_epoch_s = ends_epoch_s or (resumed.deadline() if command.steps is None else None)
        return TrainPlan(command, config, task, resumed.folder, resumed.goals, ends_epoch_s, resumed)
    folder = command.runs / command.name if command.name else free_name(command.runs, task.name)
    if not command.check and folder.exists():
        Run.create(folder, config)  # UserError: the folder exists
    goals = command.goals or Path("goals") / task.name
    return TrainPlan(command, config, task, folder, goals, ends_epoch_s, None)


def _load_goals(plan: TrainPlan) -> Goals:
    """Return the goal images to train on, including those that --goals adds to a resumed run."""
    task, added = plan.task, plan.command.goals
    if not plan.goals.exists():
        raise UserError(
            f"goal folder {plan.goals} is missing; make it with r3l goals {plan.config.task}, or name --goals DIR"
        )
    goals = load_goals(plan.goals, task.rig.camera, task.minimum_goals)
    if plan.resumed and added is not None:
        goals = joined(goals, load_goals(added, task.rig.camera, 0))
    return goals


def _check(plan: TrainPlan, goals: Goals) -> None:
    """Print the pre-flight check; UserError if the run cannot succeed."""
    config, task, resumed = plan.config, plan.task, plan.resumed
    hours = None if plan.ends_epoch_s is None else (plan.ends_epoch_s - time.time()) / 3600
    rig = plan.command.rig or (resumed.rig if resumed else None)
    robot = load_robot(config.robot, task, diagnostic=config.reads_truth, rig=rig)
    varied(robot, config.randomize, config.seed)
    # After a reboot the robot of a resumed run may not be there yet; the supervisor waits for it.
    found = preflight.check(config, task, robot, goals, plan.folder, hours=hours, must_answer=resumed is None)
    print("\n".join(found.lines))
    if config.reads_truth:
        print("diagnostic run: it reads the twin's ground truth")
    preflight.require(found)


def _extend(plan: TrainPlan, resumed: Run, goals: Goals) -> Run:
    """Save the new steps, goal images and rig of a resumed run; return the run."""
    run = resumed.extended(plan.config.steps)
    if plan.command.goals is not None:
        run.replace_goals(goals)
    if plan.command.rig is not None:
        run.keep_rig(plan.command.rig)
    return run


def _create(plan: TrainPlan, stack: ExitStack) -> tuple[Run, int]:
    """Create a run with its goal images and rig; return it and its lock, or leave nothing behind if that fails."""
    run = Run.create(plan.folder, plan.config)
    lock = stack.enter_context(run.lock())
    try:
        run.keep_goals(plan.goals)
        if plan.command.rig is not None:
            run.keep_rig(plan.command.rig)
    except BaseException:
        shutil.rmtree(plan.folder)
        raise
    return run, lock
