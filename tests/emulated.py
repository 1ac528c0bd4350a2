"""A D'Claw on emulated servos: the driver sends its real bytes over a pseudo-terminal."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from r3l.hardware.dclaw.rig import IDS, ClawRig, default_rig
from r3l.hardware.dclaw.robot import DClaw
from r3l.hardware.dynamixel.emulator import Emulator
from r3l.hardware.dynamixel.servo import Servo
from r3l.robot.base import CameraSpec

REST_RAD = (0.1, -0.3, 0.2) * 3
"""Joint angles at the start."""
WATCHDOG_S = 2.5
"""Watchdog time that a busy machine alone does not exceed."""


class EmulatedClaw(DClaw):  # type: ignore[misc]
    """A D'Claw with its own emulated servos, which run until `end`."""

    def __init__(self, rig: ClawRig | None = None, control_hz: float = 20.0) -> None:
        folder = Path(tempfile.mkdtemp(prefix="claw-"))
        rig = rig or dataclasses.replace(default_rig(), control_hz=control_hz)
        bus = dataclasses.replace(rig.bus, port=str(folder / "port"), watchdog_s=WATCHDOG_S)
        rig = dataclasses.replace(rig, bus=bus)
        servos = [
            Servo(drive.id, rig.model, angle_rad=drive.servo_rad(angle))
            for drive, angle in zip(rig.drives, REST_RAD, strict=True)
        ]
        self.emulator = Emulator(servos, link=folder / "port")
        self.emulator.start()
        super().__init__(rig, CameraSpec(32, 32))

    @property
    def servos(self) -> dict[int, Servo]:
        return {servo: self.emulator.servos[servo] for servo in IDS}

    @property
    def angles(self) -> np.ndarray:
        """The true joint angles, rad."""
        return np.array([drive.joint_rad(self.servos[drive.id].angle_rad) for drive in self.rig.drives])

    @property
    def has_torque(self) -> set[bool]:
        return {servo.is_on for servo in self.servos.values()}

    def end(self) -> None:
        """Stop the emulated servos."""
        self.emulator.close()
