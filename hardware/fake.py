"""An in-memory robot with a dial: fast, exact to restore, for tests and for trying commands without a simulator."""

from __future__ import annotations

import numpy as np

from r3l.robot import (
    CameraSpec,
    FloatArray,
    Image,
    Joint,
    Observation,
    RobotError,
    RobotSpec,
    SimulatedRobot,
    Truth,
    world_numbers,
)
from r3l.task import Task

LAG = 0.6
"""Share of the distance to its target that a joint covers in one control period."""
TURN_PER_RAD = 1.0
"""Rotation of the dial per rad of the first joint."""


class Fake(SimulatedRobot):
    """Joints that lag behind their targets; the first joint turns a dial. The camera shows the dial's pointer alone."""

    def __init__(
        self,
        joints: tuple[Joint, ...],
        home_rad: FloatArray,
        *,
        control_hz: float = 10.0,
        camera: CameraSpec | None = None,
        goal_rad: float = 0.0,
        diagnostic: bool = False,
    ) -> None:
        names = ("diagnostic_cos", "diagnostic_sin", "diagnostic_velocity") if diagnostic else ()
        self._spec = RobotSpec(joints, control_hz, camera or CameraSpec(), names)
        self._home_rad, self.goal_rad = np.asarray(home_rad, np.float32), goal_rad
        self._joint_rad = self._home_rad.copy()
        self._target_rad: FloatArray | None = None
        self._dial_rad = self._velocity_rad_s = self._time_s = 0.0
        self._is_connected = False
        self.pushes_from_rad: float | None = None
        """Joint position from which the joint pushes the dial, which stays there; None: the dial turns both ways."""
        self.is_stuck = False
        """Whether the dial is stuck, whatever the joint does."""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def connect(self) -> None:
        if self._is_connected:
            raise RobotError("the fake robot is already connected; close it first")
        self._is_connected = True

    def observe(self) -> Observation:
        self._require_connection()
        if self._target_rad is not None:
            move = LAG * (self._target_rad - self._joint_rad)
            self._joint_rad = self._joint_rad + move
            self._velocity_rad_s = self._turn(float(move[0])) * self._spec.control_hz
            self._dial_rad += self._velocity_rad_s / self._spec.control_hz
            self._time_s += 1 / self._spec.control_hz
            self._target_rad = None
            if self.on_period is not None:
                self.on_period(self._time_s, self.truth())
        state = (np.cos(self._dial_rad), np.sin(self._dial_rad), 0.2 * self._velocity_rad_s)
        truth = np.array(state if self._spec.diagnostic else (), np.float32)
        return Observation(self._render(), self._joint_rad.copy(), self._time_s, truth)

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._require_connection()
        self._target_rad = np.clip(np.asarray(target_rad, np.float32), self._spec.lower_rad, self._spec.upper_rad)
        return self._target_rad.copy()

    def relax(self) -> None:
        self._target_rad = None

    def close(self) -> None:
        self.relax()
        self._is_connected = False

    def place(self, state: FloatArray, rng: np.random.Generator | None = None) -> None:
        self._require_connection()
        self._dial_rad, self._velocity_rad_s, self._target_rad = float(state[0]), 0.0, None
        self._joint_rad = self._home_rad.copy()
        if rng is not None:
            self._joint_rad = rng.uniform(self._spec.lower_rad, self._spec.upper_rad).astype(np.float32)

    def truth(self) -> Truth:
        away = (self._dial_rad - self.goal_rad + np.pi) % (2 * np.pi) - np.pi
        return {"angle_rad": self._dial_rad, "error": abs(away)}

    def save_world(self) -> bytes:
        world = [self._dial_rad, self._velocity_rad_s, self._time_s, *self._joint_rad.astype(np.float64)]
        return np.array(world, np.float64).tobytes()

    def restore_world(self, world: bytes) -> None:
        numbers = world_numbers(world, 3 + len(self._joint_rad))
        self._dial_rad, self._velocity_rad_s, self._time_s, *joints = numbers
        self._joint_rad, self._target_rad = np.array(joints, np.float32), None

    def _turn(self, move_rad: float) -> float:
        """Return the dial's rotation during a motion of the first joint, rad."""
        if self.is_stuck:
            return 0.0
        if self.pushes_from_rad is not None:
            move_rad = min(max(move_rad, 0.0), max(float(self._joint_rad[0]) - self.pushes_from_rad, 0.0))
        return TURN_PER_RAD * move_rad

    def _require_connection(self) -> None:
        if not self._is_connected:
            raise RobotError("the fake robot is not connected; call connect() first")

    def _render(self) -> Image:
        """Draw the pointer as a bright line from the centre of a dark image."""
        height, width = self._spec.camera.height, self._spec.camera.width
        image = np.full((height, width, 3), 40, np.uint8)
        reach = np.linspace(0.1, 0.45, 2 * max(height, width))
        rows = (height * (0.5 - reach * np.sin(self._dial_rad))).astype(int)
        columns = (width * (0.5 + reach * np.cos(self._dial_rad))).astype(int)
        for down in (0, 1):
            for right in (0, 1):
                image[np.minimum(rows + down, height - 1), np.minimum(columns + right, width - 1)] = (220, 60, 40)
        return image


def from_task(task: Task, *, diagnostic: bool = False) -> Fake:
    """Build a fake with the joints and the camera of a task's rig; its goal is the mean of the task's goals."""
    rig = task.rig
    goal_rad = float(task.goal_states(64, np.random.default_rng(0))[:, 0].mean())
    return Fake(
        rig.limits, rig.home_rad, control_hz=rig.control_hz, camera=rig.camera, goal_rad=goal_rad, diagnostic=diagnostic
    )
