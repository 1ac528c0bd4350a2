"""The reset-free Gymnasium environment over a robot and its safety, and the instrumented one for baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from r3l.robot.base import FloatArray, Observation
from r3l.robot.safety import SafeRobot

Observed = dict[str, np.ndarray[Any, Any]]
MARGIN = 0.5
"""How far beyond its limits, in half ranges, a measured joint is still shown; a pushed joint can give way."""


class RobotEnv(gymnasium.Env[Observed, FloatArray]):
    """A robot that never gets a reset: `reset` reads the state and moves nothing, `terminated` is always False.

    Observation: `image` uint8 [H, W, 3]; `proprioception` float32 [2A]: measured joint positions, then the last
    applied command. Action: float32 [A], absolute joint targets. All three in units of the joint's range, [-1, 1].
    `info` holds `requested` and `applied` (both [A]), `time_s` and `diagnostic`.
    The reward is 0: the learner relabels every transition.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's name)

    def __init__(self, robot: SafeRobot, render_mode: str | None = None) -> None:
        self.robot = robot
        self.render_mode = render_mode
        spec = robot.spec
        self._centre = (spec.upper_rad + spec.lower_rad) / 2
        self._half = (spec.upper_rad - spec.lower_rad) / 2
        size = len(spec.joints)
        self.action_space = spaces.Box(-1, 1, (size,), np.float32)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # Gymnasium types Dict as untyped
            {
                "image": spaces.Box(0, 255, (spec.camera.height, spec.camera.width, 3), np.uint8),
                "proprioception": spaces.Box(-1 - MARGIN, 1 + MARGIN, (2 * size,), np.float32),
            }
        )
        self._applied = np.zeros(size, np.float32)
        self._last: Observation | None = None
        self._connected = False
        self.on_command: Callable[[], None] = lambda: None
        """Called right after a command was sent: what is not urgent is done in what is left of the control period."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Observe; nothing moves. The last applied command is shown as the pose the fingers are in."""
        super().reset(seed=seed)
        self._connect()
        observation = self.robot.observe()
        self._applied = np.clip(self.normalise(observation.joint_rad), -1, 1)
        return self._observed(observation), self._info(observation, self._applied)

    def step(self, action: FloatArray) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """Command absolute joint targets in [-1, 1] and observe the end of the control period."""
        requested = np.asarray(action, np.float32)
        applied_rad = self.robot.command((self._centre + np.clip(requested, -1, 1) * self._half).astype(np.float32))
        self._applied = np.clip(self.normalise(applied_rad), -1, 1)
        self.on_command()
        observation = self.robot.observe()
        return self._observed(observation), 0.0, False, False, self._info(observation, requested)

    def render(self) -> np.ndarray[Any, Any] | None:
        """Return the newest camera image."""
        return None if self._last is None else self._last.image

    def close(self) -> None:
        """Relax and release the robot."""
        self.robot.close()
        self._connected = False

    @property
    def newest(self) -> Observation | None:
        """What the robot returned last."""
        return self._last

    def newest_diagnostic(self) -> FloatArray:
        """Return the newest ground truth [D]: empty but on a diagnostic robot."""
        return np.zeros(0, np.float32) if self._last is None else self._last.diagnostic

    def normalise(self, joint_rad: FloatArray) -> FloatArray:
        """Return joint positions in units of their range, [-1, 1] inside the limits."""
        return ((joint_rad - self._centre) / self._half).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return what goes on after a resume in the same world, as JSON values."""
        target_rad = self.robot.newest_target
        return {
            "applied": self._applied.tolist(),
            "target_rad": None if target_rad is None else target_rad.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`: the last applied command and the target that the next step is limited from."""
        self._applied = np.array(state["applied"], np.float32)
        self.robot.continue_from(state["target_rad"])

    def _connect(self) -> None:
        if not self._connected:
            self.robot.connect()
            self._connected = True

    def _observed(self, observation: Observation) -> Observed:
        self._last = observation
        joints = np.clip(self.normalise(observation.joint_rad), -1 - MARGIN, 1 + MARGIN)
        return {"image": observation.image, "proprioception": np.concatenate([joints, self._applied])}

    def _info(self, observation: Observation, requested: FloatArray) -> dict[str, Any]:
        return {
            "requested": requested,
            "applied": self._applied.copy(),
            "time_s": observation.time_s,
            "diagnostic": observation.diagnostic,
        }


HOLD_STEPS = 3
"""Steps for which a random action is held: shorter ones cancel out and move nothing."""
