"""What a rig's driver and servos make of a target: for the twin, so that it moves as the hand does."""

from __future__ import annotations

import numpy as np

from r3l.robot import FloatArray

from ..dynamixel.servo import Mechanics
from .envelope import COUNT_RAD, Envelope
from .rig import ClawRig


class Actuators:
    """Limits, speed, torque and counts of a rig's servos."""

    def __init__(self, rig: ClawRig) -> None:
        self.torque_nm = Mechanics.torque_per_a * rig.strength.current_a
        """Largest torque of a joint."""
        self.speed_rad_s = rig.strength.speed_rad_s
        """Largest speed of a joint."""
        self._envelope = Envelope.of(rig)
        self.goal_rad: FloatArray | None = None
        """Where the joints were sent last, [A] rad; None: without torque, or somebody moved them."""

    def limit(self, target_rad: FloatArray, measured_rad: FloatArray) -> FloatArray:
        """Return where the driver sends the joints for a target, [A] rad."""
        begin = measured_rad if self.goal_rad is None else self.goal_rad
        self.goal_rad = self._envelope.limit(target_rad, begin, measured_rad)
        return self.goal_rad.copy()

    @staticmethod
    def counted(joint_rad: FloatArray) -> FloatArray:
        """Return angles as servos count them."""
        return (np.round(joint_rad / COUNT_RAD) * COUNT_RAD).astype(np.float32)
