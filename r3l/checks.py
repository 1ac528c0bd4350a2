"""Checks on every observation: what a camera or a joint sensor shows when it lies, and what to do about it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from r3l.robot import Action, FloatArray, Image, Joint, Observation


@dataclass(frozen=True)
class Check:
    """Where one check begins to fail, and what is done then.

    Whatever fails a check never reaches the experience store, but under `warn`.
    """

    threshold: float
    action: Action = "pause"


@dataclass(frozen=True)
class ChecksConfig:
    """Every check by its name. An action is changed like this: --set checks.dark.action=warn."""

    dark: Check = field(default_factory=lambda: Check(12.0))
    """Mean grey level of the image, 0 to 255, below which it is dark; half the goal images', where that is less."""
    saturated: Check = field(default_factory=lambda: Check(0.5))
    """Share of the pixels that are as bright as can be, beyond the goal images', above which it is saturated."""
    frozen: Check = field(default_factory=lambda: Check(5))
    """Identical frames in a row, though joints moved, from which on the camera is frozen."""
    late: Check = field(default_factory=lambda: Check(3.0, "skip"))
    """Control periods from one observation to the next, above which it is late."""
    joint_impossible: Check = field(default_factory=lambda: Check(0.5, "skip"))
    """How far beyond its limits, in rad, a joint is believed to be; what is not finite never is."""
    joint_frozen: Check = field(default_factory=lambda: Check(10))
    """Identical readings of all joints, though most were sent elsewhere, from which on they are frozen."""
    moved: Check = field(default_factory=lambda: Check(0.15))
    """How much better, 0 to 1, the goal images' background fits elsewhere than in its place when the camera moved."""


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


RECENT, STRIDE = 30, 10
"""So many frames, each so many looks after the one before, make a median without fingers and with little object."""
STEADY_SHARE, STEADY_LEVELS, EDGE_LEVELS, NOISE_LEVELS = 0.65, 8.0, 4.0, 4.0
"""What is steady varies less, in levels of 255, over that share of the goal images; edges are steeper, noise is not."""
LEAST_BACKGROUND, MOST_PIXELS = 0.03, 500
"""Share of the pixels that must be background, or nothing can be told; and how many of them are enough."""
SHIFTS_PX = (0, -1, 1, -2, 2, -3, 3, -4, 4, -6, 6, -8, 8)
"""How far off, down and to the right, the background is looked for: pixels of an image 64 pixels high or wide."""
TURNS_RAD, TURNED_SHIFTS_PX = (-0.052, 0.052), (0, -2, 2)
"""The same for a camera that was turned by three degrees."""
LEAST_FIT = 0.4
"""What fits nowhere better than this is not there."""


class Background:
    """What hardly varies over the goal images: how much better it fits recent frames elsewhere than in its place.

    Edges are compared, so that brightness does not matter. What a hand or the object covers fits nowhere; so it
    counts neither for nor against the camera.
    """

    def __init__(self, goals: NDArray[np.uint8]) -> None:
        """Learn the background from goal images [G, H, W, 3]."""
        middle = np.median(goals, axis=0)
        varies = np.quantile(np.abs(goals - middle), STEADY_SHARE, axis=0).max(-1)
        neighbours = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
        varies = np.max([np.roll(varies, neighbour, (0, 1)) for neighbour in neighbours], 0)
        expected = gradients(middle.mean(-1))
        size = np.hypot(*expected)
        mask = (varies[1:-1, 1:-1] < STEADY_LEVELS) & (size > EDGE_LEVELS)
        pixels = np.flatnonzero(mask) if mask.mean() >= LEAST_BACKGROUND else np.zeros(0, np.int64)
        pixels = pixels[:: len(pixels) // MOST_PIXELS + 1]
        self._expected = expected.reshape(2, 1, -1)[:, :, pixels].astype(np.float32)
        self._places = displaced(pixels, mask.shape)
        self._frames: deque[NDArray[np.float32]] = deque(maxlen=RECENT)
        self._pose = np.zeros(0, np.float32)
        self._looks = 0
        self._misplaced, self._is_due = 0.0, False
        self.defers = False
        """Whether somebody calls `think` when there is time for it, instead of `see`."""

    def see(self, image: Image, joint_rad: FloatArray, threshold: float) -> float:
        """Take in a frame; return how much better the background fits elsewhere, from 0 to 1.

        A frame in STRIDE is enough, and none of a hand that rests, which would hide the same all the time; but above
        `threshold` every one counts, so that the end is soon seen.
        """
        self._looks += 1
        is_due = self._looks % STRIDE == 0 and not np.array_equal(np.round(joint_rad, 1), self._pose)
        if self._places.size and (is_due or self._misplaced > threshold):
            self._pose = np.round(joint_rad, 1)
            self._frames.append(image.mean(-1, dtype=np.float32))
            self._is_due = len(self._frames) == RECENT
        if not self.defers:
            self.think()
        return self._misplaced

    def think(self) -> None:
        """Compare the recent frames with the background, where there is a new one."""
        if self._is_due:
            self._misplaced, self._is_due = self._compare(np.median(self._frames, axis=0)), False

    def misplaced(self, frames: NDArray[np.uint8]) -> float:
        """Return how much better the background fits frames [N, H, W, 3] elsewhere, from 0 to 1; 0 where it is none."""
        if not self._places.size:
            return 0.0
        return self._compare(np.median(frames.mean(-1, dtype=np.float32), axis=0))

    def _compare(self, grey: NDArray[np.float32]) -> float:
        found = np.pad(gradients(grey).reshape(2, -1), ((0, 0), (0, 1)))[:, self._places]
        both, sizes = (found * self._expected).sum(0), (found**2).sum(0) + (self._expected**2).sum(0)
        fits = np.maximum(2 * both / (sizes + NOISE_LEVELS**2), 0).mean(-1)
        return float((fits.max() - fits[0]) / max(fits.max(), LEAST_FIT))


def gradients(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vertical and horizontal differences of a grey image: [H, W] to [2, H - 2, W - 2]."""
    found: NDArray[np.float32] = np.stack([grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]])
    return found


def displaced(pixels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return where `pixels` [M] of an image of `shape` are after every shift and turn: [S, M], the first with none.

    One beyond the last pixel stands for all that left the picture.
    """
    rows, columns = np.divmod(pixels, shape[1])
    down, right = rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2
    moves = [(0.0, *shift) for shift in product(SHIFTS_PX, SHIFTS_PX)]
    moves += list(product(TURNS_RAD, TURNED_SHIFTS_PX, TURNED_SHIFTS_PX))
    places = []
    unit = max(1, round(min(shape) / 64))
    for turn, vertical, horizontal in moves:
        there = np.rint(rows + unit * vertical - right * turn).astype(np.int64)
        beside = np.rint(columns + unit * horizontal + down * turn).astype(np.int64)
        is_inside = (there >= 0) & (there < shape[0]) & (beside >= 0) & (beside < shape[1])
        places.append(np.where(is_inside, there * shape[1] + beside, shape[0] * shape[1]))
    return np.stack(places)
