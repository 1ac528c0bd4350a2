"""TODO r3l/cli/goal_collection.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from r3l.robot.base import Image as Frame
from r3l.robot.base import SimulatedRobot
from r3l.robot.safety import SafeRobot
from r3l.task.base import Task

PLAY_STEPS, PLAY_TRIES = 3, 8


def collect_on_twin(
    task: Task,
    twin: SimulatedRobot,
    count: int,
    rng: np.random.Generator,
    on_progress: Callable[[], None] = lambda: None,
) -> list[Frame]:
    """Take `count` goal images [H, W, 3] on a connected twin: the stand-in for a person's hand.

    The fingers play at random where they work, over the object too, so that their pose does not tell a goal image
    from any other; a try in which they turned the object away is taken again. Reads ground truth, as a hand would.
    """
    rig = task.rig
    robot = SafeRobot(twin, rig.limits, rig.max_step_rad)
    images = []
    for state in task.goal_states(count, rng):
        images.append(_played(task, robot, twin, state, rng))
        on_progress()
    return images


def _played(
    task: Task, robot: SafeRobot, twin: SimulatedRobot, state: NDArray[np.float32], rng: np.random.Generator
) -> Frame:
    for _ in range(PLAY_TRIES):
        twin.place(state, rng)
        robot.forget()
        target = rng.uniform(robot.spec.lower_rad, robot.spec.upper_rad).astype(np.float32)
        for _ in range(PLAY_STEPS):
            robot.command(target)
            image = robot.observe().image
        if twin.truth()["error"] <= task.success_error / 2:
            return image
    twin.place(state, rng)
    return twin.observe().image
