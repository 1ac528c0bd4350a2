"""Push and turn a free three-prong object until it lies in the centre at the goal angle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r3l.robot import FloatArray, Rig, Truth, load_rig
from r3l.task import CameraPose, Scene, Task, Values

from .angles import wrap

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).parent
GOAL_RAD = -2.5
NEAR_M, NEAR_RAD = 0.03, math.radians(20)
"""Max distance from the centre and max angle from the goal of a success."""
GOAL_SPREAD_M, GOAL_SPREAD_RAD = 0.022, 0.15
"""Tolerance of goal images; the authors accepted 3.5 cm and 0.15 rad."""
FAR_M, FAR_RAD = 0.06, math.radians(45)
"""Min distance or min angle of a start; where the object lies flat the angle counts."""
TURNS, MIDDLE_M = 12, 0.015
"""Cells of the coverage: turns, in the centre and in each of four quarters around it."""
PRONG_M, HALF_WIDTH_M = 0.046, 0.009
"""The object's prongs: radius of their ends, and half their width."""
BORDER_RADIUS_M, SIDES = 0.07, 16
"""Radius of the flat table, and boards per ring of the border: round, without a corner."""
RINGS = (
    (BORDER_RADIUS_M, 0.0, 0.023, math.radians(60)),
    (BORDER_RADIUS_M + 0.0115, 0.02, 0.1175, math.radians(15)),
    (BORDER_RADIUS_M + 0.125, 0.05, 0.12, math.radians(60)),
)
"""The border: inner radius, height there, width of the boards (all m), slope.

A step holds the object in; from a slope the object slides back after it was pushed over the step; a wall beyond the
fingers' reach stops an object that was flung.
"""
REACH_M = 0.029
"""Max distance of the object's centre from the table's centre, with all prongs on the flat table."""


class RepositionScene(Scene):
    """A three-prong object on a round table whose border slopes up: an object that was pushed out slides back."""

    state_names = tuple(
        f"diagnostic_{name}" for name in ("x", "y", "cos", "sin", "velocity_x", "velocity_y", "turning")
    )
    camera = CameraPose((0.3, 0.0, 0.2), (0.0, 0.0, 0.015), 26.0)
    """From one side and above, the flat table filling the frame; in 8% of frames fingers hide a third of the object."""

    def __init__(self) -> None:
        self._client: Any = None
        self.bodies = ()

    def load(self, client: Any) -> None:
        for ring in RINGS:
            self._load_ring(client, *ring)
        body = client.loadURDF(str(FOLDER / "reposition.urdf"), [0, 0, 0.001])
        client.changeDynamics(body, -1, lateralFriction=0.6, rollingFriction=0.0, linearDamping=0.1, angularDamping=0.1)
        self._client, self.bodies = client, (body,)

    def _load_ring(self, client: Any, radius: float, base: float, width: float, slope: float) -> None:
        """Create one ring of slanted boards as one body."""
        half = [width / 2, 1.1 * (radius + width) * math.tan(math.pi / SIDES), 0.004]
        reach = radius + math.cos(slope) * half[0] + math.sin(slope) * half[2]
        height = base + math.sin(slope) * half[0] - math.cos(slope) * half[2]
        sides = [2 * math.pi * side / SIDES for side in range(SIDES)]
        places = [[reach * math.cos(side), reach * math.sin(side), height] for side in sides]
        turns = [client.getQuaternionFromEuler([0, -slope, side]) for side in sides]
        boxes = {"shapeTypes": [client.GEOM_BOX] * SIDES, "halfExtents": [half] * SIDES}
        shape = client.createCollisionShapeArray(
            **boxes, collisionFramePositions=places, collisionFrameOrientations=turns
        )
        colour = [[0.30, 0.38, 0.47, 1]] * SIDES
        look = client.createVisualShapeArray(
            **boxes, rgbaColors=colour, visualFramePositions=places, visualFrameOrientations=turns
        )
        ring = client.createMultiBody(0, shape, look)
        client.changeDynamics(ring, -1, lateralFriction=0.2)

    def place(self, state: FloatArray) -> None:
        x, y, angle = map(float, state)
        turn = self._client.getQuaternionFromEuler([0, 0, angle])
        self._client.resetBasePositionAndOrientation(self.bodies[0], [x, y, 0.001], turn)
        self._client.resetBaseVelocity(self.bodies[0], [0, 0, 0], [0, 0, 0])

    def truth(self) -> Truth:
        (x, y, z), turn = self._client.getBasePositionAndOrientation(self.bodies[0])
        matrix = self._client.getMatrixFromQuaternion(turn)
        angle = math.atan2(matrix[3], matrix[0])
        distance, turned = math.hypot(x, y), abs(wrap(angle - GOAL_RAD))
        return {
            "x_m": x,
            "y_m": y,
            "z_m": z,
            "upright": matrix[8],
            "angle_rad": angle,
            "distance_m": distance,
            "turned_rad": turned,
            "error": max(distance / NEAR_M, turned / NEAR_RAD),
        }

    def state(self) -> FloatArray:
        truth = self.truth()
        (vx, vy, _), (_, _, turning) = self._client.getBaseVelocity(self.bodies[0])
        angle = truth["angle_rad"]
        pose = [truth["x_m"] / REACH_M, truth["y_m"] / REACH_M, math.cos(angle), math.sin(angle)]
        return np.array([*pose, 5 * vx, 5 * vy, 0.2 * turning], np.float32)


