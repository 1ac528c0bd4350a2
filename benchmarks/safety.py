"""Send random actions to a hand of emulated servos, and check every value that reaches a register.

The actions range from small steps to a thousand times a joint's range, and include NaN and infinities. At intervals
joints are blocked, and the hand is relaxed, loses power, or has its fingers moved by hand. These are violations:
- a goal outside the limits of its joint, or farther from the last goal than one step;
- a pose outside the workspace or with colliding fingers; if the hand was put into such a pose, a pose that is worse;
- a current limit or a profile other than the rig's;
- torque that is switched on with a goal away from the joint's position.
The exit code is 1 if there is a violation.

The driver's bytes reach the emulated servos without a pseudo-terminal, and a servo reaches its goal at once, so that a
million actions take less than an hour.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.figures import exit_code, make_parser, parse, save_figures
from r3l.hardware.dclaw.kinematics import Kinematics
from r3l.hardware.dclaw.rig import ClawRig, default_rig
from r3l.hardware.dclaw.robot import DClaw
from r3l.hardware.dynamixel.chain import Drive
from r3l.hardware.dynamixel.emulator import Emulator
from r3l.hardware.dynamixel.port import Port
from r3l.hardware.dynamixel.protocol import Decoder
from r3l.hardware.dynamixel.servo import Servo
from r3l.robot.base import FloatArray, RobotError
from r3l.robot.safety import SafeRobot
from r3l.run.progress import progress_bar

NAME = "safety"
COUNT_RAD = 2 * math.pi / 4096
ROUNDING_M = 2e-4
"""Max change of a pose's clearance by rounding its joints to counts."""
MAX_LUNGE_RAD = 0.02
"""Max distance between a joint and its goal when its torque is switched on."""
NOT_A_NUMBER_SHARE = 0.02
HOLD_EVERY, CHECK_EVERY, RELAX_EVERY, BROWN_OUT_EVERY = 50, 20, 500, 2000
"""Actions between two changes of the blocked joints, two checks of the servos, two relaxations, two power losses."""


class Inspector:
    """An inspector of every write to the registers of a hand's servos."""

    def __init__(self, rig: ClawRig, servos: dict[int, Servo]) -> None:
        self.violations: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.deepest_m = self._before_m = -math.inf
        self._rig, self._servos = rig, servos
        self._kinematics = Kinematics(rig.geometry, rig.workspace)
        self._goals: dict[int, float] = {}
        self._last = rig.drives[-1].id
        for drive in rig.drives:
            servos[drive.id].on_write = lambda name, counts, it=drive: self._check(it, name)

    def _check(self, drive: Drive, name: str) -> None:
        servo, rig = self._servos[drive.id], self._rig
        value = servo.value(name)
        self.writes[name] += 1
        fixed = {
            "operating_mode": 5.0,
            "goal_current": rig.strength.current_a,
            "current_limit": rig.strength.current_a,
            "profile_velocity": rig.strength.speed_rad_s,
            "profile_acceleration": rig.strength.acceleration_rad_s2,
        }
        if name in fixed and abs(value - fixed[name]) > servo.model[name].unit:
            self.violations[name] += 1
        if name == "torque_enable" and value:
            goal_rad = drive.joint_rad(servo.value("goal_position"))
            self.violations["lunge"] += abs(goal_rad - drive.joint_rad(servo.angle_rad)) > MAX_LUNGE_RAD
            self._goals[drive.id] = goal_rad
            self._before_m = self._excess_m()
        if name == "goal_position" and servo.is_on:
            self._check_goal(drive, value)

    def _check_goal(self, drive: Drive, value: float) -> None:
        joint, last_rad = drive.joint, self._goals.get(drive.id)
        goal_rad = drive.joint_rad(value)
        self._goals[drive.id] = goal_rad
        step_rad = self._rig.strength.speed_rad_s / self._rig.control_hz
        was_outside = last_rad is not None and not joint.min_rad <= last_rad <= joint.max_rad
        if not joint.min_rad - COUNT_RAD / 2 <= goal_rad <= joint.max_rad + COUNT_RAD / 2 and not was_outside:
            self.violations["position"] += 1
        if last_rad is not None and abs(goal_rad - last_rad) > step_rad + COUNT_RAD:
            self.violations["step"] += 1
        if drive.id == self._last:
            excess_m = self._excess_m()
            self.violations["pose"] += excess_m > max(self._before_m, 0.0) + ROUNDING_M
            if self._before_m <= 0:  # otherwise a person had put the hand into a bad pose
                self.deepest_m = max(self.deepest_m, excess_m)
            self._before_m = excess_m

    def _excess_m(self) -> float:
        """Return how far the pose of the servos' goals is outside the allowed poses, m."""
        if len(self._goals) < len(self._rig.drives):
            return -math.inf
        pose = np.array([self._goals[each.id] for each in self._rig.drives])
        return float(self._kinematics.excess(pose))


