"""Send random actions to a hand of emulated servos, and look at every value that reaches a register.

The actions are anything, NaN and infinities among them, from small steps to a thousand times a joint's range; the hand
is relaxed, loses its power and has its fingers moved by others now and then. The servos write down what they are told:
a goal outside its joint's limits, farther from the last than a step, in a pose that leaves the workspace or brings two
fingers together, a cap or a profile other than the rig's, is a violation. Exit code 1 where there is one.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from r3l.benchmark.figures import parser_of, save_figures
from r3l.hardware.dclaw.kinematics import Kinematics
from r3l.hardware.dclaw.rig import ClawRig, default_rig
from r3l.hardware.dclaw.robot import DClaw
from r3l.hardware.dynamixel.chain import Drive
from r3l.hardware.dynamixel.emulator import Emulator
from r3l.hardware.dynamixel.servo import Servo
from r3l.progress import progress_bar
from r3l.robot import FloatArray, RobotError
from r3l.safety import SafeRobot

NAME = "safety"
COUNT_RAD = 2 * math.pi / 4096
LEAST_M = 2e-4
"""What rounding to counts may do to a pose."""
LOOK_EVERY, RELAX_EVERY, BROWN_OUT_EVERY = 20, 500, 2000
"""Actions between two looks at the servos' states, two pauses and two losses of power."""


class Inspector:
    """Looks at what reaches the registers of a hand's servos."""

    def __init__(self, rig: ClawRig, servos: dict[int, Servo]) -> None:
        self.violations: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.deepest_m = -math.inf
        self._rig, self._servos = rig, servos
        self._kinematics = Kinematics(rig.geometry, rig.workspace)
        self._goals: dict[int, float] = {}
        self._last = rig.drives[-1].id
        for drive in rig.drives:
            servos[drive.id].on_write = lambda name, counts, it=drive: self._look(it, name)

    def _look(self, drive: Drive, name: str) -> None:
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
        if name == "torque_enable":
            self._goals.pop(servo.id, None)
            if value and abs(servo.value("goal_position") - servo.angle_rad) > 0.02:
                self.violations["lunge"] += 1
        if name == "goal_position" and servo.is_on:
            self._look_at_goal(drive, value)

    def _look_at_goal(self, drive: Drive, value: float) -> None:
        joint, last_rad = drive.joint, self._goals.get(drive.id)
        goal_rad = drive.joint_rad(value)
        self._goals[drive.id] = goal_rad
        step_rad = self._rig.strength.speed_rad_s / self._rig.control_hz
        was_outside = last_rad is not None and not joint.min_rad <= last_rad <= joint.max_rad
        if not joint.min_rad - COUNT_RAD / 2 <= goal_rad <= joint.max_rad + COUNT_RAD / 2 and not was_outside:
            self.violations["position"] += 1
        if last_rad is not None and abs(goal_rad - last_rad) > step_rad + COUNT_RAD:
            self.violations["step"] += 1
        if drive.id == self._last and len(self._goals) == len(self._rig.drives):
            pose = np.array([self._goals[each.id] for each in self._rig.drives])
            self.deepest_m = max(self.deepest_m, float(self._kinematics.excess(pose)))
            self.violations["pose"] += self.deepest_m > LEAST_M


def action(rng: np.random.Generator, spread: float, count: int) -> FloatArray:
    """Return an action: mostly numbers, now and then none."""
    found = rng.normal(0, spread, count).astype(np.float32)
    if rng.random() < 0.02:
        found[rng.integers(count)] = rng.choice([np.nan, np.inf, -np.inf, 1e38])
    return found


def attack(actions: int, seed: int) -> dict[str, object]:
    """Send so many actions; return what was found."""
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        rig = default_rig()
        rig = replace(rig, bus=replace(rig.bus, port=str(Path(folder) / "port")))
        emulator = Emulator([Servo(drive.id, rig.model) for drive in rig.drives], link=Path(folder) / "port")
        with emulator, DClaw(rig) as claw:
            inspector = Inspector(rig, emulator.servos)
            refused = _send_all(claw, emulator, rng, actions)
        return {
            "actions": actions,
            "counts": dict(claw.hand.bus.counts),
            "refused": refused,
            "writes": dict(inspector.writes),
            "violations": dict(+inspector.violations),
            "deepest_mm": round(1000 * inspector.deepest_m, 3),
        }


def _send_all(claw: DClaw, emulator: Emulator, rng: np.random.Generator, actions: int) -> int:
    """Send actions as fast as they go: what waits for the clock, and looks at states each time, is left out."""
    hand, joints = claw.hand, tuple(drive.joint for drive in claw.rig.drives)
    safe = SafeRobot(claw, joints, claw.rig.strength.speed_rad_s / claw.rig.control_hz)
    claw._schedule._sleep = lambda duration_s: None
    look_after, refused = hand.look_after, 0
    hand.look_after = lambda: None
    bar = progress_bar("random actions", "action", actions)
    for number in range(actions):
        bar.update()
        try:
            safe.command(action(rng, float(rng.choice([0.1, 1.0, 10.0, 1000.0])), len(joints)))
        except RobotError:
            refused += 1
        if number % LOOK_EVERY == 0:
            look_after()
        if number % RELAX_EVERY == RELAX_EVERY - 1:
            safe.observe()
            safe.relax()
        if number % BROWN_OUT_EVERY == BROWN_OUT_EVERY - 1:
            emulator.brown_out(rng.choice(sorted(emulator.servos), 3, replace=False).tolist())
            look_after()
    bar.close()
    return refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, print and write figures."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--actions", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    found = attack(options.actions, options.seed)
    print(json.dumps(found, indent=1))
    save_figures(options.out, NAME, given, found)
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
