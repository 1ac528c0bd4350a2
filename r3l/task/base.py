"""The interface of a task: its rig, its goals and, for a simulated world, its scene and its true error."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r3l.config.errors import UserError
from r3l.robot.base import FloatArray, Truth
from r3l.robot.rig import Rig, rig_problems

if TYPE_CHECKING:
    from torch import Tensor

Values = NDArray[np.float64]


@dataclass(frozen=True)
class CameraPose:
    """Position of the twin's camera (m), the point it looks at (m), its vertical field of view (degrees)."""

    eye_m: tuple[float, float, float] = (0.0, 0.001, 0.28)
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.03)
    field_of_view_deg: float = 36.0
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Direction that is roughly up in the image."""


class Scene(ABC):
    """A task's objects in the twin's world."""

    camera: CameraPose = CameraPose()
    """By default from the palm, straight down between the fingers."""
    state_names: tuple[str, ...]
    """Names of `state`'s values."""
    bodies: tuple[int, ...]
    """PyBullet ids of the object; known after `load`."""

    @abstractmethod
    def load(self, client: Any) -> None:
        """Create the bodies in a PyBullet client; called once."""

    @abstractmethod
    def place(self, state: FloatArray) -> None:
        """Put the object at rest at `state`."""

    @abstractmethod
    def truth(self) -> Truth:
        """Return the object's ground truth; it contains `error`."""

    @abstractmethod
    def state(self) -> FloatArray:
        """Return ground truth as a vector for the diagnostic variants: [D] float32."""


class Task(ABC):
    """A skill to learn. Every robot needs the abstract members; only a simulated world needs the others."""

    name: str
    description: str
    episode_steps: int
    """Length of an evaluation episode in env steps."""
    success_error: float
    """Max true error of a success, in `error_unit`."""
    error_unit: str
    other_thresholds: tuple[float, ...] = ()
    """Other max errors at which success is reported too, in `error_unit`."""
    parts: tuple[tuple[str, str, float], ...] = ()
    """Other parts of a success that are reported: name for people, name of the truth's value, its max."""
    minimum_goals: int = 20
    """Min number of goal images."""
    cell_count: int = 10
    """Number of cells that `cells` returns."""

    @property
    @abstractmethod
    def rig(self) -> Rig:
        """The rig that this task expects."""

    def scene(self) -> Scene:
        """Return the task's objects for the twin."""
        raise self._has_no("scene")

    def start_states(self, count: int, seed: int) -> FloatArray:
        """Return object states that evaluation starts from, none of them a success: [N, S]. Ground truth."""
        raise self._has_no("start_states")

    def goal_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return object states of success, for goal images taken by the twin: [N, S]. Ground truth."""
        raise self._has_no("goal_states")

    def random_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return object states from the whole workspace, for the baselines that reset: [N, S]. Ground truth."""
        raise self._has_no("random_states")

    def true_reward(self, state: Tensor) -> Tensor:
        """Return the reward in [0, 1] of `Scene.state` vectors, for baselines: [B, D] to [B]. Ground truth."""
        raise self._has_no("true_reward")

    def cells(self, truth: Mapping[str, Values]) -> NDArray[np.int64]:
        """Return the cell of the object's state at each moment, 0 to `cell_count` - 1: columns [N] to [N].

        Coverage counts visited cells. By default a cell is a tenth of the largest error. Ground truth.
        """
        error = np.asarray(truth["error"], np.float64)
        return np.minimum(error / max(float(error.max(initial=0.0)), 1e-9) * 10, 9).astype(np.int64)

    def problems(self) -> Iterator[str]:
        """Yield the problems of the task's attributes, the attribute first."""
        kinds = {"name": str, "description": str, "error_unit": str, "episode_steps": int, "minimum_goals": int}
        for key, kind in kinds.items():
            value = getattr(self, key, None)
            if not isinstance(value, kind):
                yield f"{key} is {value!r}, expected {'a whole number' if kind is int else 'text'}"
        if not re.fullmatch(r"[\w-]+", str(getattr(self, "name", ""))):
            yield f"name is {self.name!r}, expected letters, digits, - and _: folders are named after it"
        if self.episode_steps < 1:
            yield f"episode_steps is {self.episode_steps}, expected 1 or more"
        limit = getattr(self, "success_error", None)
        if not isinstance(limit, int | float) or not 0 < limit < math.inf:
            yield f"success_error is {limit!r}, expected a number above 0"
        yield from rig_problems(self.rig)

    def _has_no(self, part: str) -> UserError:
        return UserError(
            f"task {self.name!r} has no {part}() for a simulated world; "
            "give it one (docs/new-task.md), or use a robot and goal images of its own"
        )
