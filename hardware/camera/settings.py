"""The `[camera]` table of a rig."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

LOCKED = ("exposure", "gain", "white_balance_k", "focus")
"""Properties that a camera changes by itself unless they are locked."""


@dataclass(frozen=True)
class CameraSettings:
    """The source of frames and their optics; sizes in pixels."""

    source: str = ""
    """A device of /dev/v4l/by-id, an MJPEG stream's address, a video file or an image folder; empty for no camera."""
    width: int = 640
    height: int = 480
    """Requested frame size."""
    fps: float = 30.0
    crop: tuple[int, ...] = ()
    """Left, top, width and height of the crop of an undistorted frame; the central square by default."""
    lens: tuple[float, ...] = ()
    """fx, fy, cx, cy (px), then the distortion k1, k2, p1, p2 and so on, as OpenCV's calibrateCamera returns them."""
    exposure: tuple[float, ...] = ()
    """Locked values in the device's own units (v4l2-ctl -l lists them); the automatic stays on by default."""
    gain: tuple[float, ...] = ()
    white_balance_k: tuple[float, ...] = ()
    focus: tuple[float, ...] = ()
    max_age_s: float = 0.5
    """Max age of a frame in an observation."""


def settings_of_images(settings: CameraSettings) -> dict[str, tuple[float, ...]]:
    """Return the settings that change how an image looks, by name: goal images and run must agree in them."""
    sizes = {"size": (float(settings.width), float(settings.height)), "crop": tuple(map(float, settings.crop))}
    return sizes | {"lens": settings.lens} | {name: getattr(settings, name) for name in LOCKED}


def problems(settings: CameraSettings) -> Iterator[str]:
    """Yield each problem, with its key first."""
    for key, least, most in (
        ("width", 16, 8192),
        ("height", 16, 8192),
        ("fps", 0.1, 1000.0),
        ("max_age_s", 0.02, 60.0),
    ):
        value = getattr(settings, key)
        if not least <= value <= most:
            yield f"camera.{key} is {value:g}, expected {least:g} to {most:g}"
    for key in LOCKED:
        if len(getattr(settings, key)) > 1 or not all(map(math.isfinite, getattr(settings, key))):
            yield f"camera.{key} is {list(getattr(settings, key))}, expected one number in brackets, or []"
    if len(settings.lens) not in (0, 4, 8, 9, 12) or not all(map(math.isfinite, settings.lens)):
        yield f"camera.lens has {len(settings.lens)} numbers, expected fx, fy, cx, cy and 0, 4, 5 or 8 of distortion"
    elif settings.lens and min(settings.lens[:2]) <= 0:
        yield f"camera.lens has fx {settings.lens[0]:g} and fy {settings.lens[1]:g}, expected more than 0"
    yield from crop_problems(settings.crop, settings.width, settings.height)


def crop_problems(crop: tuple[int, ...], width: int, height: int) -> Iterator[str]:
    """Yield the problems of a crop in frames of a size."""
    if not crop:
        return
    if len(crop) != 4:
        yield f"camera.crop has {len(crop)} numbers, expected left, top, width, height"
        return
    left, top, wide, high = crop
    if min(left, top) < 0 or min(wide, high) < 16 or left + wide > width or top + high > height:
        yield f"camera.crop {list(crop)} is not inside a frame of {width}x{height} px, 16 px a side or more; mend it"
