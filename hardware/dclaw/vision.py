"""The hand's image source: its camera, or a drawing of its joints if it has no camera."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from r3l.config.errors import missing_package
from r3l.robot import FloatArray, Image, RobotSpec, Trouble

from ..camera.settings import CameraSettings

if TYPE_CHECKING:
    from ..camera.camera import Camera

BACKGROUND, BAR = (40, 44, 52), (220, 160, 60)


class Vision:
    """The camera image, or a drawing of the joints if there is no camera."""

    def __init__(self, settings: CameraSettings, spec: RobotSpec) -> None:
        """Use the camera of `settings`; UserError if the extra for cameras is not installed."""
        self._spec = spec
        self.camera = _camera(settings, spec) if settings.source else None
        self._image: Image = np.zeros((spec.camera.height, spec.camera.width, 3), np.uint8)
        self._trouble = ""

    @property
    def identical_frames(self) -> Literal["never", "often"]:
        """A camera has noise; a drawing of joints at rest has none."""
        return "never" if self.camera else "often"

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The camera's trouble at the newest image: a frame that is too old is left out."""
        return (Trouble("camera", "skip", self._trouble),) if self._trouble else ()

    def open(self) -> None:
        """Open the camera; RobotError if it gives no frame."""
        self._trouble = ""
        if self.camera is not None:
            self.camera.open()

    def close(self) -> None:
        """Close the camera; safe to call twice."""
        if self.camera is not None:
            self.camera.close()

    def see(self, joint_rad: FloatArray) -> Image:
        """Return the newest image [H, W, 3]; `troubles` tells if it is too old."""
        if self.camera is None:
            return draw_joints(joint_rad, self._spec)
        frame, self._trouble = self.camera.newest(), self.camera.trouble()
        if frame is not None:
            self._image = frame.image
        return self._image.copy()


def _camera(settings: CameraSettings, spec: RobotSpec) -> Camera:
    try:
        from ..camera.camera import Camera
    except ModuleNotFoundError as error:
        raise missing_package("a camera", error) from error
    return Camera(settings, spec.camera)


def draw_joints(joint_rad: FloatArray, spec: RobotSpec) -> Image:
    """Draw a bar per joint, empty at the joint's lower limit and full at its upper limit: [H, W, 3]."""
    height, width = spec.camera.height, spec.camera.width
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    share = (np.nan_to_num(joint_rad) - spec.lower_rad) / (spec.upper_rad - spec.lower_rad)
    edges = np.linspace(0, width, len(joint_rad) + 1).astype(int)
    for part, left, right in zip(np.clip(share, 0.02, 1.0), edges[:-1], edges[1:], strict=True):
        image[height - max(int(part * height), 1) :, left : max(right - 1, left + 1)] = BAR
    return image
