"""Checks of every observation for faults of the camera and the joint sensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r3l.config.schema import Action, Check, ChecksConfig
from r3l.robot.base import FloatArray, Image, Joint, Observation, Trouble
from r3l.robot.camera_place import Background

BLINDING = ("dark", "saturated")
"""Checks whose images are all alike, so that they show neither motion nor the camera's place."""
ROBOT = "robot"
"""Name under which the troubles that a robot reports itself are counted."""
CHECKS = (*ChecksConfig.__dataclass_fields__, ROBOT)
"""The names of all checks."""
SEVERITY: tuple[Action, ...] = ("warn", "skip", "pause", "stop")
"""Actions, the gravest last."""
BRIGHT_LEVEL = 250
"""Grey level from which a pixel counts as saturated."""
ROAMED_SHARE = 0.5
"""Share of its range that every joint must move through before an image without noise has to change."""
MIN_AWAY_RAD = 0.2
"""Distance from its target, rad, at which a joint has to move."""


class ObservationChecks:
    """Checks of one robot's observations; cheap enough for the control loop.

    Time and pauses reset no count: a frozen camera or joint stays frozen until it shows something new. Only a camera
    without noise is different, since it shows the same while nothing moves.
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
        """Check a robot with `joints`; goal images `goals` [G, H, W, 3] show the background in its place.

        Args:
            config: thresholds and actions.
            joints: with their limits.
            control_hz: control rate.
            goals: the run's goal images.
            identical_frames: `Robot.identical_frames`. With "at rest" identical frames count once every joint roamed;
                with "often" they never count.
        """
        self.config, self._joints, self._identical_frames = config, joints, identical_frames
        self._lower = np.array([joint.min_rad for joint in joints], np.float32)
        self._upper = np.array([joint.max_rad for joint in joints], np.float32)
        self._period_s = 1 / control_hz
        self.background = Background(goals)
        self._goal_level, self._goal_bright = measure_light(goals)
        self._image: Image | None = None
        self._joint_rad: FloatArray | None = None
        self._same_images = self._same_joints = 1
        self._held_above, self._held_below = np.zeros(len(joints), np.int64), np.zeros(len(joints), np.int64)
        """Per joint: identical readings while its target was far above, or far below."""
        self._lowest_rad = self._highest_rad = np.zeros(len(joints), np.float32)
        """Per joint: its range since the image changed."""
        self.counts = dict.fromkeys(CHECKS, 0)
        """Failures per check."""

    def check(self, observation: Observation, target_rad: FloatArray | None, elapsed_s: float) -> Trouble | None:
        """Return the gravest trouble of one observation, None if it passes.

        Args:
            observation: the robot's.
            target_rad: the last target sent [A], None if there is none.
            elapsed_s: time since the observation before, by the robot's clock.
        """
        image, joint_rad = observation.image, observation.joint_rad
        troubles = [
            *self._check_time(elapsed_s),
            *self._check_joints(joint_rad, target_rad),
            *self._check_light(image),
        ]
        frozen = list(self._check_frozen(image, joint_rad))
        if not any(trouble.name in BLINDING for trouble in troubles):
            troubles += [*frozen, *self._check_place(image, joint_rad)]
        for trouble in troubles:
            self.counts[trouble.name] += 1
        return gravest(troubles)

    def rest(self) -> None:
        """Note that the robot rests: joint motion until now says nothing about identical frames from now on."""
        if self._joint_rad is not None:
            self._lowest_rad = self._highest_rad = self._joint_rad

    def _check_time(self, elapsed_s: float) -> Iterator[Trouble]:
        periods = elapsed_s / self._period_s
        if periods > self.config.late.threshold:
            text = f"the observation came {periods:.1f} control periods after the one before"
            yield self._trouble("late", text, "find what delays the robot")

    def _check_light(self, image: Image) -> Iterator[Trouble]:
        level, bright = measure_light(image)
        if level < min(self.config.dark.threshold, self._goal_level / 2):
            yield self._trouble("dark", f"the image's mean grey level is {level:.1f}", "switch the light on")
        if bright - self._goal_bright > self.config.saturated.threshold:
            yield self._trouble("saturated", f"{bright:.2f} of the image is saturated", "dim the light")

    def _check_frozen(self, image: Image, joint_rad: FloatArray) -> Iterator[Trouble]:
        is_same = self._image is not None and np.array_equal(image, self._image)
        self._image = image
        if not is_same:
            self._same_images, self._lowest_rad, self._highest_rad = 1, joint_rad, joint_rad
            return
        self._same_images += 1
        if joint_rad.shape == self._lowest_rad.shape:
            self._lowest_rad = np.fmin(self._lowest_rad, joint_rad)
            self._highest_rad = np.fmax(self._highest_rad, joint_rad)
        roamed = self._highest_rad - self._lowest_rad > ROAMED_SHARE * (self._upper - self._lower)
        is_fault = {"never": True, "at rest": bool(roamed.all()), "often": False}[self._identical_frames]
        if self._same_images >= self.config.frozen.threshold and is_fault:
            yield self._trouble("frozen", f"{self._same_images} identical frames in a row", "restart the camera")

    def _check_place(self, image: Image, joint_rad: FloatArray) -> Iterator[Trouble]:
        misplaced = self.background.update(image, joint_rad, self.config.moved.threshold)
        if misplaced > self.config.moved.threshold:
            text = f"the goal images' background fits better elsewhere, by {misplaced:.2f}: the camera moved"
            yield self._trouble("moved", text, "put the camera back, or take new goal images")

    def _check_joints(self, joint_rad: FloatArray, target_rad: FloatArray | None) -> Iterator[Trouble]:
        if joint_rad.shape != self._lower.shape or not np.isfinite(joint_rad).all():
            text = f"joint readings are {joint_rad.tolist()}, expected {len(self._joints)} finite values in rad"
            yield self._trouble("joint_impossible", text, "check the bus")
            return
        beyond = np.maximum(joint_rad - self._upper, self._lower - joint_rad)
        worst = int(beyond.argmax())
        if beyond[worst] > self.config.joint_impossible.threshold:
            name = self._joints[worst].name
            text = f"joint {name!r} reads {joint_rad[worst]:.2f} rad, {beyond[worst]:.2f} rad beyond its limit"
            yield self._trouble("joint_impossible", text, "check the joint and its calibration")
        yield from self._check_frozen_joints(joint_rad, target_rad)

    def _check_frozen_joints(self, joint_rad: FloatArray, target_rad: FloatArray | None) -> Iterator[Trouble]:
        away = np.zeros(len(joint_rad), np.float32) if target_rad is None else target_rad - joint_rad
        if self._joint_rad is not None:
            same = joint_rad == self._joint_rad
            if not same.all():
                self._same_joints = 1
            elif float(np.median(np.abs(away))) > MIN_AWAY_RAD:
                self._same_joints += 1
            self._held_above = np.where(same, self._held_above + (away > MIN_AWAY_RAD), 0)
            self._held_below = np.where(same, self._held_below + (away < -MIN_AWAY_RAD), 0)
        self._joint_rad = joint_rad
        limit = self.config.joint_frozen.threshold
        if self._same_joints >= limit:
            text = f"{self._same_joints} identical readings of all joints, though their targets were elsewhere"
            yield self._trouble("joint_frozen", text, "check the bus")
            return
        # A joint that is blocked on one side moves when its target is on the other; one with a dead sensor never does.
        held = np.minimum(self._held_above, self._held_below)
        worst = int(held.argmax())
        if held[worst] >= limit / 2:
            name = self._joints[worst].name
            text = f"joint {name!r} keeps reading {joint_rad[worst]:.2f} rad, though its target was above and below"
            yield self._trouble("joint_frozen", text, "check the joint's sensor")

    def _trouble(self, name: str, text: str, advice: str) -> Trouble:
        check: Check = getattr(self.config, name)
        limit = f"checks.{name}.threshold {check.threshold:g}"
        return Trouble(name, check.action, f"{text} ({limit}); {advice}, or change checks.{name}.action")


def gravest(troubles: Sequence[Trouble]) -> Trouble | None:
    """Return the trouble with the gravest action, the first of equals."""
    return max(troubles, key=lambda trouble: SEVERITY.index(trouble.action), default=None)


def measure_light(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the mean grey level, and the share of values that are saturated."""
    return float(images.mean()), float((images >= BRIGHT_LEVEL).mean())
