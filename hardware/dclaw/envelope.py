"""The envelope of the hand's targets: joint limits, workspace and max step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from r3l.robot import FloatArray, Joint

from .kinematics import FINGERS, Array, Kinematics

if TYPE_CHECKING:
    from .rig import ClawRig

LEASH_RAD = 0.4
"""Max distance of a target from the last measured position: a joint that is held must not push ever harder."""
SHARES = np.array([0.1, 0.2, 0.35, 0.5, 0.75, 1.0])
"""Positions along a move that are checked, and the shares of a move that a finger may go if not all of it."""
COUNT_RAD = 2 * np.pi / 4096
"""Resolution to which a servo rounds its goal."""


class Envelope:
    """Limits every target, whoever sends it."""

    def __init__(self, joints: tuple[Joint, ...], max_step_rad: float, kinematics: Kinematics) -> None:
        """Keep targets within `joints`, and each move within `max_step_rad`."""
        self._lower = np.array([joint.min_rad for joint in joints], np.float64)
        self._upper = np.array([joint.max_rad for joint in joints], np.float64)
        self._max_step_rad, self._kinematics = max_step_rad, kinematics

    @classmethod
    def of(cls, rig: ClawRig) -> Envelope:
        """Return the envelope of a rig."""
        joints = tuple(drive.joint for drive in rig.drives)
        step_rad = rig.strength.speed_rad_s / rig.control_hz
        return cls(joints, step_rad, Kinematics(rig.geometry, rig.workspace))

    def limit(self, target_rad: FloatArray, from_rad: FloatArray, measured_rad: FloatArray | None = None) -> FloatArray:
        """Return the allowed pose nearest to `target_rad` for a move that starts at `from_rad`, [A] rad each.

        A hand that was put outside may come back, and go no farther out. A finger that may not go all the way goes part
        of it; the other fingers are not delayed. The rules hold between the fingers' targets, and between each target
        and the measured positions of the other fingers, which may be held.
        """
        begin = np.asarray(from_rad, np.float64)
        measured = begin if measured_rad is None else np.where(np.isnan(measured_rad), begin, measured_rad)
        wanted = np.clip(np.asarray(target_rad, np.float64), measured - LEASH_RAD, measured + LEASH_RAD)
        inside = np.clip(wanted, self._lower, self._upper)
        target = np.clip(inside, begin - self._max_step_rad, begin + self._max_step_rad)
        if np.array_equal(target, begin):
            return begin.astype(np.float32)
        allowed = np.maximum(self._excesses(begin[None], measured)[0], 0.0)
        if self._free(begin, target, measured, allowed) < len(SHARES):
            target = self._by_finger(begin, target, measured, allowed)
        return target.astype(np.float32)

    def _by_finger(self, begin: Array, target: Array, measured: Array, allowed: Array) -> Array:
        """Move one finger after the other as far as it may go, also beside the fingers that move at the same time."""
        pose = begin.copy()
        for finger in range(FINGERS):
            part = np.s_[3 * finger : 3 * finger + 3]
            there = pose.copy()
            there[part] = target[part]
            free = self._free(pose, there, measured, allowed)
            if free:
                there = pose + SHARES[free - 1] * (there - pose)
                if self._free(begin, there, measured, allowed) == len(SHARES):
                    pose = there
        return pose

    def _free(self, begin: Array, target: Array, measured: Array, allowed: Array) -> int:
        """Return how many of SHARES of a move are allowed, counted from its start."""
        poses = begin + SHARES[:, None] * (target - begin)
        keeps = (self._excesses(poses, measured) <= allowed).all((1, 2))
        return len(SHARES) if keeps.all() else int(keeps.argmin())

    def _excesses(self, poses: Array, measured: Array) -> Array:
        """Return by how much poses [N, A] break the rules, alone and beside the other fingers' measured positions.

        [N, 1 + FINGERS, R], m.
        """
        looked_at = np.repeat(poses[:, None], 1 + FINGERS, 1)
        for finger in range(FINGERS):
            own = np.s_[3 * finger : 3 * finger + 3]
            looked_at[:, 1 + finger] = measured
            looked_at[:, 1 + finger, own] = poses[:, own]
        return self._kinematics.excesses(looked_at)
