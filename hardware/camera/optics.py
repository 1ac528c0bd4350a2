"""Optics: from a camera's frame to the robot's image. Undistort, crop and average happen here alone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from r3l.robot import CameraSpec, Image, RobotError

from .settings import CameraSettings, crop_problems


class Optics:
    """Converts frames of one size into the robot's images."""

    def __init__(self, settings: CameraSettings, spec: CameraSpec) -> None:
        self._settings, self._spec = settings, spec
        self._size = (0, 0)
        self._maps: tuple[Any, Any] | None = None
        self._window = (0, 0, 0, 0)

    def see(self, frame: Image) -> Image:
        """Return the image of a frame [H, W, 3] BGR: RGB in the robot's size.

        Raises:
            RobotError: the crop is not inside a frame of this size.
        """
        if frame.shape[:2] != self._size:
            self._prepare(*frame.shape[:2])
        if self._maps is not None:
            frame = np.asarray(cv2.remap(frame, *self._maps, cv2.INTER_LINEAR), np.uint8)
        left, top, width, height = self._window
        seen = frame[top : top + height, left : left + width]
        shrinks = width >= self._spec.width and height >= self._spec.height
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = cv2.resize(seen, (self._spec.width, self._spec.height), interpolation=how)
        image: Image = np.ascontiguousarray(small[:, :, ::-1])
        return image

    def _prepare(self, height: int, width: int) -> None:
        """Compute everything that depends on the frame size alone."""
        crop = self._settings.crop
        problem = next(crop_problems(crop, width, height), None)
        if problem is not None:
            raise RobotError(f"{problem} (the camera's frames have this size)")
        self._window = (crop[0], crop[1], crop[2], crop[3]) if crop else self._middle(height, width)
        lens = self._settings.lens
        if lens:
            matrix = np.array([[lens[0], 0, lens[2]], [0, lens[1], lens[3]], [0, 0, 1]])
            distortion = np.array(lens[4:] or (0.0,) * 4)
            self._maps = cv2.initUndistortRectifyMap(
                matrix, distortion, np.eye(3), matrix, (width, height), cv2.CV_16SC2
            )
        self._size = (height, width)

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the largest central window of a frame with the image's aspect ratio."""
        spec = self._spec
        scale = min(width / spec.width, height / spec.height)
        wide, high = max(int(spec.width * scale), 1), max(int(spec.height * scale), 1)
        return (width - wide) // 2, (height - high) // 2, wide, high
