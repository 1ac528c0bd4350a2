"""Camera checks: opening, rate and settings, and whether the camera sees the workspace as the goal images show it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from r3l.config.errors import missing_package
from r3l.config.schema import ChecksConfig
from r3l.robot import CameraSpec, RobotError
from r3l.robot.camera_place import Background
from r3l.robot.observation_checks import measure_light
from r3l.run.goals import Goals

from .settings import LOCKED, CameraSettings

if TYPE_CHECKING:
    from .camera import Camera

LOOK_S = 2.0
MIN_RATE = 0.8
"""Min share of the requested rate, and min frames per control period."""
FRAMES_PER_PERIOD = 1.5
OTHER_LIGHT = 25.0
"""Max difference in light from the goal images, grey levels of 255."""
Level = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Line:
    """The result of one check."""

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.text}"


def check_camera(settings: CameraSettings, control_hz: float, goals: Goals | None) -> Iterator[Line]:
    """Yield the result of each check of a camera, for a robot with the given control rate."""
    if not settings.source:
        yield Line("note", "camera: none in the rig; nothing can be learned from a picture of the joints")
        return
    try:
        from .camera import Camera
    except ModuleNotFoundError as error:
        raise missing_package("a camera", error) from error
    height, width = goals.train.shape[1:3] if goals else (64, 64)
    camera = Camera(settings, CameraSpec(width, height))
    try:
        with camera:
            frames, rate = _watch(camera)
    except RobotError as error:
        yield Line("FAIL", str(error))
        return
    yield _rate(settings, rate, control_hz)
    held = {name: camera.found[name] for name in LOCKED if getattr(settings, name)}
    if held:
        yield Line("ok", f"camera: holds {', '.join(f'{name} {value:g}' for name, value in held.items())}")
    elif camera.found:
        yield Line("note", "camera: exposure, white balance and focus are automatic; lock them in the rig's [camera]")
    yield from _picture(frames)
    if goals is not None:
        yield from _compared(frames, goals)


def _watch(camera: Camera) -> tuple[NDArray[np.uint8], float]:
    """Return the frames of a few seconds, [N, H, W, 3], and the frames per second."""
    seen: dict[int, NDArray[np.uint8]] = {}
    began_s = time.monotonic()
    while time.monotonic() - began_s < LOOK_S:
        frame = camera.newest()
        assert frame is not None  # the check for opening passed
        seen[frame.number] = frame.image
        time.sleep(0.005)
    return np.stack(list(seen.values())), (max(seen) - min(seen)) / LOOK_S


def _rate(settings: CameraSettings, rate: float, control_hz: float) -> Line:
    text = f"camera: {rate:.0f} frames per second"
    if rate < FRAMES_PER_PERIOD * control_hz:
        least = f"expected {FRAMES_PER_PERIOD * control_hz:.0f} or more for {control_hz:g} Hz"
        return Line("FAIL", f"{text}, {least}; give it more light, or ask for smaller frames")
    if rate < MIN_RATE * settings.fps:
        return Line("note", f"{text}, {settings.fps:g} were asked for; a camera that has little light slows down")
    return Line("ok", text)


def _picture(frames: NDArray[np.uint8]) -> Iterator[Line]:
    level, bright = measure_light(frames)
    limits = ChecksConfig()
    if level < limits.dark.threshold:
        yield Line("FAIL", f"camera: the picture is dark (mean grey level {level:.0f}); lens cap, light, exposure")
    elif bright > limits.saturated.threshold:
        yield Line("FAIL", f"camera: {bright:.2f} of the picture is as bright as can be; less light or exposure")
    elif len(frames) > limits.frozen.threshold and not np.ptp(frames, axis=0).any():
        yield Line("FAIL", f"camera: {len(frames)} identical pictures; it is frozen: plug it in anew")
    else:
        yield Line("ok", f"camera: mean grey level {level:.0f}, {bright:.2f} as bright as can be")


def _compared(frames: NDArray[np.uint8], goals: Goals) -> Iterator[Line]:
    """Compare the camera with the goal images: the position of their constant parts, and the light."""
    misplaced, limit = Background(goals.train).misplaced(frames), ChecksConfig().moved.threshold
    if misplaced > limit:
        text = f"camera: the goal images' background fits better elsewhere, by {misplaced:.2f}"
        yield Line("FAIL", f"{text}; put it back where it was")
    else:
        yield Line("ok", f"camera: it stands where the goal images were taken ({misplaced:.2f} of {limit:g})")
    theirs, ours = measure_light(goals.train)[0], measure_light(frames)[0]
    if abs(theirs - ours) > OTHER_LIGHT:
        text = f"camera: mean grey level {ours:.0f}, the goal images have {theirs:.0f}"
        yield Line("FAIL", f"{text}; the light or the exposure is another: make it as it was, or take goal images anew")