class Reposition(Task):
    """Bring the object to the centre, its red prong to the goal angle."""

    name = "reposition"
    description = "push and turn a free three-prong object to the middle and the goal angle"
    episode_steps = 50
    success_error = 1.0
    error_unit = "tolerances"
    other_thresholds = (0.5, 1.5, 2.0)
    parts = (("centre within 3 cm", "distance_m", NEAR_M), ("turned within 20°", "turned_rad", NEAR_RAD))
    cell_count = 5 * TURNS

    @property
    def rig(self) -> Rig:
        return load_rig(FOLDER / "reposition.toml")

    def scene(self) -> RepositionScene:
        return RepositionScene()

    def start_states(self, count: int, seed: int) -> FloatArray:
        """Return 15 fixed poses first, then random ones by `seed`."""
        rng = np.random.default_rng(seed)
        states = fixed_poses()
        while len(states) < count:
            state = self.random_states(1, rng)[0]
            if math.hypot(state[0], state[1]) >= FAR_M or abs(wrap(float(state[2]) - GOAL_RAD)) >= FAR_RAD:
                states.append(state)
        return np.stack(states[:count])

    def goal_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Within 2.2 cm of the centre and 0.15 rad of the goal: the accuracy of a hand without a measure."""
        return _flat_states(count, GOAL_SPREAD_M, GOAL_RAD, GOAL_SPREAD_RAD, rng)

    def random_states(self, count: int, rng: np.random.Generator) -> FloatArray:
        return _flat_states(count, REACH_M, 0.0, math.pi, rng)

    def true_reward(self, state: Tensor) -> Tensor:
        """Return exp(-((distance / 0.025 m)^2 + (angle / 0.35 rad)^2) / 2) from [x, y, cos, sin, speeds]."""
        distance = state[:, :2].norm(dim=-1) * REACH_M
        angle = state[:, 3].atan2(state[:, 2]) - GOAL_RAD
        turned = angle.sin().atan2(angle.cos())
        reward: Tensor = (-0.5 * ((distance / 0.025).square() + (turned / 0.35).square())).exp()
        return reward

    def cells(self, truth: Mapping[str, Values]) -> NDArray[np.int64]:
        """Each 30 degrees of turn, in the centre or in one of the four quarters around it, is a cell."""
        x, y, angle = (np.asarray(truth[name]) for name in ("x_m", "y_m", "angle_rad"))
        turn = np.minimum(angle / (2 * math.pi) % 1.0 * TURNS, TURNS - 1).astype(np.int64)
        quarter = 1 + 2 * (x > 0).astype(np.int64) + (y > 0).astype(np.int64)
        return np.where(np.hypot(x, y) <= MIDDLE_M, 0, quarter) * TURNS + turn


def lies_flat(state: FloatArray) -> bool:
    """Return whether every prong of the object at [x, y, angle] is on the flat table."""
    x, y, angle = map(float, state)
    out = math.hypot(PRONG_M, HALF_WIDTH_M)
    corners = [
        angle + 2 * math.pi * prong / 3 + side * math.atan2(HALF_WIDTH_M, PRONG_M)
        for prong in range(3)
        for side in (-1, 1)
    ]
    return all(math.hypot(x + out * math.cos(c), y + out * math.sin(c)) <= BORDER_RADIUS_M for c in corners)


def fixed_poses() -> list[FloatArray]:
    """Return the fixed starts: three in the centre, six half way out, six as far out as the object lies flat."""
    poses = [(0.0, 0.0, GOAL_RAD + math.radians(turn)) for turn in (90, 180, 270)]
    for index in range(6):
        place = math.radians(60 * index)
        poses.append((0.018 * math.cos(place), 0.018 * math.sin(place), GOAL_RAD + math.radians(60 + 48 * index)))
    # Two prongs point outwards; the choice of the two keeps every start away from the goal angle.
    for index, prong in enumerate((0, 0, 1, 0, 0, 0)):
        place = math.radians(30 + 60 * index)
        poses.append((0.028 * math.cos(place), 0.028 * math.sin(place), place + math.radians(60 + 120 * prong)))
    return [np.array([x, y, wrap(angle)], np.float32) for x, y, angle in poses]


def _flat_states(
    count: int, radius_m: float, turn_rad: float, spread_rad: float, rng: np.random.Generator
) -> FloatArray:
    """Return poses uniform in a disc around the centre and in a range of turns, every prong on the flat table."""
    states: list[FloatArray] = []
    while len(states) < count:
        radius, place = radius_m * np.sqrt(rng.uniform()), rng.uniform(-math.pi, math.pi)
        turn = turn_rad + rng.uniform(-spread_rad, spread_rad)
        state = np.array([radius * np.cos(place), radius * np.sin(place), turn], np.float32)
        if lies_flat(state):
            states.append(state)
    return np.stack(states)
