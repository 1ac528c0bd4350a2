"""The body of a run: its robot behind safety, as an environment, and what happens between episodes."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from r3l.config.errors import UserError
from r3l.config.schema import Config
from r3l.robot.base import FloatArray, Robot, SimulatedRobot
from r3l.robot.env import RobotEnv
from r3l.robot.pacing import RealTime
from r3l.robot.safety import SafeRobot
from r3l.task.base import Task


class Body:
    """The robot that a run trains on. Use `close` in a `finally`: it relaxes the robot."""

    def __init__(
        self, config: Config, task: Task, robot: Robot, *, is_interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Take a robot that is not yet connected; `is_interrupted` breaks moves home off."""
        self.config, self.task, self.robot, self.is_interrupted = config, task, robot, is_interrupted
        self.paced: Robot = self.robot
        if config.real_time and isinstance(self.robot, SimulatedRobot):
            self.paced = RealTime(self.robot)
        self.safe = SafeRobot(self.paced, task.rig.limits, task.rig.max_step_rad)
        self.env = RobotEnv(self.safe)
        self.rng = np.random.default_rng(config.seed)
        """Draws where diagnostic resets place the object."""
        self.keeps_real_time = keeps_real_time(config, self.robot)
        """Whether time goes on while nobody acts."""

    def between(self) -> Callable[[], None] | None:
        """Return what is done between two episodes, None for nothing."""
        kind = self.config.phases.between
        if kind == "nothing":
            return None
        if kind == "home":
            return self.home
        robot = self.robot
        if not isinstance(robot, SimulatedRobot):
            raise UserError(f"phases.between 'diagnostic-reset' needs a simulated robot, {self.config.robot!r} is none")

        def place() -> None:
            robot.place(self.task.random_states(1, self.rng)[0], self.rng)
            self.safe.forget()

        return place

    def home(self) -> None:
        """Move the fingers home by script; the object is never touched on purpose."""
        move(self.safe, self.task.rig.home_rad, self.config.phases.homing_steps, self.is_interrupted)

    def sweep(self) -> None:
        """Move all fingers through their whole range by script, to free an object that is stuck, then home."""
        lower, upper = self.safe.spec.lower_rad, self.safe.spec.upper_rad
        periods = int(np.ceil((upper - lower).max() / self.task.rig.max_step_rad))
        for pose in (lower, upper):
            move(self.safe, pose, periods, self.is_interrupted)
        self.home()

    def world(self) -> bytes | None:
        """Return a simulated robot's world, for a process that comes after this one."""
        return self.robot.save_world() if isinstance(self.robot, SimulatedRobot) else None

    def close(self) -> None:
        """Relax the robot and release it."""
        self.env.close()


def keeps_real_time(config: Config, robot: Robot) -> bool:
    """Return whether time goes on for a robot while nobody acts."""
    return config.real_time or not isinstance(robot, SimulatedRobot)


def leaves_a_core(config: Config, robot: Robot) -> bool:
    """Return whether a learner may keep two cores busy: not where its actor keeps one of two busy all the time."""
    return config.sync or keeps_real_time(config, robot) or (os.cpu_count() or 1) > 2


def move(
    robot: Robot, target_rad: FloatArray, periods: int, is_interrupted: Callable[[], bool] = lambda: False
) -> None:
    """Command one pose for so many control periods, unless interrupted."""
    for _ in range(periods):
        if is_interrupted():
            return
        robot.command(target_rad)
        robot.observe()
