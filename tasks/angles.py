"""Angles on the circle."""

from __future__ import annotations

import math


def wrap(angle_rad: float) -> float:
    """Return the angle in (-pi, pi]."""
    return math.pi - (math.pi - angle_rad) % (2 * math.pi)
