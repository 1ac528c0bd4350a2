"""Units of joint positions: rad for robots, shares of the joint's range for policies."""

from __future__ import annotations

import numpy as np

from r3l.robot.base import FloatArray, RobotSpec

MARGIN = 0.5
"""Half ranges that a pushed joint may read beyond its limits; more is clipped."""


class JointUnits:
    """Converts joint positions [A] between rad and units of the joint's range, [-1, 1] within the limits."""

    def __init__(self, spec: RobotSpec) -> None:
        self._centre_rad = (spec.upper_rad + spec.lower_rad) / 2
        self._half_rad = (spec.upper_rad - spec.lower_rad) / 2

    def measured(self, joint_rad: FloatArray) -> FloatArray:
        """Return measured positions in units of the range: float32, clipped to MARGIN beyond the limits."""
        return np.clip(self._from_rad(joint_rad), -1 - MARGIN, 1 + MARGIN)

    def commanded(self, target_rad: FloatArray) -> FloatArray:
        """Return joint targets in units of the range: float32, clipped to [-1, 1]."""
        return np.clip(self._from_rad(target_rad), -1, 1)

    def to_rad(self, action: FloatArray) -> FloatArray:
        """Return the joint targets of an action, which is clipped to [-1, 1]: float32, rad."""
        return (self._centre_rad + np.clip(action, -1, 1) * self._half_rad).astype(np.float32)

    def _from_rad(self, joint_rad: FloatArray) -> FloatArray:
        return ((joint_rad - self._centre_rad) / self._half_rad).astype(np.float32)
