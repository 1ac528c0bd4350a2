"""A shoot: a person arranges the object and takes goal images, a key each, and is told what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from r3l.robot.base import FloatArray
from r3l.robot.base import Image as Frame
from r3l.robot.safety import SafeRobot
from r3l.robot.scripted_moves import move
from r3l.run.goals import NEAR_LEVELS, thumbnail

DARK_LEVEL = 12.0
"""Mean grey level, 0 to 255, below which a picture shows nothing."""
SHARP_SHARE = 0.35
"""A picture with less than this share of the others' sharpness is blurred: something moved."""
JUDGED_FROM = 3
"""Pictures that there must be before one is called blurred."""
BABBLE_STEPS = 30
"""Control periods of a move between two pictures."""
HELP = "Enter: take a picture. u: undo the last one. b: move the fingers somewhere else, slowly. q: done. ?: this"


class GoalCapture:
    """Goal images as they are taken."""

    def __init__(self, minimum: int) -> None:
        """Take at least `minimum`."""
        self.minimum = minimum
        self.images: list[Frame] = []
        self._sharpness: list[float] = []

    def take(self, image: Frame) -> list[str]:
        """Keep a picture [H, W, 3]; return what is wrong with it, one line each."""
        found = []
        sharp = sharpness(image)
        if image.mean() < DARK_LEVEL:
            found.append(f"it is dark (mean grey level {image.mean():.0f}): light, lens cap")
        elif len(self._sharpness) >= JUDGED_FROM and sharp < SHARP_SHARE * float(np.median(self._sharpness)):
            found.append("it is blurred beside the others: hold still, focus")
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
        """Whether there are as many as a task wants."""
        return len(self.images) >= self.minimum


def sharpness(image: Frame) -> float:
    """Return how much neighbouring pixels differ, beyond what brightness makes of it."""
    grey = image.mean(-1, dtype=np.float32)
    bend = grey[1:-1, 1:-1] * 4 - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(bend.var() / max(float(grey.mean()) ** 2, 1.0))


def take_pictures(
    robot: SafeRobot,
    shoot: GoalCapture,
    keys: Iterator[str],
    say: Callable[[str], None],
    rng: np.random.Generator,
    arrange: Callable[[], None] | None = None,
) -> None:
    """Take pictures of a connected robot as keys say, until `q` or their end.

    Args:
        robot: without torque but while it moves its fingers.
        shoot: where the pictures go.
        keys: a person's keys: Enter is "".
        say: tells them something.
        rng: draws the poses of the fingers.
        arrange: what a simulated robot's stand-in does before each picture; a person has done it.
    """
    robot.relax()
    for key in keys:
        if key == "q" and shoot.is_enough:
            return
        if key == "":
            if arrange is not None:
                arrange()
            found = shoot.take(robot.observe().image)
            say(f"picture {len(shoot.images)} of {shoot.minimum} or more" + "".join(f"; {each}" for each in found))
        elif key == "u":
            say(f"{len(shoot.images)} pictures are left" if shoot.undo() else "there is no picture")
        elif key == "b":
            babble(robot, rng)
            say("the fingers are somewhere else, without torque")
        else:
            lacks = f"{shoot.minimum - len(shoot.images)} more are needed; " if key == "q" else ""
            say(lacks + HELP)


def babble(robot: SafeRobot, rng: np.random.Generator) -> None:
    """Move the fingers slowly to a random pose, so that theirs tells nothing, and relax."""
    lower, upper = robot.spec.lower_rad, robot.spec.upper_rad
    target = rng.uniform(lower, upper).astype(np.float32)
    begin = robot.observe().joint_rad
    for step in range(BABBLE_STEPS):
        pose: FloatArray = (begin + (step + 1) / BABBLE_STEPS * (target - begin)).astype(np.float32)
        move(robot, pose, 1)
    robot.relax()
