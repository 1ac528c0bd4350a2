"""Robots and tasks by name: those of this package and of other installed packages."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from r3l.config.convert import nearest
from r3l.config.errors import UserError, missing_package
from r3l.config.schema import Config
from r3l.robot.base import Robot, RobotError, SimulatedRobot
from r3l.task.base import Task

if TYPE_CHECKING:
    from r3l.robot.env import RobotEnv


class RobotFactory(Protocol):
    """The function that an entry point of group `r3l.robots` names."""

    def __call__(self, task: Task, *, diagnostic: bool = False) -> Robot:
        """Build the robot for a task's rig without connecting it.

        A robot that has a rig file of its own also takes `rig: Path | None = None`, the file that --rig names.
        """
        ...


def _registered(kind: str) -> dict[str, EntryPoint]:
    """Return the entry points of a kind, "robot" or "task", by name."""
    return {point.name: point for point in entry_points(group=f"r3l.{kind}s")}


def _load(kind: str, name: str) -> object:
    known = _registered(kind)
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; {nearest(name, known)} (r3l {kind}s lists them)")
    try:
        return known[name].load()
    except ModuleNotFoundError as error:
        raise missing_package(f"{kind} {name!r}", error) from error


def task_names() -> list[str]:
    """Return the names of all installed tasks."""
    return sorted(_registered("task"))


def robot_names() -> list[str]:
    """Return the names of all installed robots."""
    return sorted(_registered("robot"))


def load_task(name: str) -> Task:
    """Return a task by its name or by the path of its Python file; UserError names the problem."""
    kind = _task_in(Path(name)) if name.endswith(".py") else _load("task", name)
    assert callable(kind)
    try:
        task = kind()
    except TypeError as error:
        raise UserError(f"task {name!r} cannot be made: {error}; docs/new-task.md says what a task has") from error
    assert isinstance(task, Task)
    problem = next(task.problems(), None)
    if problem is not None:
        raise UserError(f"task {name!r}: {problem}; mend it (docs/new-task.md)")
    return task


def _task_in(path: Path) -> type[Task]:
    """Return the one task that a Python file defines."""
    if not path.is_file():
        raise UserError(f"task file {str(path)!r} does not exist; expected a Python file with a Task: check the path")
    spec = spec_from_file_location(f"r3l_task_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses need it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file of the user's may raise anything
        raise UserError(
            f"task file {str(path)!r} cannot be loaded: {type(error).__name__}: {error}; mend it"
        ) from error
    found = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Task)]
    own = [kind for kind in found if kind.__module__ == module.__name__]
    if len(own) != 1:
        names = ", ".join(kind.__name__ for kind in own) or "none"
        raise UserError(f"task file {str(path)!r} defines {names}, expected one subclass of r3l.task.Task")
    return own[0]


def load_robot(name: str, task: Task, *, diagnostic: bool = False, rig: Path | None = None) -> Robot:
    """Return a robot by name, for a task and a rig file (if the robot has one), not yet connected."""
    factory = _load("robot", name)
    assert callable(factory)
    if rig is None:
        robot = factory(task, diagnostic=diagnostic)
    elif "rig" in signature(factory).parameters:
        robot = factory(task, diagnostic=diagnostic, rig=rig)
    else:
        raise UserError(f"robot {name!r} has no rig file; leave --rig out, or name the rig's robot with --robot")
    assert isinstance(robot, Robot)
    return robot


def robot_of(config: Config, rig: Path | None) -> Robot:
    """Return a run's robot, not yet connected; `rig` is the run's rig file."""
    robot = load_robot(config.robot, load_task(config.task), diagnostic=config.reads_truth, rig=rig)
    return varied(robot, config.randomize, config.seed)


def varied(robot: Robot, level: str, seed: int) -> Robot:
    """Return a robot whose world varies from now on; UserError if it cannot."""
    if level == "none":
        return robot
    try:
        if not isinstance(robot, SimulatedRobot):
            raise RobotError("a real robot varies by itself; --randomize needs --robot twin")
        robot.vary(level, seed)
    except RobotError as error:
        raise UserError(str(error)) from error
    return robot


def make(task: str, robot: str = "twin", *, render_mode: str | None = None) -> RobotEnv:
    """Build `r3l/TASK-v0`: a task's robot behind its rig's safety limits."""
    from r3l.robot.env import RobotEnv  # it loads gymnasium, which `r3l tasks` does not need
    from r3l.robot.safety import make_safe

    known = load_task(task)
    return RobotEnv(make_safe(load_robot(robot, known), known.rig), render_mode)
