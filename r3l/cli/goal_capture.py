"""Goal images by hand: a person arranges the object and presses a key for each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from r3l.config.errors import UserError
from r3l.robot.base import FloatArray, Image, Robot, SimulatedRobot
from r3l.robot.safety import SafeRobot, make_safe
from r3l.robot.scripted_moves import move
from r3l.run.goals import NEAR_LEVELS, thumbnail
from r3l.task.base import Task

MIN_GREY_LEVEL = 12.0
"""Mean grey level, 0 to 255, below which a picture counts as dark."""
MIN_SHARPNESS = 0.35
"""Share of the median sharpness below which a picture counts as blurred."""
MIN_COMPARED = 3
"""Pictures needed before the next one is compared for sharpness."""
BABBLE_STEPS = 30
"""Control periods of a finger move between two pictures."""
HELP = "Enter: take a picture. u: undo the last one. b: move the fingers somewhere else, slowly. q: done. ?: this help"


class GoalCapture:
    """The goal images taken so far."""

    def __init__(self, minimum: int) -> None:
        """Require at least `minimum` images."""
        self.minimum = minimum
        self.images: list[Image] = []
        self._sharpness: list[float] = []

    def take(self, image: Image) -> list[str]:
        """Keep a picture [H, W, 3]; return its faults, one line each."""
        found = []
        sharp = sharpness(image)
        if image.mean() < MIN_GREY_LEVEL:
            found.append(f"it is dark (mean grey level {image.mean():.0f}): light, lens cap")
        elif len(self._sharpness) >= MIN_COMPARED and sharp < MIN_SHARPNESS * float(np.median(self._sharpness)):
            found.append("it is blurred, compared with the others: hold still, focus")
        here = thumbnail(image)
        near = [at for at, other in enumerate(self.images) if np.abs(thumbnail(other) - here).mean() < NEAR_LEVELS]
        if near:
            found.append(f"it is nearly picture {near[-1] + 1}: move the fingers, or the object within success")
        self.images.append(image)
        self._sharpness.append(sharp)
        return found

    def undo(self) -> bool:
        """Drop the last picture; return whether there was one."""
        if not self.images:
            return False
        self.images.pop()
        self._sharpness.pop()
        return True

    @property
    def is_enough(self) -> bool:
        """Whether there are as many images as the task needs."""
        return len(self.images) >= self.minimum


def sharpness(image: Image) -> float:
    """Return the variance of the image's Laplacian over its squared mean grey level."""
    grey = image.mean(-1, dtype=np.float32)
    laplacian = grey[1:-1, 1:-1] * 4 - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(laplacian.var() / max(float(grey.mean()) ** 2, 1.0))


def capture_by_hand(
    task: Task, robot: Robot, keys: Iterator[str], say: Callable[[str], None], rng: np.random.Generator
) -> list[Image]:
    """Connect a robot and return the goal images that a person takes with it; UserError if they are too few.

    If the robot is simulated, it arranges the object before each picture in place of the person.
    """
    safe, capture = make_safe(robot, task.rig), GoalCapture(task.minimum_goals)

    def arrange() -> None:
        safe.place(task.goal_states(1, rng)[0], rng)

    with safe:
        say(f"Arrange the object as a success looks, {task.minimum_goals} times or more. {HELP}")
        take_pictures(safe, capture, keys, say, rng, arrange if isinstance(robot, SimulatedRobot) else None)
    if not capture.is_enough:
        raise UserError(
            f"{len(capture.images)} goal images were taken, expected {task.minimum_goals} or more; none is kept "
            "(pictures taken elsewhere: --from-folder)"
        )
    return capture.images


def take_pictures(
    robot: SafeRobot,
    capture: GoalCapture,
    keys: Iterator[str],
    say: Callable[[str], None],
    rng: np.random.Generator,
    arrange: Callable[[], None] | None = None,
) -> None:
    """Take pictures of a connected robot as a person's keys say, until `q` or the end of the keys.

    Args:
        robot: the robot; it has torque only while it moves its fingers.
        capture: keeps the pictures.
        keys: the keys; Enter is "".
        say: prints a line for the person.
        rng: draws the poses of the fingers.
        arrange: arranges the object of a simulated robot before each picture; None if a person does it.
    """
    robot.relax()
    for key in keys:
        if key == "q" and capture.is_enough:
            return
        if key == "":
            if arrange is not None:
                arrange()
            found = capture.take(robot.observe().image)
            say(f"picture {len(capture.images)} of {capture.minimum} or more" + "".join(f"; {each}" for each in found))
        elif key == "u":
            say(f"{len(capture.images)} pictures are left" if capture.undo() else "there is no picture")
        elif key == "b":
            babble(robot, rng)
            say("the fingers are somewhere else, without torque")
        else:
            lacks = f"{capture.minimum - len(capture.images)} more are needed; " if key == "q" else ""
            say(lacks + HELP)


def babble(robot: SafeRobot, rng: np.random.Generator) -> None:
    """Move the fingers slowly to a random pose, so that their pose says nothing about success, and relax."""
    lower, upper = robot.spec.lower_rad, robot.spec.upper_rad
    target = rng.uniform(lower, upper).astype(np.float32)
    begin = robot.observe().joint_rad
    for step in range(BABBLE_STEPS):
        pose: FloatArray = (begin + (step + 1) / BABBLE_STEPS * (target - begin)).astype(np.float32)
        move(robot, pose, 1)
    robot.relax()
