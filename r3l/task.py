"""What to learn: a task names its rig, its goals and, for the twin, its scene and an error only evaluation may read."""

from __future__ import annotations

import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from r3l.config import UserError, from_dict
from r3l.robot import CameraSpec, FloatArray, Joint, Truth


@dataclass(frozen=True)
class CameraPose:
    """Where the twin's camera is (m), what it looks at (m), its vertical field of view (degrees)."""

    eye_m: tuple[float, float, float] = (0.0, 0.001, 0.28)
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.03)
    field_of_view_deg: float = 36.0


class Scene(ABC):
    """A task's objects inside the twin."""

    camera: CameraPose = CameraPose()
    """From the palm, straight down between the fingers."""
    state_names: tuple[str, ...]
    """Names of the values of `state`."""
    bodies: tuple[int, ...]
    """PyBullet ids of the object to learn about, known after `load`."""

    @abstractmethod
    def load(self, client: Any) -> None:
        """Create the bodies in a PyBullet client, once."""

    @abstractmethod
    def place(self, state: FloatArray) -> None:
        """Put the object at rest at `state`."""

    @abstractmethod
    def truth(self) -> Truth:
        """Return the object's ground truth, `error` among it."""

    @abstractmethod
    def state(self) -> FloatArray:
        """Return ground truth as a vector for the diagnostic variants: [D] float32."""


@dataclass(frozen=True)
class JointRange:
    """Workspace limits and home position of one joint, rad."""

    min_rad: float
    max_rad: float
    home_rad: float


@dataclass(frozen=True)
class Rig:
    """What a person sets for a robot in front of a task; the `[rig]` table of the task's TOML file."""

    control_hz: float
    max_step_rad: float
    """How far a joint's target may move per control period."""
    camera: CameraSpec
    joints: dict[str, JointRange]

    @property
    def limits(self) -> tuple[Joint, ...]:
        """The workspace limits as joints, in the robot's order."""
        return tuple(Joint(name, joint.min_rad, joint.max_rad) for name, joint in self.joints.items())

    @property
    def home_rad(self) -> FloatArray:
        """Where homing sends the joints: [A] float32, rad."""
        return np.array([joint.home_rad for joint in self.joints.values()], np.float32)


def load_rig(path: Path) -> Rig:
    """Read a rig from a task's TOML file; UserError names what is wrong with it."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"rig file {path} cannot be read ({error}); expected a TOML file with a [rig] table") from error
    return from_dict(Rig, values.get("rig", {}), "rig.")


class Task(ABC):
    """A task of the twin and of the real rig alike. What reads ground truth says so."""

    name: str
    description: str
    episode_steps: int
    """Length of an evaluation episode in env steps."""
    success_error: float
    """Largest true error of a success, in `error_unit`."""
    error_unit: str
    other_thresholds: tuple[float, ...] = ()
    """Other errors at which success is reported too, in `error_unit`."""
    minimum_goals: int = 20

    @property
    @abstractmethod
    def rig(self) -> Rig:
        """The rig this task expects."""

    @abstractmethod
    def scene(self) -> Scene:
        """Return the objects for the twin."""

    @abstractmethod
    def start_states(self, count: int, seed: int) -> FloatArray:
        """Return object states to evaluate from, none already solved: [N, S]. Ground truth."""

    @abstractmethod
    def goal_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return object states of success, for the stand-in that takes goal images: [N, S]. Ground truth."""

    @abstractmethod
    def random_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return object states from all over the workspace, for the baselines that reset: [N, S]. Ground truth."""

    @abstractmethod
    def true_reward(self, state: Tensor) -> Tensor:
        """Return the instrumented baselines' reward in [0, 1] of `Scene.state` vectors: [B, D] to [B]. Ground truth."""
