"""An arm of LeRobot's shape: flat dictionaries, degrees, a camera, a bus with torque; faults to order."""

from __future__ import annotations

from typing import Any

import numpy as np

LAG = 0.6
"""Share of the way to its goal that a joint covers between two looks."""


class Torque:
    """The bus, as far as torque goes."""

    def __init__(self, arm: PeerArm) -> None:
        self._arm = arm

    def disable_torque(self) -> None:
        """Take torque off all motors."""
        self._arm.answer()
        self._arm.has_torque = False

    def enable_torque(self) -> None:
        """Put torque on: motors go to their goals."""
        self._arm.answer()
        self._arm.has_torque = True


class PeerArm:
    """Three joints in degrees."""

    name = "peer_arm"
    LIMITS = {"pan": (-90.0, 90.0), "lift": (-60.0, 60.0), "grip": (0.0, 100.0)}  # noqa: RUF012 (as peers do)

    def __init__(self) -> None:
        self.bus = Torque(self)
        self.is_connected = self.has_torque = False
        self.is_calibrated = True
        self.is_silent = False
        self.asked_to_calibrate = False
        self.degrees = dict.fromkeys(self.LIMITS, 10.0)
        self.goals = dict.fromkeys(self.LIMITS, 80.0)
        """Stale goals: torque on them would be a lunge."""
        self.farthest = 0.0
        """Largest move between two looks, degrees."""
        self._rng = np.random.default_rng(0)
        self.picture = self._rng.integers(0, 256, (48, 64, 3), np.uint8)

    @property
    def observation_features(self) -> dict[str, Any]:
        """Names and kinds of what is observed."""
        return {**{f"{name}.pos": float for name in self.LIMITS}, "front": (48, 64, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Names and kinds of what is acted on."""
        return {f"{name}.pos": float for name in self.LIMITS}

    def answer(self) -> None:
        """Raise what LeRobot's motors raise where nobody answers."""
        if self.is_silent or not self.is_connected:
            raise ConnectionError("There is no status packet!")

    def connect(self, calibrate: bool = True) -> None:
        """Connect, and put torque on, as LeRobot's arms do."""
        if self.is_connected:
            raise ConnectionError("already connected")
        self.asked_to_calibrate = calibrate
        self.is_connected = True
        try:
            self.bus.enable_torque()
        except ConnectionError:
            self.is_connected = False
            raise

    def get_observation(self) -> dict[str, Any]:
        """Return joints and picture; joints with torque go on to their goals."""
        self.answer()
        for name, goal in self.goals.items():
            move = LAG * (goal - self.degrees[name]) if self.has_torque else 0.0
            self.farthest = max(self.farthest, abs(move))
            self.degrees[name] += move
        return {**{f"{name}.pos": value for name, value in self.degrees.items()}, "front": self.picture}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Set goals."""
        self.answer()
        assert set(action) == set(self.action_features)
        self.goals = {name: float(action[f"{name}.pos"]) for name in self.LIMITS}
        return dict(action)

    def disconnect(self) -> None:
        """Disconnect, and take torque off where that is possible."""
        if not self.is_connected:
            raise ConnectionError("not connected")
        self.has_torque = self.has_torque and self.is_silent
        self.is_connected = False
