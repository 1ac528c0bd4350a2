"""`r3l calibrate RIG`: a person moves the fingers by hand; zeros, signs and limits are read off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from r3l.config import UserError

from ..dynamixel.bus import Bus
from ..dynamixel.chain import Chain
from .kinematics import Array
from .rig import NAMES, ClawRig, problems

STEPS = ("zero", "signs", "limits")
SAMPLES, STILL_RAD = 10, 0.02
"""Readings per pose, and their max spread."""
MIN_TURN_RAD, OTHERS_RAD = 0.2, 0.6
"""Min rotation of a joint that tells its sign."""
MARGIN_RAD = 0.05
"""Distance of a limit from the extreme position that the joint was moved to."""
MIN_RANGE_RAD = 0.3
DIRECTIONS = {
    "swing": "sideways, clockwise around the hand seen from above",
    "curl": "inwards, towards the axis of the hand",
    "tip": "inwards, so that the fingertip bends towards the axis of the hand",
}
Until = Callable[[str], Iterator[None]]
"""until(text) shows a person an instruction and yields repeatedly until the person has finished."""
Say = Callable[[str], None]


def calibrate(rig: ClawRig, until: Until, say: Say, steps: tuple[str, ...] = STEPS) -> ClawRig:
    """Return the rig with the values read off. The servos have no torque meanwhile.

    Raises:
        RobotError: the servos are not those of the rig.
        UserError: the values make no valid rig; the message says why.
    """
    bus = Bus(rig.bus.port, rig.bus.baud_rate)
    chain = Chain(bus, rig.model, rig.drives, rig.limits)
    with bus:
        chain.relax()
        chain.identify()
        chain.configure()
        bench = _Bench(chain, until, say)
        for step in steps:
            rig = {"zero": bench.zero, "signs": bench.signs, "limits": bench.limits}[step](rig)
    problem = next(problems(rig), None)
    if problem is not None:
        raise UserError(f"{problem}; nothing was written, calibrate again")
    return rig


class _Bench:
    """The servos on the bench, and the instructions for the person beside them."""

    def __init__(self, chain: Chain, until: Until, say: Say) -> None:
        self._chain, self._until, self._say = chain, until, say

    def zero(self, rig: ClawRig) -> ClawRig:
        """Read the servos' angles while all joints are at 0."""
        while True:
            self._await("Hold all three fingers straight down, every joint at its zero; then Enter")
            samples = np.array([self._servo_rad() for _ in range(SAMPLES)])
            worst = int(np.ptp(samples, axis=0).argmax())
            if np.ptp(samples, axis=0)[worst] <= STILL_RAD:
                break
            self._say(f"{self._chain.drives[worst].name} still moves; hold it")
        found = np.median(samples, axis=0)
        for name, angle in zip(NAMES, found, strict=True):
            self._say(f"{name}: zero at {angle:+.3f} rad of its servo")
        return _with(rig, {name: {"offset_rad": round(float(a), 4)} for name, a in zip(NAMES, found, strict=True)})

    def signs(self, rig: ClawRig) -> ClawRig:
        """Read the direction in which each servo turns."""
        found: dict[str, dict[str, Any]] = {}
        for at, name in enumerate(NAMES):
            finger, part = name.split("_")
            before = self._servo_rad()
            while True:
                self._await(f"Turn the {part} of {finger} {DIRECTIONS[part]}, by 20 degrees or more; then Enter")
                turned = self._servo_rad() - before
                most = int(np.abs(turned).argmax())
                if abs(turned[at]) >= MIN_TURN_RAD and most == at:
                    break
                what = f"{NAMES[most]} moved most, by {abs(turned[most]):.2f} rad"
                self._say(f"{what}, expected {name} by {MIN_TURN_RAD} or more; put it back and turn {name} alone")
            found[name] = {"sign": 1 if turned[at] > 0 else -1}
            self._say(f"{name}: sign {found[name]['sign']:+d}")
        return _with(rig, found)

    def limits(self, rig: ClawRig) -> ClawRig:
        """Read how far each joint turns."""
        chain = Chain(self._chain.bus, rig.model, rig.drives, rig.limits)
        while True:
            lowest = highest = chain.read().joint_rad
            for _ in self._until("Move every joint through all of the range that is safe; then Enter"):
                seen = chain.read().joint_rad
                lowest, highest = np.fmin(lowest, seen), np.fmax(highest, seen)
            short = [name for name, turned in zip(NAMES, highest - lowest, strict=True) if turned < MIN_RANGE_RAD]
            if not short:
                break
            self._say(f"{', '.join(short)} moved through less than {MIN_RANGE_RAD} rad; again, those too")
        found: dict[str, dict[str, Any]] = {}
        for name, low, high in zip(NAMES, lowest, highest, strict=True):
            found[name] = {"min_rad": round(float(low) + MARGIN_RAD, 3), "max_rad": round(float(high) - MARGIN_RAD, 3)}
            self._say(f"{name}: {found[name]['min_rad']:+.2f} to {found[name]['max_rad']:+.2f} rad")
        return _with(rig, found)

    def _await(self, text: str) -> None:
        for _ in self._until(text):
            time.sleep(0.01)

    def _servo_rad(self) -> Array:
        """Return the servos' own angles, in (-pi, pi]."""
        place, model = [], self._chain.model
        for servo in self._chain.ids:
            place.append(math.remainder(self._chain.bus.read(servo, model["present_position"]), 2 * math.pi))
        return np.array(place)


def _with(rig: ClawRig, changes: dict[str, dict[str, Any]]) -> ClawRig:
    """Return a rig whose joints have some settings changed."""
    return replace(rig, joints={name: replace(each, **changes.get(name, {})) for name, each in rig.joints.items()})
