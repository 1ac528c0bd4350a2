"""What to learn: a task names its rig, its goals and, for the twin, its scene and an error only evaluation may read."""

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
    """Where the twin's camera is (m), what it looks at (m), its vertical field of view (degrees)."""

    eye_m: tuple[float, float, float] = (0.0, 0.001, 0.28)
    target_m: tuple[float, float, float] = (0.0, 0.0, 0.03)
    field_of_view_deg: float = 36.0
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Roughly what is up in its picture."""


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
    parts: tuple[tuple[str, str, float], ...] = ()
    """What else is reported of an end: its name for people, the value of the truth, the limit that it is to keep."""
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

    def problems(self) -> Iterator[str]:
        """Yield what is missing, or is not what it has to be, the attribute first."""
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
