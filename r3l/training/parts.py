"""The parts that the actor loop and the learner loop of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from r3l.config.schema import Config
from r3l.robot.base import Robot
from r3l.run.directory import Run
from r3l.run.goals import Goals, load_goals
from r3l.task.base import Task
from r3l.task.registry import load_task, robot_of
from r3l.training.shared_status import Status


@dataclass(frozen=True)
class Parts:
    """A run with its task, goal images and robot, and the status that its loops report to."""

    run: Run
    status: Status
    task: Task
    goals: Goals
    robot: Robot
    """Not connected."""
    show: Callable[[str], None]
    """Shows an event to people."""

    @classmethod
    def load(cls, run: Run, status: Status, show: Callable[[str], None] = lambda text: None) -> Self:
        """Load the parts of `run`."""
        task = load_task(run.config.task)
        goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
        return cls(run, status, task, goals, robot_of(run.config, run.rig), show)

    @property
    def config(self) -> Config:
        """The run's config."""
        return self.run.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of a camera image: [H, W, 3]."""
        camera = self.task.rig.camera
        return camera.height, camera.width, 3

    def tell(self, kind: str, message: str) -> None:
        """Write an event and show it; an event that the disk does not take is printed instead."""
        try:
            self.run.event(kind, message)
        except OSError as error:
            print(f"{kind}: {message} (events cannot be written: {error})", flush=True)
        self.show(f"{kind}: {message}")
