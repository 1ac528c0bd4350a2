"""Moves of a robot by script: home between episodes, and through the whole range to free an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from r3l.config.errors import UserError
from r3l.robot.base import FloatArray, Robot, SimulatedRobot
from r3l.robot.rig import Rig


class ScriptedMoves:
    """The scripted moves of one robot."""

    def __init__(
        self, robot: Robot, rig: Rig, homing_steps: int, *, is_interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Move `robot`, the outermost wrapper; a move ends early once `is_interrupted` returns True.

        `homing_steps` is the length of the move home in control periods.
        """
        self._robot, self._rig, self._homing_steps, self._is_interrupted = robot, rig, homing_steps, is_interrupted

    def home(self) -> None:
        """Move the joints home."""
        move(self._robot, self._rig.home_rad, self._homing_steps, self._is_interrupted)

    def sweep(self) -> None:
        """Move all joints through their whole range, to free an object that is stuck; then home."""
        lower, upper = self._robot.spec.lower_rad, self._robot.spec.upper_rad
        periods = int(np.ceil((upper - lower).max() / self._rig.max_step_rad))
        for pose in (lower, upper):
            move(self._robot, pose, periods, self._is_interrupted)
        self.home()

    def between(
        self, kind: Literal["home", "nothing", "diagnostic-reset"], place: Callable[[], None]
    ) -> Callable[[], None] | None:
        """Return the move for config key `phases.between`, None for nothing; `place` puts the object elsewhere.

        Raises:
            UserError: the object of a real robot cannot be placed.
        """
        if kind == "diagnostic-reset" and not isinstance(self._robot.unwrapped, SimulatedRobot):
            raise UserError(
                "phases.between 'diagnostic-reset' needs a simulated robot; set it to home, or use --robot twin"
            )
        return {"home": self.home, "nothing": None, "diagnostic-reset": place}[kind]


def move(
    robot: Robot, target_rad: FloatArray, periods: int, is_interrupted: Callable[[], bool] = lambda: False
) -> None:
    """Command one pose for a number of control periods, unless interrupted."""
    for _ in range(periods):
        if is_interrupted():
            return
        robot.command(target_rad)
        robot.observe()
