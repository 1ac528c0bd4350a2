"""Turn a three-prong valve until its red prong points at the goal angle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r3l.robot import FloatArray, Rig, Truth, load_rig
from r3l.task import Scene, Task, Values

from .angles import wrap

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).parent
FRICTION_NM = 0.04
GOAL_RAD = 0.5
HINGE = 0


class ValveScene(Scene):
    """The valve on its hinge; friction holds it in place."""

    state_names = ("diagnostic_cos", "diagnostic_sin", "diagnostic_velocity")

    def __init__(self, goal_rad: float) -> None:
        self._goal_rad = goal_rad
        self._client: Any = None
        self.bodies = ()

    def load(self, client: Any) -> None:
        body = client.loadURDF(str(FOLDER / "valve.urdf"), useFixedBase=True)
        client.changeDynamics(body, HINGE, lateralFriction=0.6, angularDamping=0.05)
        client.setJointMotorControl2(body, HINGE, client.VELOCITY_CONTROL, targetVelocity=0.0, force=FRICTION_NM)
        self._client, self.bodies = client, (body,)

    def place(self, state: FloatArray) -> None:
        self._client.resetJointState(self.bodies[0], HINGE, float(state[0]), 0.0)

    def truth(self) -> Truth:
        angle, velocity = self._client.getJointState(self.bodies[0], HINGE)[:2]
        return {
            "angle_rad": wrap(angle),
            "velocity_rad_s": velocity,
            "error": abs(wrap(angle - self._goal_rad)),
        }

    def state(self) -> FloatArray:
        truth = self.truth()
        angle = truth["angle_rad"]
        return np.array([math.cos(angle), math.sin(angle), 0.2 * truth["velocity_rad_s"]], np.float32)


class Valve(Task):
    """Turn the valve until its red prong points at GOAL_RAD."""

    name = "valve"
    description = "turn a three-prong valve until its red prong points at the goal"
    episode_steps = 50
    success_error = math.radians(15)
    error_unit = "rad"
    other_thresholds = (0.1, math.radians(30))
    cell_count = 36

    @property
    def rig(self) -> Rig:
        return load_rig(Path(__file__).parent / "valve.toml")

    def scene(self) -> ValveScene:
        return ValveScene(GOAL_RAD)

    def start_states(self, count: int, seed: int) -> FloatArray:
        """Spread the starts evenly over the circle less 30 degrees on both sides of the goal; `seed` rotates them."""
        away = math.radians(30)
        offset = np.random.default_rng(seed).uniform()
        share = (np.arange(count) + offset) / count
        return (GOAL_RAD + away + share * (2 * math.pi - 2 * away))[:, None].astype(np.float32)

    def goal_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Within 0.1 rad of the goal: the accuracy of a careful hand."""
        return (GOAL_RAD + rng.uniform(-0.1, 0.1, (count, 1))).astype(np.float32)

    def random_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        return rng.uniform(-math.pi, math.pi, (count, 1)).astype(np.float32)

    def true_reward(self, state: Tensor) -> Tensor:
        """Return exp(-(error / 0.3 rad)^2 / 2) from [cos, sin, velocity]."""
        angle = state[:, 1].atan2(state[:, 0]) - GOAL_RAD
        error = angle.sin().atan2(angle.cos())
        return (-0.5 * (error / 0.3).square()).exp()

    def cells(self, truth: Mapping[str, Values]) -> NDArray[np.int64]:
        """Each ten degrees of the circle are a cell."""
        turn = np.asarray(truth["angle_rad"]) / (2 * math.pi) % 1.0
        return np.minimum(turn * self.cell_count, self.cell_count - 1).astype(np.int64)