def action(rng: np.random.Generator, spread: float, count: int) -> FloatArray:
    """Return a random action; in a few actions one value is NaN, infinite or huge."""
    found = rng.normal(0, spread, count).astype(np.float32)
    if rng.random() < NOT_A_NUMBER_SHARE:
        found[rng.integers(count)] = rng.choice([np.nan, np.inf, -np.inf, 1e38])
    return found


class Wire(Port):  # type: ignore[misc]  # see pyproject: drivers are Any inside the checkout
    """A port that passes packets to emulated servos directly."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__("emulated", 1_000_000)
        self._emulator, self._answers, self._is_plugged = emulator, bytearray(), False

    @property
    def is_open(self) -> bool:
        return self._is_plugged

    def open(self) -> None:
        self._is_plugged = True

    def close(self) -> None:
        self._is_plugged = False

    def write(self, data: bytes, deadline_s: float) -> None:
        servos = list(self._emulator.servos.values())
        for packet in Decoder().feed(data):
            for _, answer in self._emulator.answers(packet, servos):
                self._answers += answer

    def read(self, deadline_s: float) -> bytes:
        data = bytes(self._answers)
        self._answers.clear()
        return data


def attack(actions: int, seed: int) -> dict[str, Any]:
    """Send random actions to one hand; return the numbers of writes, refusals and violations."""
    rng, rig = np.random.default_rng(seed), default_rig()
    emulator = Emulator([Servo(drive.id, rig.model) for drive in rig.drives])
    claw = DClaw(rig)
    claw.hand.bus.port = Wire(emulator)
    claw._schedule._sleep = lambda duration_s: None
    with claw:
        inspector = Inspector(rig, emulator.servos)
        refused = _send_all(claw, emulator, rng, actions)
    return {
        "actions": actions,
        "refused": refused,
        "writes": dict(inspector.writes),
        "violations": dict(+inspector.violations),
        "deepest_mm": round(1000 * inspector.deepest_m, 3),
    }


def _send_all(claw: DClaw, emulator: Emulator, rng: np.random.Generator, actions: int) -> int:
    """Send actions without pacing and check the servos every CHECK_EVERY actions; return the number of refusals."""
    hand, joints = claw.hand, tuple(drive.joint for drive in claw.rig.drives)
    safe = SafeRobot(claw, joints, claw.rig.strength.speed_rad_s / claw.rig.control_hz)
    restore_failed, refused, held = hand.restore_failed, 0, set[int]()
    hand.restore_failed = lambda: None
    bar = progress_bar("random actions", "action", actions)
    for number in range(actions):
        bar.update()
        if number % HOLD_EVERY == 0:
            held = set(rng.choice(sorted(emulator.servos), rng.integers(0, 4), replace=False).tolist())
        try:
            safe.command(action(rng, float(rng.choice([0.1, 1.0, 10.0, 1000.0])), len(joints)))
        except RobotError:
            refused += 1
        for servo in emulator.servos.values():
            if servo.is_on and servo.id not in held:
                servo.angle_rad = servo.value("goal_position")
        hand.measure()
        if number % CHECK_EVERY == 0:
            restore_failed()
        if number % RELAX_EVERY == RELAX_EVERY - 1:
            safe.relax()
            for drive in rng.choice(np.array(claw.rig.drives), 3, replace=False):
                moved = rng.uniform(drive.joint.min_rad, drive.joint.max_rad)
                emulator.servos[drive.id].angle_rad = drive.servo_rad(moved)
        if number % BROWN_OUT_EVERY == BROWN_OUT_EVERY - 1:
            emulator.brown_out(rng.choice(sorted(emulator.servos), 3, replace=False).tolist())
            restore_failed()
    bar.close()
    return refused


def attack_in_parallel(actions: int, seed: int, jobs: int) -> dict[str, object]:
    """Attack in several processes with different seeds; return the sum of their figures."""
    if jobs == 1:
        return attack(actions, seed)
    with ProcessPoolExecutor(jobs) as pool:
        parts = list(pool.map(attack, [actions // jobs] * jobs, range(seed, seed + jobs)))
    found: dict[str, object] = {name: sum(part[name] for part in parts) for name in ("actions", "refused")}
    for name in ("writes", "violations"):
        found[name] = dict(sum((Counter(part[name]) for part in parts), Counter()))
    return found | {"deepest_mm": max(part["deepest_mm"] for part in parts)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if there was a violation."""
    parser = make_parser(NAME, __doc__)
    parser.add_argument("--actions", type=int, default=1_000_000, help="number of actions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first process (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the actions (%(default)s)")
    options = parse(parser, arguments)

    def work() -> int:
        found = attack_in_parallel(options.actions, options.seed, options.jobs)
        print(json.dumps(found, indent=1))
        save_figures(options, found)
        return 1 if found["violations"] else 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
