"""Detection of an object that is stuck, from images alone, and which answer is due."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from r3l.config.schema import PersistenceConfig
from r3l.robot.base import FloatArray, Image

PERTURB, SWEEP, PAUSE = 1, 2, 3
"""Levels of the answer to a stuck object; each is given beside those below it."""
ANSWERS = (
    "",
    "more perturbation",
    "a scripted sweep of the fingers between episodes",
    "the robot pauses until people free the object and resume",
)
"""The answer of each level, in words; level 0: the object moves."""


class StuckDetector:
    """Counts the env steps since the object last moved, and sets the level of the answer."""

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self._motion = MotionDetector()
        self._moved_at: int | None = None
        self.level = 0
        self.message = ""
        """One line about the newest change of level."""

    def restart(self, step: int) -> None:
        """Count from env step `step` again: people freed the object."""
        self._moved_at, self.level = step, 0
        self._motion = MotionDetector()

    def skip_step(self) -> None:
        """Leave an env step out of the count: its image shows nothing."""
        if self._moved_at is not None:
            self._moved_at += 1

    def update(self, image: Image, joints: FloatArray, step: int) -> bool:
        """Take in image [H, W, 3] and joint positions [A] after env step `step`; return whether the level changed."""
        if self._config.after_steps == 0:
            return False
        has_moved = self._motion.update(image, joints)
        if has_moved or self._moved_at is None:
            self._moved_at = step
        still = step - self._moved_at
        beyond = still - self._config.after_steps
        level = min(1 + beyond // self._config.step_every, PAUSE) if beyond >= 0 else 0
        if level == self.level:
            return False
        self.level = level
        self.message = (
            f"the object was not seen to move for {still} env steps "
            f"(persistence.after_steps {self._config.after_steps}); answer {level}: {ANSWERS[level]}"
            if level
            else "the object moves again; training goes on as usual"
        )
        return True


KEEP_EVERY, COMPARE_EVERY = 3, 6
"""Env steps from one kept frame to the next, and from one comparison to the next."""
KEPT, LONG_AGO, JUST_NOW = 334, 33, 5
"""Number of frames kept; the newest JUST_NOW count as recent, all but the newest LONG_AGO as old."""
NEIGHBOURS, MIN_NEIGHBOURS = 15, 3
"""Max and min number of old frames that a frame is compared with."""
SAME_POSE = 0.03
"""Max distance of two poses, in half joint ranges, at which the fingers look the same: any difference is the object."""
WINDOW = 40
"""Comparisons whose median decides; it leaves out what a finger covers for a few frames."""
SIDE, MOVED_SHARE, MOVED_LEVELS = 16, 0.02, 8.0
"""Images are averaged to SIDE x SIDE cells; MOVED_SHARE of the cells must change by MOVED_LEVELS of 255 grey levels."""


class MotionDetector:
    """Detects motion of the object in images in which the fingers move too.

    Each frame is compared with old frames and with recent frames, both those nearest to it in the pose of the fingers.
    The fingers change both comparisons alike. Only an object that was elsewhere in the old frames changes one of them
    more, in the same cells for a while. An object that always stays with the finger is not detected.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._poses: deque[FloatArray] = deque(maxlen=KEPT)
        self._frames: deque[FloatArray] = deque(maxlen=KEPT)
        self._excess: deque[FloatArray] = deque(maxlen=WINDOW)

    def update(self, image: Image, joints: FloatArray) -> bool:
        """Take in image [H, W, 3] and joint positions [A]; return whether the object moved since its last motion.

        A motion clears the frames before it.
        """
        self._steps += 1
        if self._steps % KEEP_EVERY:
            return False
        frame = averaged(image)
        has_moved = self._steps % COMPARE_EVERY == 0 and self._compare(frame, joints)
        if has_moved:
            for kept in (self._poses, self._frames, self._excess):
                kept.clear()
        self._poses.append(joints)
        self._frames.append(frame)
        return has_moved

    def _compare(self, frame: FloatArray, joints: FloatArray) -> bool:
        if len(self._poses) < LONG_AGO + NEIGHBOURS:
            return False
        distance = np.linalg.norm(np.array(self._poses) - joints, axis=1)
        same = np.flatnonzero(distance < SAME_POSE)
        if len(same) >= MIN_NEIGHBOURS and has_changed(self._change(frame, same)):
            return True
        near = np.median(distance[-JUST_NOW:])
        recent = np.flatnonzero(distance[-JUST_NOW:] <= near) + len(distance) - JUST_NOW
        old = np.argsort(distance[:-LONG_AGO])[:NEIGHBOURS]
        old = old[distance[old] <= near]
        if len(old) < MIN_NEIGHBOURS:
            return False
        self._excess.append(self._change(frame, old) - self._change(frame, recent))
        return len(self._excess) == WINDOW and has_changed(np.median(self._excess, axis=0))

    def _change(self, frame: FloatArray, others: NDArray[np.int64]) -> FloatArray:
        """Return each cell's median difference from the kept frames `others`, in grey levels: [SIDE * SIDE]."""
        different = np.abs(np.array([self._frames[index] for index in others]) - frame).max(-1)
        change: FloatArray = np.median(different, axis=0)
        return change


def has_changed(change: FloatArray) -> bool:
    """Return whether enough cells changed: [SIDE * SIDE] grey levels."""
    return bool(np.quantile(change, 1 - MOVED_SHARE) > MOVED_LEVELS)


def averaged(image: Image) -> FloatArray:
    """Return the mean colours of SIDE x SIDE cells, [SIDE * SIDE, 3], scaled to a mean grey level of 128.

    The scale takes out the brightness of the light. An image smaller than SIDE has one cell per pixel.
    """
    height, width = (max(size // SIDE, 1) for size in image.shape[:2])
    rows, columns = image.shape[0] // height, image.shape[1] // width
    cells = image[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    means: FloatArray = cells.mean((1, 3), dtype=np.float32).reshape(-1, 3)
    return means * np.float32(128 / max(float(means.mean()), 1.0))
