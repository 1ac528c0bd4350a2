"""The reset-free Gymnasium environment over a robot behind its safety limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from r3l.robot.base import FloatArray, Observation
from r3l.robot.joint_units import MARGIN, JointUnits
from r3l.robot.safety import SafeRobot

Observed = dict[str, np.ndarray[Any, Any]]
HOLD_STEPS = 3
"""Env steps for which a random action is held; shorter ones cancel out and move nothing."""


@dataclass(frozen=True)
class TimeStep:
    """The end of an env step. Joints and commands are in units of the joint's range, [-1, 1]."""

    observation: Observation
    """The robot's observation, in rad."""
    joints: FloatArray
    """[A] float32: measured joint positions, at most MARGIN beyond the limits."""
    requested: FloatArray
    """[A] float32: the action, 0 if there was none."""
    applied: FloatArray
    """[A] float32: the last command sent; before the first command the measured joint positions."""


class RobotEnv(gymnasium.Env[Observed, FloatArray]):
    """A robot that never gets a reset: `reset` observes and moves nothing, `terminated` is always False.

    Observation: `image` uint8 [H, W, 3]; `proprioception` float32 [2A]: measured joint positions, then the last
    applied command. Action: float32 [A], absolute joint targets. All three in units of the joint's range, [-1, 1].
    `info` holds `requested` and `applied` (both [A]), `time_s` and `diagnostic`.
    The reward is 0: the learner relabels every transition.

    `observe` and `act` are `reset` and `step` without Gymnasium's packing.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's name)

    def __init__(self, robot: SafeRobot, render_mode: str | None = None) -> None:
        self.robot = robot
        self.render_mode = render_mode
        spec = robot.spec
        self.metadata = self.metadata | {"render_fps": spec.control_hz}
        self.units = JointUnits(spec)
        size = len(spec.joints)
        self.action_space = spaces.Box(-1, 1, (size,), np.float32)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # Gymnasium types Dict as untyped
            {
                "image": spaces.Box(0, 255, (spec.camera.height, spec.camera.width, 3), np.uint8),
                "proprioception": spaces.Box(-1 - MARGIN, 1 + MARGIN, (2 * size,), np.float32),
            }
        )
        self._applied = np.zeros(size, np.float32)
        self._is_connected = False
        self.newest: TimeStep | None = None
        self.on_command: Callable[[], None] = lambda: None
        """Called right after a command was sent: the rest of the control period is free for other work."""

    def observe(self) -> TimeStep:
        """Observe without moving; connect the robot the first time. `applied` is the measured pose."""
        self._connect()
        observation = self.robot.observe()
        self._applied = self.units.commanded(observation.joint_rad)
        return self._time_step(observation, np.zeros_like(self._applied))

    def act(self, action: FloatArray) -> TimeStep:
        """Command absolute joint targets [A] in [-1, 1] and observe the end of the control period."""
        requested = np.asarray(action, np.float32)
        applied_rad = self.robot.command(self.units.to_rad(requested))
        self._applied = self.units.commanded(applied_rad)
        self.on_command()
        return self._time_step(self.robot.observe(), requested)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Observe; nothing moves."""
        super().reset(seed=seed)
        return packed(self.observe())

    def step(self, action: FloatArray) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """Command absolute joint targets [A] in [-1, 1] and observe the end of the control period."""
        observed, info = packed(self.act(action))
        return observed, 0.0, False, False, info

    def render(self) -> np.ndarray[Any, Any] | None:
        """Return the newest camera image."""
        return None if self.newest is None else self.newest.observation.image

    def close(self) -> None:
        """Relax and release the robot."""
        self.robot.close()
        self._is_connected = False

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` continues from in the same world, as JSON values."""
        target_rad = self.robot.newest_target
        return {"applied": self._applied.tolist(), "target_rad": None if target_rad is None else target_rad.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the last applied command, and the target that limits the next step."""
        self._applied = np.array(state["applied"], np.float32)
        self.robot.continue_from(state["target_rad"])

    def _connect(self) -> None:
        if not self._is_connected:
            self.robot.connect()
            self._is_connected = True

    def _time_step(self, observation: Observation, requested: FloatArray) -> TimeStep:
        joints = self.units.measured(observation.joint_rad)
        self.newest = TimeStep(observation, joints, requested, self._applied.copy())
        return self.newest


def packed(step: TimeStep) -> tuple[Observed, dict[str, Any]]:
    """Return a time step as Gymnasium's observation and info."""
    observed = {"image": step.observation.image, "proprioception": np.concatenate([step.joints, step.applied])}
    info = {
        "requested": step.requested,
        "applied": step.applied,
        "time_s": step.observation.time_s,
        "diagnostic": step.observation.diagnostic,
    }
    return observed, info


def held_action(step: int, held: FloatArray, joints: int, rng: np.random.Generator) -> FloatArray:
    """Return a new uniformly random action [A] at every HOLD_STEPS-th step of an episode, otherwise `held`."""
    return held if step % HOLD_STEPS else rng.uniform(-1, 1, joints).astype(np.float32)
