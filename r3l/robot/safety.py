"""The last limits before any robot, simulated or real: commands are finite, within the workspace and slow enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from r3l.robot.base import FloatArray, Joint, Robot, RobotError, RobotSpec, SimulatedRobot
from r3l.robot.pacing import RealTime
from r3l.robot.rig import Rig
from r3l.robot.wrapper import RobotWrapper

MAX_OVERTRAVEL = 0.25
"""Share of its range that a joint may read beyond its limits; more is a sensor fault."""
TOLERANCE_RAD = 1e-4
"""A rig's joint limits may exceed the robot's by this much: TOML files hold rounded numbers."""


@dataclass
class SafetyCounters:
    """Commands since `connect`, and how many of them were limited or refused."""

    commands: int = 0
    refused: int = 0
    """Commands from or to a pose that is not finite, has the wrong length or is impossible; none of them was sent."""
    position_limited: int = 0
    speed_limited: int = 0


class SafeRobot(RobotWrapper):
    """A robot behind the limits of a workspace; its spec shows the workspace's joint limits."""

    def __init__(self, robot: Robot, joints: tuple[Joint, ...], max_step_rad: float) -> None:
        """Wrap `robot`: targets stay within `joints` and move at most `max_step_rad` per control period.

        A joint that is outside its workspace returns in steps of `max_step_rad`.
        """
        super().__init__(robot)
        names = [joint.name for joint in robot.spec.joints]
        if [joint.name for joint in joints] != names:
            raise RobotError(
                f"the rig has joints {[j.name for j in joints]}, the robot {names}; use the robot's own rig"
            )
        for own, allowed in zip(robot.spec.joints, joints, strict=True):
            if not own.min_rad - TOLERANCE_RAD <= allowed.min_rad < allowed.max_rad <= own.max_rad + TOLERANCE_RAD:
                raise RobotError(
                    f"rig joint {allowed.name!r} [{allowed.min_rad:.3f}, {allowed.max_rad:.3f}] rad does not fit robot "
                    f"joint {own.name!r} [{own.min_rad:.3f}, {own.max_rad:.3f}] rad; narrow the rig's limits"
                )
        if not 0 < max_step_rad < np.inf:
            raise RobotError(f"max_step_rad is {max_step_rad}, expected a positive number of rad")
        self._spec = replace(robot.spec, joints=joints)
        self._max_step_rad = np.float32(max_step_rad)
        self._target_rad: FloatArray | None = None
        self.counters = SafetyCounters()

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def newest_target(self) -> FloatArray | None:
        """The last target sent [A] (rad); None if the next command measures the pose first."""
        return self._target_rad

    def connect(self) -> None:
        super().connect()
        self.counters = SafetyCounters()
        self.forget()

    def relax(self) -> None:
        self.forget()
        super().relax()

    def forget(self) -> None:
        """Measure the pose before the next command: after a pause, or after something else moved the robot."""
        self._target_rad = None

    def continue_from(self, target_rad: list[float] | None) -> None:
        """Limit the next command's step from `target_rad`, the `newest_target` of the process before."""
        self._target_rad = None if target_rad is None else np.array(target_rad, np.float32)

    def place(self, state: FloatArray, rng: np.random.Generator | None = None) -> None:
        """Call `SimulatedRobot.place` of the robot below; the next command measures the pose first."""
        robot = self.unwrapped
        if not isinstance(robot, SimulatedRobot):
            raise RobotError("the object of a real robot cannot be placed by a program; use a simulated robot")
        robot.place(state, rng)
        self.forget()

    def command(self, target_rad: FloatArray) -> FloatArray:
        """Limit `target_rad` to the workspace and to one step from the last target, send it, return it.

        Raises:
            RobotError: a value is not finite, or the length is wrong, or the measured pose is impossible; nothing was
                sent.
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

    def counts(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self.counters)

    def _require_finite(self, joint_rad: FloatArray, problem: str) -> None:
        if joint_rad.shape != self.spec.lower_rad.shape or not np.isfinite(joint_rad).all():
            self.counters.refused += 1
            raise RobotError(f"{problem}: {joint_rad}, expected {len(self.spec.joints)} finite values in rad")

    def _require_possible(self, joint_rad: FloatArray) -> None:
        """Refuse to move from a pose that no joint can have: the first step would be a leap from the true pose."""
        own = self.robot.spec
        beyond = np.maximum(joint_rad - own.upper_rad, own.lower_rad - joint_rad)
        worst = int((beyond / (own.upper_rad - own.lower_rad)).argmax())
        if beyond[worst] > MAX_OVERTRAVEL * (own.upper_rad - own.lower_rad)[worst]:
            self.counters.refused += 1
            joint = own.joints[worst]
            raise RobotError(
                f"command refused: joint {joint.name!r} reads {joint_rad[worst]:.2f} rad, expected about "
                f"{joint.min_rad:.2f} to {joint.max_rad:.2f}; check the joint and its calibration"
            )


def make_safe(robot: Robot, rig: Rig, *, real_time: bool = False) -> SafeRobot:
    """Put a robot behind its rig's limits; with `real_time` a simulated one takes as long as a real one."""
    if real_time and isinstance(robot.unwrapped, SimulatedRobot):
        robot = RealTime(robot)
    return SafeRobot(robot, rig.limits, rig.max_step_rad)
