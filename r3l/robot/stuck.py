"""Persistence: has the object stopped moving, and what is done about it, gently first."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from r3l.config.schema import PersistenceConfig
from r3l.robot.base import FloatArray, Image

ANSWERS = (
    "",
    "more perturbation",
    "a scripted sweep of the fingers between episodes",
    "the robot pauses until people free the object and resume",
)
"""What is done at each level, beside what was done before."""


class StuckDetector:
    """Counts the env steps since the object was last seen to move, and says which answer is due."""

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self._motion = Motion()
        self._moved_at: int | None = None
        self.level = 0
        """Which answer is due: an index of ANSWERS; 0 while the object moves."""
        self.message = ""
        """One line about the newest change of level."""

    def restart(self, step: int) -> None:
        """Give the object its whole time again: people looked after it."""
        self._moved_at, self.level = step, 0
        self._motion = Motion()

    def overlook(self) -> None:
        """Leave out an env step on which nothing could be seen: it counts neither for nor against motion."""
        if self._moved_at is not None:
            self._moved_at += 1

    def look(self, image: Image, joints: FloatArray, step: int) -> None:
        """Take in what was seen [H, W, 3] and the joint positions [A] after env step `step`; set the level."""
        if self._config.after_steps == 0:
            return
        has_moved = self._motion.see(image, joints)
        if has_moved or self._moved_at is None:
            self._moved_at = step
        still = step - self._moved_at - self._config.after_steps
        self._set_level(min(1 + still // self._config.step_every, len(ANSWERS) - 1) if still >= 0 else 0, step)

    def _set_level(self, level: int, step: int) -> None:
        if level == self.level:
            return
        self.level = level
        assert self._moved_at is not None
        if level == 0:
            self.message = "the object moves again; training goes on as usual"
        else:
            self.message = (
                f"the object was not seen to move for {step - self._moved_at} env steps "
                f"(persistence.after_steps {self._config.after_steps}); answer {level}: {ANSWERS[level]}"
            )


KEEP_EVERY, COMPARE_EVERY = 3, 6
"""Env steps between two frames kept, and between two compared."""
KEPT, LONG_AGO, JUST_NOW = 334, 33, 5
"""How many frames are kept; all but the newest LONG_AGO are from long ago, the newest JUST_NOW from just now."""
NEIGHBOURS, MIN_NEIGHBOURS = 15, 3
"""Frames from long ago that a frame is compared with: at most, and at least or it is not."""
SAME_POSE = 0.03
"""Poses no farther apart, in halves of the joints' ranges, look alike: what differs there is the object at once."""
WINDOW = 40
"""Comparisons whose median tells: what a finger covers now and then is no motion."""
SIDE, MOVED_SHARE, MOVED_LEVELS = 16, 0.02, 8.0
"""The picture is averaged to SIDE x SIDE cells; that share of them must have changed by so many of 255 levels."""


class Motion:
    """Sees in images alone whether the object moved, though fingers wave before it.

    Every frame is compared with frames from long ago and with frames from just now, both as near to it in the pose of
    the fingers. The fingers change both alike; only an object that was elsewhere long ago changes one more than the
    other, at the same places for a while. An object that never leaves the finger is not seen.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._poses: deque[FloatArray] = deque(maxlen=KEPT)
        self._pictures: deque[FloatArray] = deque(maxlen=KEPT)
        self._excess: deque[FloatArray] = deque(maxlen=WINDOW)

    def see(self, image: Image, joints: FloatArray) -> bool:
        """Take in an image [H, W, 3] and the joint positions [A]; return whether the object moved since the last time.

        What was before a motion is forgotten with it.
        """
        self._steps += 1
        if self._steps % KEEP_EVERY:
            return False
        picture = averaged(image)
        has_moved = self._steps % COMPARE_EVERY == 0 and self._compare(picture, joints)
        if has_moved:
            for kept in (self._poses, self._pictures, self._excess):
                kept.clear()
        self._poses.append(joints)
        self._pictures.append(picture)
        return has_moved

    def _compare(self, picture: FloatArray, joints: FloatArray) -> bool:
        if len(self._poses) < LONG_AGO + NEIGHBOURS:
            return False
        apart = np.linalg.norm(np.array(self._poses) - joints, axis=1)
        same = np.flatnonzero(apart < SAME_POSE)
        if len(same) >= MIN_NEIGHBOURS and has_changed(self._change(picture, same)):
            return True
        near = np.median(apart[-JUST_NOW:])
        just_now = np.flatnonzero(apart[-JUST_NOW:] <= near) + len(apart) - JUST_NOW
        long_ago = np.argsort(apart[:-LONG_AGO])[:NEIGHBOURS]
        long_ago = long_ago[apart[long_ago] <= near]
        if len(long_ago) < MIN_NEIGHBOURS:
            return False
        self._excess.append(self._change(picture, long_ago) - self._change(picture, just_now))
        return len(self._excess) == WINDOW and has_changed(np.median(self._excess, axis=0))

    def _change(self, picture: FloatArray, before: NDArray[np.int64]) -> FloatArray:
        """Return by how many levels each cell differs from most of the frames `before`: [SIDE * SIDE]."""
        different = np.abs(np.array([self._pictures[index] for index in before]) - picture).max(-1)
        change: FloatArray = np.median(different, axis=0)
        return change


def has_changed(change: FloatArray) -> bool:
    """Return whether enough of the cells changed: [SIDE * SIDE] levels."""
    return bool(np.quantile(change, 1 - MOVED_SHARE) > MOVED_LEVELS)


def averaged(image: Image) -> FloatArray:
    """Return the means of SIDE x SIDE cells of an image [H, W, 3], [SIDE * SIDE, 3], for a mean level of 128.

    So the brightness of the light does not matter. Images smaller than that have a cell for every pixel.
    """
    height, width = (max(size // SIDE, 1) for size in image.shape[:2])
    rows, columns = image.shape[0] // height, image.shape[1] // width
    cells = image[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    means: FloatArray = cells.mean((1, 3), dtype=np.float32).reshape(-1, 3)
    return means * np.float32(128 / max(float(means.mean()), 1.0))
