"""Positions of the fingers, and their distances from each other and from forbidden volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FINGERS = 3
SAMPLES = 12
"""Checked points along each of a finger's two long links; half of the gap between points is added as a margin."""
PAIRS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Geometry:
    """Dimensions of the hand, m. The frame is the twin's: z up along the hand's axis, z = 0 at the table."""

    mount_radius_m: float = 0.075
    """Distance of a finger's mount from the axis."""
    mount_height_m: float = 0.20
    swing_m: float = 0.022
    """Distance from the swing's axis to the curl's axis."""
    curl_m: float = 0.080
    """Distance from the curl's axis to the tip's axis."""
    tip_m: float = 0.068
    """Distance from the tip's axis to the centre of the fingertip."""
    finger_radius_m: float = 0.011
    """Radius of links and fingertips."""
    first_deg: float = 60.0
    """Angle of finger 0's mount around the axis; the others follow by 120 degrees. 0 is on the negative x axis."""


@dataclass(frozen=True)
class Box:
    """A volume that no part of a finger may enter, in the hand's frame, m."""

    lower_m: tuple[float, float, float]
    upper_m: tuple[float, float, float]


@dataclass(frozen=True)
class Workspace:
    """Limits of the fingertips, and the volumes that fingers must keep out of, m."""

    radius_m: float = 0.18
    """Max distance of a fingertip's centre from the hand's axis."""
    lowest_m: float = 0.012
    """Min and max height of a fingertip's centre above the table."""
    highest_m: float = 0.25
    clearance_m: float = 0.004
    """Min distance between the surfaces of two fingers."""
    keep_out: tuple[Box, ...] = ()


class Kinematics:
    """Forward kinematics of the three fingers, and the violation of the workspace's rules by a pose."""

    def __init__(self, geometry: Geometry, workspace: Workspace) -> None:
        self._geometry, self._workspace = geometry, workspace
        yaw = np.radians(geometry.first_deg) + 2 * np.pi * np.arange(FINGERS) / FINGERS
        self._cos, self._sin = np.cos(yaw), np.sin(yaw)
        self._mount = np.stack(
            [
                -geometry.mount_radius_m * self._cos,
                -geometry.mount_radius_m * self._sin,
                np.full(FINGERS, geometry.mount_height_m),
            ],
            -1,
        )
        self._lower = np.array([box.lower_m for box in workspace.keep_out]).reshape(-1, 1, 3)
        self._upper = np.array([box.upper_m for box in workspace.keep_out]).reshape(-1, 1, 3)

    def points(self, joint_rad: Array) -> Array:
        """Return the curl's axis, the tip's axis and the fingertip of each finger: [..., 9] rad to [..., 3, 3, 3] m."""
        angles = np.asarray(joint_rad, np.float64).reshape(*np.shape(joint_rad)[:-1], FINGERS, 3)
        swing, curl, bend = angles[..., 0], angles[..., 1], angles[..., 1] + angles[..., 2]
        geometry = self._geometry
        inwards = np.cumsum(
            [np.zeros_like(curl), geometry.curl_m * np.sin(curl), geometry.tip_m * np.sin(bend)], axis=0
        )
        down = np.cumsum(
            [np.full_like(curl, geometry.swing_m), geometry.curl_m * np.cos(curl), geometry.tip_m * np.cos(bend)],
            axis=0,
        )
        aside, up = down * np.sin(swing), -down * np.cos(swing)
        found = np.stack([self._cos * inwards - self._sin * aside, self._sin * inwards + self._cos * aside, up], -1)
        points: Array = np.moveaxis(found, 0, -2) + self._mount[:, None]
        return points

    def excess(self, joint_rad: Array) -> Array:
        """Return the violation of the worst rule, m: [..., 9] rad to [...]; 0 or less if all rules hold."""
        worst: Array = self.excesses(joint_rad).max(-1)
        return worst

    def excesses(self, joint_rad: Array) -> Array:
        """Return the violation of each rule, m: [..., 9] rad to [..., R].

        Rules: each fingertip's limits, the distance of each two fingers, each finger's depth in forbidden volumes.
        """
        points = self.points(joint_rad)
        tips, rules = points[..., 2, :], self._workspace
        outside = np.hypot(tips[..., 0], tips[..., 1]) - rules.radius_m
        outside = np.maximum(outside, np.maximum(rules.lowest_m - tips[..., 2], tips[..., 2] - rules.highest_m))
        parts = [outside, self._too_near(points)]
        parts += [self._inside_boxes(points)] if rules.keep_out else []
        return np.concatenate(parts, -1)

    def _too_near(self, points: Array) -> Array:
        """Return how far two fingers fall below their min distance at their nearest points: [..., 3]."""
        begin, end = points[..., :2, :], points[..., 1:, :]
        first, second = [a for a, _ in PAIRS], [b for _, b in PAIRS]
        distance = segment_distance(
            begin[..., first, :, None, :],
            end[..., first, :, None, :],
            begin[..., second, None, :, :],
            end[..., second, None, :, :],
        ).min((-1, -2))
        least: Array = self._workspace.clearance_m + 2 * self._geometry.finger_radius_m - distance
        return least

    def _inside_boxes(self, points: Array) -> Array:
        """Return the depth of the deepest part of each finger in a forbidden volume: [..., 3]."""
        share = np.linspace(0, 1, SAMPLES)[:, None]
        begin, end = points[..., :2, None, :], points[..., 1:, None, :]
        samples = (begin + share * (end - begin)).reshape(*points.shape[:-2], 1, -1, 3)
        geometry = self._geometry
        radius = geometry.finger_radius_m + max(geometry.curl_m, geometry.tip_m) / (SAMPLES - 1) / 2
        depth = np.minimum(samples - (self._lower - radius), self._upper + radius - samples).min(-1)
        deepest: Array = depth.max((-1, -2))
        return deepest


def segment_distance(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Return the min distance between segments a-b and c-d, [..., 3] each.

    Source: C. Ericson, Real-Time Collision Detection (2005), section 5.1.9; here for segments of positive length.
    """
    u, v, w = b - a, d - c, a - c
    uu, uv, vv, uw, vw = _dot(u, u), _dot(u, v), _dot(v, v), _dot(u, w), _dot(v, w)
    s = _within_one((uv * vw - uw * vv) / np.maximum(uu * vv - uv * uv, 1e-15))
    t = _within_one((uv * s + vw) / vv)
    s = _within_one((uv * t - uw) / uu)
    apart = w + s[..., None] * u - t[..., None] * v
    distance: Array = np.sqrt(_dot(apart, apart))
    return distance


def _dot(a: Array, b: Array) -> Array:
    found: Array = np.einsum("...i,...i->...", a, b)
    return found


def _within_one(share: Array) -> Array:
    return np.minimum(np.maximum(share, 0.0), 1.0)
