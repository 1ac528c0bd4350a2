"""The effect of a rig's driver and servos on a target, for a twin that moves as the hand does."""

from __future__ import annotations

import numpy as np

from r3l.robot import FloatArray

from ..dynamixel.servo import Mechanics
from .envelope import COUNT_RAD, Envelope
from .rig import ClawRig


class Actuators:
    """Limits, speed, torque and position counts of a rig's servos."""

    def __init__(self, rig: ClawRig) -> None:
        self.torque_nm = Mechanics.torque_per_a * rig.strength.current_a
        """Max torque of a joint."""
        self.speed_rad_s = rig.strength.speed_rad_s
        """Max speed of a joint."""
        self._envelope = Envelope.of(rig)
        self.goal_rad: FloatArray | None = None
        """The joints' last target, [A] rad; None without torque, or after people moved the joints."""

    def limit(self, target_rad: FloatArray, measured_rad: FloatArray) -> FloatArray:
        """Return the target that the driver sends for `target_rad`, [A] rad."""
        begin = measured_rad if self.goal_rad is None else self.goal_rad
        self.goal_rad = self._envelope.limit(target_rad, begin, measured_rad)
        return self.goal_rad.copy()

    @staticmethod
    def counted(joint_rad: FloatArray) -> FloatArray:
        """Return angles rounded to the servos' counts."""
        return (np.round(joint_rad / COUNT_RAD) * COUNT_RAD).astype(np.float32)
