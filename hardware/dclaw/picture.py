"""A picture of the joints, in place of a camera's: what a hand without a camera shows of itself."""

from __future__ import annotations

import numpy as np

from r3l.robot import FloatArray, Image, RobotSpec

BACKGROUND, BAR = (40, 44, 52), (220, 160, 60)


def draw_joints(joint_rad: FloatArray, spec: RobotSpec) -> Image:
    """Draw a bar per joint, from the bottom where it is at its lower limit to the top at its upper one: [H, W, 3]."""
    height, width = spec.camera.height, spec.camera.width
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    share = (np.nan_to_num(joint_rad) - spec.lower_rad) / (spec.upper_rad - spec.lower_rad)
    edges = np.linspace(0, width, len(joint_rad) + 1).astype(int)
    for part, left, right in zip(np.clip(share, 0.02, 1.0), edges[:-1], edges[1:], strict=True):
        image[height - max(int(part * height), 1) :, left : max(right - 1, left + 1)] = BAR
    return image
