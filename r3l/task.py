"""What to learn: a task names its rig, its goals and, for the twin, its scene and an error only evaluation may read."""

from __future__ import annotations

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from r3l.config import UserError, from_dict
from r3l.robot import CameraSpec, FloatArray, Joint, Truth

Values = NDArray[np.float64]


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
    gym: str = ""
    """Id of the Gymnasium environment behind `--robot gym`; empty on any other rig."""

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
    """What to learn: abstract what every robot needs; the rest is the twin's, for a task that has a scene there."""

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
    cell_count: int = 10
    """How many cells there are for `cells` to tell apart."""

    @property
    @abstractmethod
    def rig(self) -> Rig:
        """The rig this task expects."""

    def scene(self) -> Scene:
        """Return the objects for the twin."""
        raise self._has_no("scene")

    def start_states(self, count: int, seed: int) -> FloatArray:
        """Return object states to evaluate from, none already solved: [N, S]. Ground truth."""
        raise self._has_no("start_states")

    def goal_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return object states of success, for the stand-in that takes goal images: [N, S]. Ground truth."""
        raise self._has_no("goal_states")

    def random_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return object states from all over the workspace, for the baselines that reset: [N, S]. Ground truth."""
        raise self._has_no("random_states")

    def true_reward(self, state: Tensor) -> Tensor:
        """Return the instrumented baselines' reward in [0, 1] of `Scene.state` vectors: [B, D] to [B]. Ground truth."""
        raise self._has_no("true_reward")

    def cells(self, truth: Mapping[str, Values]) -> NDArray[np.int64]:
        """Return which cell of the space of object states each moment is in, for coverage: columns [N] to [N].

        Cells count from 0 to `cell_count` - 1. By default the error's tenths of its largest value. Ground truth.
        """
        error = np.asarray(truth["error"], np.float64)
        return np.minimum(error / max(float(error.max(initial=0.0)), 1e-9) * 10, 9).astype(np.int64)

    def _has_no(self, part: str) -> UserError:
        return UserError(
            f"task {self.name!r} has no {part}() for a simulated world; "
            "give it one (docs/new-task.md), or use a robot and goal images of its own"
        )
