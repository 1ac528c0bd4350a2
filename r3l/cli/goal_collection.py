"""Goal images from the twin: a simulated hand arranges the object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from r3l.robot.base import FloatArray, Image, SimulatedRobot
from r3l.robot.safety import SafeRobot, make_safe
from r3l.task.base import Task

RANDOM_STEPS = 3
"""Control periods for which the fingers move to a random pose before a picture."""
MAX_TRIES = 8
"""Random poses per picture; after that many the fingers stay where the twin places them."""


def collect_on_twin(
    task: Task,
    twin: SimulatedRobot,
    count: int,
    rng: np.random.Generator,
    on_progress: Callable[[], None] = lambda: None,
) -> list[Image]:
    """Take `count` goal images [H, W, 3] on a connected twin.

    The fingers move at random in their workspace, over the object too, so that their pose says nothing about success.
    A try in which the fingers moved the object out of success is repeated. Reads the ground truth.
    """
    robot = make_safe(twin, task.rig)
    images = []
    for state in task.goal_states(count, rng):
        images.append(_goal_image(task, robot, twin, state, rng))
        on_progress()
    return images


def _goal_image(
    task: Task, robot: SafeRobot, twin: SimulatedRobot, state: FloatArray, rng: np.random.Generator
) -> Image:
    for _ in range(MAX_TRIES):
        robot.place(state, rng)
        target = rng.uniform(robot.spec.lower_rad, robot.spec.upper_rad).astype(np.float32)
        for _ in range(RANDOM_STEPS):
            robot.command(target)
            image = robot.observe().image
        if twin.truth()["error"] <= task.success_error / 2:
            return image
    twin.place(state, rng)
    return twin.observe().image
