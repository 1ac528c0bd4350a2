"""The rig of a task: control rate, camera and workspace, as people set them in a TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r3l.config.convert import from_dict
from r3l.config.errors import UserError
from r3l.robot.base import CameraSpec, FloatArray, Joint

SMALLEST_SIDE, MAX_PIXELS = 16, 64_000_000
"""Min side and max size of an image in pixels."""


@dataclass(frozen=True)
class JointRange:
    """Workspace limits and home position of a joint, rad."""

    min_rad: float
    max_rad: float
    home_rad: float


@dataclass(frozen=True)
class Rig:
    """The `[rig]` table of a task's TOML file: control rate, camera and workspace."""

    control_hz: float
    max_step_rad: float
    """Max change of a joint's target per control period, rad."""
    camera: CameraSpec
    joints: dict[str, JointRange]
    gym: str = ""
    """Id of the Gymnasium environment for `--robot gym`; empty on other rigs."""

    @property
    def limits(self) -> tuple[Joint, ...]:
        """The workspace limits as joints, in the order of the robot's joints."""
        return tuple(Joint(name, joint.min_rad, joint.max_rad) for name, joint in self.joints.items())

    @property
    def home_rad(self) -> FloatArray:
        """Home positions: [A] float32, rad."""
        return np.array([joint.home_rad for joint in self.joints.values()], np.float32)


def load_rig(path: Path) -> Rig:
    """Read a rig from a task's TOML file; UserError names the first problem."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"rig file {path} cannot be read ({error}); expected a TOML file with a [rig] table") from error
    rig = from_dict(Rig, values.get("rig", {}), "rig.")
    problem = next(rig_problems(rig), None)
    if problem is not None:
        raise UserError(f"rig file {path}: {problem}")
    return rig


def rig_problems(rig: Rig) -> Iterator[str]:
    """Yield the problems of a rig, the key first."""
    for key in ("control_hz", "max_step_rad"):
        value = getattr(rig, key)
        if not 0 < value < math.inf:
            yield f"rig.{key} is {value}, expected more than 0"
    if min(rig.camera.width, rig.camera.height) < SMALLEST_SIDE:
        yield f"rig.camera is {rig.camera.width}x{rig.camera.height} px, expected {SMALLEST_SIDE} a side or more"
    if not rig.joints:
        yield "rig.joints is empty, expected at least one"
    for name, joint in rig.joints.items():
        low, home, high = joint.min_rad, joint.home_rad, joint.max_rad
        if not -math.inf < low <= home <= high < math.inf or low == high:
            yield f"rig.joints.{name} has min_rad {low}, home_rad {home}, max_rad {high}, expected rising"
