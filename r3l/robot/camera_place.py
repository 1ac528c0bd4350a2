"""Whether the camera still is where the goal images were taken."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
from numpy.typing import NDArray

from r3l.robot.base import FloatArray, Image

RECENT, STRIDE = 30, 10
"""RECENT frames, STRIDE observations apart, have a median without fingers and with little of the object."""
STEADY_SHARE, STEADY_LEVELS = 0.65, 8.0
"""A pixel is steady if it varies by less than STEADY_LEVELS grey levels over STEADY_SHARE of the goal images."""
MIN_EDGE_LEVELS, NOISE_LEVELS = 4.0, 4.0
"""Min difference of neighbouring pixels at an edge, and the difference that noise makes, in grey levels."""
MIN_BACKGROUND = 0.03
"""Min share of the pixels that must be steady edges; with less, no place can be measured."""
MAX_PIXELS = 500
"""Max number of background pixels that are compared."""
SHIFTS_PX = (0, -1, 1, -2, 2, -3, 3, -4, 4, -6, 6, -8, 8)
"""Shifts compared, down and to the right, in pixels of an image whose shorter side has 64."""
TURNS_RAD, TURNED_SHIFTS_PX = (-0.052, 0.052), (0, -2, 2)
"""Turns of the camera compared (3 degrees), and the shifts compared with each."""
MIN_FIT = 0.4
"""A fit below this, from 0 to 1, is none: the background is nowhere in the image."""


class Background:
    """The steady edges of the goal images, found again in recent frames.

    Edges do not depend on brightness. Pixels that a hand or the object covers fit nowhere, so that they count neither
    for nor against the camera's place.
    """

    def __init__(self, goals: NDArray[np.uint8]) -> None:
        """Find the background in goal images [G, H, W, 3]."""
        middle = np.median(goals, axis=0)
        varies = np.quantile(np.abs(goals - middle), STEADY_SHARE, axis=0).max(-1)
        neighbours = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
        varies = np.max([np.roll(varies, neighbour, (0, 1)) for neighbour in neighbours], 0)
        expected = gradients(middle.mean(-1))
        size = np.hypot(*expected)
        mask = (varies[1:-1, 1:-1] < STEADY_LEVELS) & (size > MIN_EDGE_LEVELS)
        pixels = np.flatnonzero(mask) if mask.mean() >= MIN_BACKGROUND else np.zeros(0, np.int64)
        pixels = pixels[:: len(pixels) // MAX_PIXELS + 1]
        self._expected = expected.reshape(2, 1, -1)[:, :, pixels].astype(np.float32)
        self._places = displaced(pixels, mask.shape)
        self._frames: deque[NDArray[np.float32]] = deque(maxlen=RECENT)
        self._pose = np.zeros(0, np.float32)
        self._count = 0
        self._misplaced, self._is_due = 0.0, False
        self.is_deferred = False
        """Whether the caller calls `compare` in its spare time, instead of `update`."""

    def update(self, image: Image, joint_rad: FloatArray, threshold: float) -> float:
        """Take in a frame; return how much better the background fits elsewhere than in its place, from 0 to 1.

        One frame in STRIDE is kept, and none of a hand at rest, which would cover the same pixels in all. Above
        `threshold` every frame is kept, so that the end is noticed soon.
        """
        self._count += 1
        is_kept = self._count % STRIDE == 0 and not np.array_equal(np.round(joint_rad, 1), self._pose)
        if self._places.size and (is_kept or self._misplaced > threshold):
            self._pose = np.round(joint_rad, 1)
            self._frames.append(image.mean(-1, dtype=np.float32))
            self._is_due = len(self._frames) == RECENT
        if not self.is_deferred:
            self.compare()
        return self._misplaced

    def compare(self) -> None:
        """Compare the recent frames with the background, if there is a new one."""
        if self._is_due:
            self._misplaced, self._is_due = self._misfit(np.median(self._frames, axis=0)), False

    def misplaced(self, frames: NDArray[np.uint8]) -> float:
        """Return `update`'s measure for the median of frames [N, H, W, 3] at once; 0 if there is no background."""
        if not self._places.size:
            return 0.0
        return self._misfit(np.median(frames.mean(-1, dtype=np.float32), axis=0))

    def _misfit(self, grey: NDArray[np.float32]) -> float:
        found = np.pad(gradients(grey).reshape(2, -1), ((0, 0), (0, 1)))[:, self._places]
        both, sizes = (found * self._expected).sum(0), (found**2).sum(0) + (self._expected**2).sum(0)
        fits = np.maximum(2 * both / (sizes + NOISE_LEVELS**2), 0).mean(-1)
        return float((fits.max() - fits[0]) / max(fits.max(), MIN_FIT))


def gradients(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vertical and horizontal differences of a grey image: [H, W] to [2, H - 2, W - 2]."""
    found: NDArray[np.float32] = np.stack([grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]])
    return found


def displaced(pixels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the indices of `pixels` [M] of an image after every shift and turn: [S, M], the first with none.

    One index beyond the last pixel stands for a pixel that left the image.
    """
    rows, columns = np.divmod(pixels, shape[1])
    down, right = rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2
    moves = [(0.0, *shift) for shift in product(SHIFTS_PX, SHIFTS_PX)]
    moves += list(product(TURNS_RAD, TURNED_SHIFTS_PX, TURNED_SHIFTS_PX))
    unit = max(1, round(min(shape) / 64))
    places = []
    for turn, vertical, horizontal in moves:
        row = np.rint(rows + unit * vertical - right * turn).astype(np.int64)
        column = np.rint(columns + unit * horizontal + down * turn).astype(np.int64)
        is_inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        places.append(np.where(is_inside, row * shape[1] + column, shape[0] * shape[1]))
    return np.stack(places)
