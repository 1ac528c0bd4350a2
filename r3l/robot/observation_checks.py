"""Checks on every observation: what a camera or a joint sensor shows when it lies, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r3l.config.schema import Action, Check, ChecksConfig
from r3l.robot.base import FloatArray, Image, Joint, Observation
from r3l.robot.camera_place import Background

BLINDING = ("dark", "saturated")
"""Checks on whose images, which are all alike, neither motion nor place can be seen."""
ROBOT = "robot"
"""The check that counts what a robot finds wrong with itself; that has thresholds and actions of its own."""
CHECKS = (*ChecksConfig.__dataclass_fields__, ROBOT)
"""The names of all checks."""


@dataclass(frozen=True)
class Finding:
    """A check that an observation failed."""

    name: str
    action: Action
    message: str
    """One line: what was found, what is allowed, the next step."""


SEVERITY: tuple[Action, ...] = ("warn", "skip", "pause", "stop")
BRIGHT_LEVEL = 250
"""Grey level from which on a pixel is as bright as can be."""
ROAMED_SHARE = 0.5
"""Share of its range that every joint moves through before a picture without noise must change: fingers leave it."""
ELSEWHERE_RAD = 0.2
"""A joint whose target is so far away should move."""


class Checks:
    """Looks at each observation. Cheap enough for the control loop: numpy on one small image.

    No count is begun anew by time or by pauses: what is frozen stays so until it shows something new, but for a camera
    without noise, which shows the same as long as nothing moves.
    """

    def __init__(
        self,
        config: ChecksConfig,
        joints: tuple[Joint, ...],
        control_hz: float,
        goals: NDArray[np.uint8],
        *,
        identical_frames: Literal["never", "at rest", "often"] = "never",
    ) -> None:
        """Look after a robot of `joints`; `goals` [G, H, W, 3] show the background where the camera belongs.

        A simulated camera has no noise: `identical_frames` "at rest" mean nothing until every joint has roamed, those
        that come "often" never mean anything.
        """
        self._config, self._joints, self._identical_frames = config, joints, identical_frames
        self._lower = np.array([joint.min_rad for joint in joints], np.float32)
        self._upper = np.array([joint.max_rad for joint in joints], np.float32)
        self._period_s = 1 / control_hz
        self.background = Background(goals)
        self._goal_level, self._goal_bright = light(goals)
        self._image: Image | None = None
        self._joint_rad: FloatArray | None = None
        self._same_images = self._same_joints = 1
        self._held_above, self._held_below = np.zeros(len(joints), np.int64), np.zeros(len(joints), np.int64)
        """By joint: looks in which it read the same though it was sent far up, or far down."""
        self._least_rad = self._most_rad = np.zeros(len(joints), np.float32)
        self.counts = dict.fromkeys(CHECKS, 0)
        """How often each check failed."""

    def look(self, observation: Observation, target_rad: FloatArray | None, elapsed_s: float) -> Finding | None:
        """Return the gravest finding of one observation, None where all is well.

        Args:
            observation: what the robot returned.
            target_rad: where the joints were sent last, [A]; None where nobody sent them anywhere.
            elapsed_s: since the observation before, by the robot's clock.
        """
        image, joint_rad = observation.image, observation.joint_rad
        found = [
            *self._look_at_time(elapsed_s),
            *self._look_at_joints(joint_rad, target_rad),
            *self._look_at_light(image),
        ]
        ice = list(self._look_for_ice(image, joint_rad))
        if not any(finding.name in BLINDING for finding in found):
            found += [*ice, *self._look_at_place(image, joint_rad)]
        for finding in found:
            self.counts[finding.name] += 1
        return max(found, key=lambda finding: SEVERITY.index(finding.action), default=None)

    def rest(self) -> None:
        """Take note that the robot rests: what its joints did before tells nothing more about identical frames."""
        if self._joint_rad is not None:
            self._least_rad = self._most_rad = self._joint_rad

    def _look_at_time(self, elapsed_s: float) -> Iterator[Finding]:
        periods = elapsed_s / self._period_s
        if periods > self._config.late.threshold:
            text = f"the observation came {periods:.1f} control periods after the one before"
            yield self._finding("late", text, "look for what holds the robot up")

    def _look_at_light(self, image: Image) -> Iterator[Finding]:
        level, bright = light(image)
        if level < min(self._config.dark.threshold, self._goal_level / 2):
            yield self._finding("dark", f"the image's mean grey level is {level:.1f}", "switch the light on")
        if bright - self._goal_bright > self._config.saturated.threshold:
            yield self._finding("saturated", f"{bright:.2f} of the image is as bright as can be", "dim the light")

    def _look_for_ice(self, image: Image, joint_rad: FloatArray) -> Iterator[Finding]:
        is_same = self._image is not None and np.array_equal(image, self._image)
        self._image = image
        if not is_same:
            self._same_images, self._least_rad, self._most_rad = 1, joint_rad, joint_rad
            return
        self._same_images += 1
        if joint_rad.shape == self._least_rad.shape:
            self._least_rad = np.fmin(self._least_rad, joint_rad)
            self._most_rad = np.fmax(self._most_rad, joint_rad)
        roamed = self._most_rad - self._least_rad > ROAMED_SHARE * (self._upper - self._lower)
        tells = {"never": True, "at rest": bool(roamed.all()), "often": False}[self._identical_frames]
        if self._same_images >= self._config.frozen.threshold and tells:
            yield self._finding("frozen", f"{self._same_images} identical frames in a row", "restart the camera")

    def _look_at_place(self, image: Image, joint_rad: FloatArray) -> Iterator[Finding]:
        misplaced = self.background.see(image, joint_rad, self._config.moved.threshold)
        if misplaced > self._config.moved.threshold:
            text = f"the goal images' background fits better elsewhere, by {misplaced:.2f}: the camera moved"
            yield self._finding("moved", text, "put the camera back, or take goal images anew")

    def _look_at_joints(self, joint_rad: FloatArray, target_rad: FloatArray | None) -> Iterator[Finding]:
        if joint_rad.shape != self._lower.shape or not np.isfinite(joint_rad).all():
            text = f"joint readings are {joint_rad.tolist()}, expected {len(self._joints)} finite values in rad"
            yield self._finding("joint_impossible", text, "look after the bus")
            return
        beyond = np.maximum(joint_rad - self._upper, self._lower - joint_rad)
        worst = int(beyond.argmax())
        if beyond[worst] > self._config.joint_impossible.threshold:
            name = self._joints[worst].name
            text = f"joint {name!r} reads {joint_rad[worst]:.2f} rad, {beyond[worst]:.2f} rad beyond its limit"
            yield self._finding("joint_impossible", text, "look after the joint and its calibration")
        is_same = self._joint_rad is not None and np.array_equal(joint_rad, self._joint_rad)
        self._count_held(joint_rad, target_rad)
        self._joint_rad = joint_rad
        if not is_same:
            self._same_joints = 1
        elif target_rad is not None and float(np.median(np.abs(target_rad - joint_rad))) > ELSEWHERE_RAD:
            self._same_joints += 1
        if self._same_joints >= self._config.joint_frozen.threshold:
            text = f"{self._same_joints} identical readings of all joints, though they were sent elsewhere"
            yield self._finding("joint_frozen", text, "look after the bus")
            return
        # A joint that is held by something moves when it is sent the other way; one whose sensor is dead never does.
        held = np.minimum(self._held_above, self._held_below)
        worst = int(held.argmax())
        if held[worst] >= self._config.joint_frozen.threshold / 2:
            name = self._joints[worst].name
            text = f"joint {name!r} reads {joint_rad[worst]:.2f} rad all the time, though it was sent up and down"
            yield self._finding("joint_frozen", text, "look after the joint's sensor")

    def _count_held(self, joint_rad: FloatArray, target_rad: FloatArray | None) -> None:
        """Count by joint how long it has read the same while it was sent elsewhere, up and down."""
        if self._joint_rad is None:
            return
        same = joint_rad == self._joint_rad
        away = np.zeros(len(joint_rad), np.float32) if target_rad is None else target_rad - joint_rad
        self._held_above = np.where(same, self._held_above + (away > ELSEWHERE_RAD), 0)
        self._held_below = np.where(same, self._held_below + (away < -ELSEWHERE_RAD), 0)

    def _finding(self, name: str, text: str, advice: str) -> Finding:
        check: Check = getattr(self._config, name)
        limit = f"checks.{name}.threshold {check.threshold:g}"
        return Finding(name, check.action, f"{text} ({limit}); {advice}, or change checks.{name}.action")


def light(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the mean grey level, and the share of values that are as bright as can be."""
    return float(images.mean()), float((images >= BRIGHT_LEVEL).mean())
