"""What a person sets for a camera: the `[camera]` table of a rig."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

LOCKED = ("exposure", "gain", "white_balance_k", "focus")
"""What a camera changes by itself, unless it is locked."""


@dataclass(frozen=True)
class CameraSettings:
    """Where frames come from and what is made of them; sizes in pixels."""

    source: str = ""
    """A device of /dev/v4l/by-id, the address of an MJPEG stream, a video file, a folder of images; none if empty."""
    width: int = 640
    height: int = 480
    """Size of the frames that are asked for."""
    fps: float = 30.0
    crop: tuple[int, ...] = ()
    """Left, top, width and height of what is seen of an undistorted frame; the middle square where nothing is set."""
    lens: tuple[float, ...] = ()
    """fx, fy, cx, cy (px), then the distortion k1, k2, p1, p2 and so on, as OpenCV's calibrateCamera gives them."""
    exposure: tuple[float, ...] = ()
    """What a device is locked to, in its own units (v4l2-ctl -l lists them); its automatic stays on without."""
    gain: tuple[float, ...] = ()
    white_balance_k: tuple[float, ...] = ()
    focus: tuple[float, ...] = ()
    max_age_s: float = 0.5
    """An older frame than this is no observation."""


def settings_of_images(settings: CameraSettings) -> dict[str, tuple[float, ...]]:
    """Return what makes an image look as it does, by name: what goal images and a run must have in common."""
    sizes = {"size": (float(settings.width), float(settings.height)), "crop": tuple(map(float, settings.crop))}
    return sizes | {"lens": settings.lens} | {name: getattr(settings, name) for name in LOCKED}


def problems(settings: CameraSettings) -> Iterator[str]:
    """Yield what is wrong, the key first."""
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
    """Yield what is wrong with a crop of frames of a size."""
    if not crop:
        return
    if len(crop) != 4:
        yield f"camera.crop has {len(crop)} numbers, expected left, top, width, height"
        return
    left, top, wide, high = crop
    if min(left, top) < 0 or min(wide, high) < 16 or left + wide > width or top + high > height:
        yield f"camera.crop {list(crop)} is not inside a frame of {width}x{height} px, 16 px a side or more; mend it"
