"""TODO r3l/robot/camera_place.py."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
from numpy.typing import NDArray

from r3l.robot.base import FloatArray, Image

RECENT, STRIDE = 30, 10
"""So many frames, each so many looks after the one before, make a median without fingers and with little object."""


STEADY_SHARE, STEADY_LEVELS, EDGE_LEVELS, NOISE_LEVELS = 0.65, 8.0, 4.0, 4.0
"""What is steady varies less, in levels of 255, over that share of the goal images; edges are steeper, noise is not."""


MIN_BACKGROUND, MAX_PIXELS = 0.03, 500
"""Share of the pixels that must be background, or nothing can be told; and how many of them are enough."""


SHIFTS_PX = (0, -1, 1, -2, 2, -3, 3, -4, 4, -6, 6, -8, 8)
"""How far off, down and to the right, the background is looked for: pixels of an image 64 pixels high or wide."""


TURNS_RAD, TURNED_SHIFTS_PX = (-0.052, 0.052), (0, -2, 2)
"""The same for a camera that was turned by three degrees."""


MIN_FIT = 0.4
"""What fits nowhere better than this is not there."""


class Background:
    """What hardly varies over the goal images: how much better it fits recent frames elsewhere than in its place.

    Edges are compared, so that brightness does not matter. What a hand or the object covers fits nowhere; so it
    counts neither for nor against the camera.
    """

    def __init__(self, goals: NDArray[np.uint8]) -> None:
        """Learn the background from goal images [G, H, W, 3]."""
        middle = np.median(goals, axis=0)
        varies = np.quantile(np.abs(goals - middle), STEADY_SHARE, axis=0).max(-1)
        neighbours = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
        varies = np.max([np.roll(varies, neighbour, (0, 1)) for neighbour in neighbours], 0)
        expected = gradients(middle.mean(-1))
        size = np.hypot(*expected)
        mask = (varies[1:-1, 1:-1] < STEADY_LEVELS) & (size > EDGE_LEVELS)
        pixels = np.flatnonzero(mask) if mask.mean() >= MIN_BACKGROUND else np.zeros(0, np.int64)
        pixels = pixels[:: len(pixels) // MAX_PIXELS + 1]
        self._expected = expected.reshape(2, 1, -1)[:, :, pixels].astype(np.float32)
        self._places = displaced(pixels, mask.shape)
        self._frames: deque[NDArray[np.float32]] = deque(maxlen=RECENT)
        self._pose = np.zeros(0, np.float32)
        self._looks = 0
        self._misplaced, self._is_due = 0.0, False
        self.defers = False
        """Whether somebody calls `think` when there is time for it, instead of `see`."""

    def see(self, image: Image, joint_rad: FloatArray, threshold: float) -> float:
        """Take in a frame; return how much better the background fits elsewhere, from 0 to 1.

        A frame in STRIDE is enough, and none of a hand that rests, which would hide the same all the time; but above
        `threshold` every one counts, so that the end is soon seen.
        """
        self._looks += 1
        is_due = self._looks % STRIDE == 0 and not np.array_equal(np.round(joint_rad, 1), self._pose)
        if self._places.size and (is_due or self._misplaced > threshold):
            self._pose = np.round(joint_rad, 1)
            self._frames.append(image.mean(-1, dtype=np.float32))
            self._is_due = len(self._frames) == RECENT
        if not self.defers:
            self.think()
        return self._misplaced

    def think(self) -> None:
        """Compare the recent frames with the background, where there is a new one."""
        if self._is_due:
            self._misplaced, self._is_due = self._compare(np.median(self._frames, axis=0)), False

    def misplaced(self, frames: NDArray[np.uint8]) -> float:
        """Return how much better the background fits frames [N, H, W, 3] elsewhere, from 0 to 1; 0 where it is none."""
        if not self._places.size:
            return 0.0
        return self._compare(np.median(frames.mean(-1, dtype=np.float32), axis=0))

    def _compare(self, grey: NDArray[np.float32]) -> float:
        found = np.pad(gradients(grey).reshape(2, -1), ((0, 0), (0, 1)))[:, self._places]
        both, sizes = (found * self._expected).sum(0), (found**2).sum(0) + (self._expected**2).sum(0)
        fits = np.maximum(2 * both / (sizes + NOISE_LEVELS**2), 0).mean(-1)
        return float((fits.max() - fits[0]) / max(fits.max(), MIN_FIT))


def gradients(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vertical and horizontal differences of a grey image: [H, W] to [2, H - 2, W - 2]."""
    found: NDArray[np.float32] = np.stack([grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]])
    return found


def displaced(pixels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return where `pixels` [M] of an image of `shape` are after every shift and turn: [S, M], the first with none.

    One beyond the last pixel stands for all that left the picture.
    """
    rows, columns = np.divmod(pixels, shape[1])
    down, right = rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2
    moves = [(0.0, *shift) for shift in product(SHIFTS_PX, SHIFTS_PX)]
    moves += list(product(TURNS_RAD, TURNED_SHIFTS_PX, TURNED_SHIFTS_PX))
    places = []
    unit = max(1, round(min(shape) / 64))
    for turn, vertical, horizontal in moves:
        there = np.rint(rows + unit * vertical - right * turn).astype(np.int64)
        beside = np.rint(columns + unit * horizontal + down * turn).astype(np.int64)
        is_inside = (there >= 0) & (there < shape[0]) & (beside >= 0) & (beside < shape[1])
        places.append(np.where(is_inside, there * shape[1] + beside, shape[0] * shape[1]))
    return np.stack(places)
