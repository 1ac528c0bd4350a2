"""The last stage before any robot, the twin included: what reaches the wire is finite, in limits and slow enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from r3l.robot.base import FloatArray, Joint, Robot, RobotError, RobotSpec
from r3l.robot.wrapper import RobotWrapper

MAX_OVERTRAVEL = 0.25
"""Of its range, that a joint may be pushed beyond its limits; what reads farther off is no joint's place."""


@dataclass
class SafetyCounters:
    """How often commands were limited since `connect`."""

    commands: int = 0
    refused: int = 0
    """Commands with a value that is not finite, or of the wrong length: nothing was sent."""
    position_limited: int = 0
    speed_limited: int = 0


class SafeRobot(RobotWrapper):
    """A robot behind limits. Its spec shows the narrower joint limits that the workspace allows."""

    def __init__(self, robot: Robot, joints: tuple[Joint, ...], max_step_rad: float) -> None:
        """Wrap `robot`; targets stay within `joints` and move at most `max_step_rad` per control period.

        A joint found outside its workspace comes back one such step at a time.
        """
        names = [joint.name for joint in robot.spec.joints]
        if [joint.name for joint in joints] != names:
            raise RobotError(
                f"the rig has joints {[j.name for j in joints]}, the robot {names}; use the robot's own rig"
            )
        for own, allowed in zip(robot.spec.joints, joints, strict=True):
            if not own.min_rad - 1e-4 <= allowed.min_rad < allowed.max_rad <= own.max_rad + 1e-4:
                raise RobotError(
                    f"rig joint {allowed.name!r} [{allowed.min_rad:.3f}, {allowed.max_rad:.3f}] rad does not fit robot "
                    f"joint {own.name!r} [{own.min_rad:.3f}, {own.max_rad:.3f}] rad; narrow the rig's limits"
                )
        if not 0 < max_step_rad < np.inf:
            raise RobotError(f"max_step_rad is {max_step_rad}, expected a positive number of rad")
        super().__init__(robot)
        self._spec = replace(robot.spec, joints=joints)
        self._max_step_rad = np.float32(max_step_rad)
        self._target_rad: FloatArray | None = None
        self.counters = SafetyCounters()

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def connect(self) -> None:
        self.robot.connect()
        self.counters = SafetyCounters()
        self.forget()

    def forget(self) -> None:
        """Measure again before the next command: after a pause, or after the robot was moved by other hands."""
        self._target_rad = None

    @property
    def newest_target(self) -> FloatArray | None:
        """The last target sent [A] (rad), or None when the next command measures first."""
        return self._target_rad

    def target(self) -> list[float] | None:
        """Return the last target sent (rad), or None when the next command measures first."""
        return None if self._target_rad is None else [float(value) for value in self._target_rad]

    def continue_from(self, target_rad: list[float] | None) -> None:
        """Limit the next command from `target_rad`: after a resume in the world that `target` was read in."""
        self._target_rad = None if target_rad is None else np.array(target_rad, np.float32)

    def command(self, target_rad: FloatArray) -> FloatArray:
        """Limit `target_rad` to the workspace and to one step from the last target, send it, return it.

        Raises:
            RobotError: a value is not finite or the length is wrong; nothing was sent.
        """
        asked = np.asarray(target_rad, np.float32)
        self.counters.commands += 1
        self._require_finite(asked, "command refused")
        if self._target_rad is None:
            measured = self.robot.observe().joint_rad
            self._require_finite(measured, "measured pose is unusable and the command refused")
            self._require_possible(measured)
            self._target_rad = measured.copy()
        inside = np.clip(asked, self.spec.lower_rad, self.spec.upper_rad)
        slow = np.clip(inside, self._target_rad - self._max_step_rad, self._target_rad + self._max_step_rad)
        slow = np.clip(slow, self.robot.spec.lower_rad, self.robot.spec.upper_rad)
        self.counters.position_limited += bool((inside != asked).any())
        self.counters.speed_limited += bool((slow != inside).any())
        sent = self.robot.command(slow)
        self._target_rad = sent.copy()
        return sent

    def _require_finite(self, joint_rad: FloatArray, what: str) -> None:
        if joint_rad.shape != self.spec.lower_rad.shape or not np.isfinite(joint_rad).all():
            self.counters.refused += 1
            raise RobotError(f"{what}: {joint_rad}, expected {len(self.spec.joints)} finite values in rad")

    def _require_possible(self, joint_rad: FloatArray) -> None:
        """Refuse to begin a motion from where no joint can be: a step from there would be a leap from where it is."""
        own = self.robot.spec
        beyond = np.maximum(joint_rad - own.upper_rad, own.lower_rad - joint_rad)
        worst = int((beyond / (own.upper_rad - own.lower_rad)).argmax())
        if beyond[worst] > MAX_OVERTRAVEL * (own.upper_rad - own.lower_rad)[worst]:
            self.counters.refused += 1
            joint = own.joints[worst]
            raise RobotError(
                f"command refused: joint {joint.name!r} reads {joint_rad[worst]:.2f} rad, expected about "
                f"{joint.min_rad:.2f} to {joint.max_rad:.2f}; look after the joint and its calibration"
            )

    def relax(self) -> None:
        self.forget()
        self.robot.relax()

    def counts(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self.counters)
