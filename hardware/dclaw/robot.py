"""The D'Claw as a robot: the hand and its camera, in real time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r3l.config import UserError
from r3l.robot import (
    CameraSettings,
    CameraSpec,
    FloatArray,
    Observation,
    Punctuality,
    Robot,
    RobotError,
    RobotSpec,
    Schedule,
    Trouble,
    Vitals,
)
from r3l.task import Task

from ..camera.settings import settings_of_images
from .exit_handler import ExitHandler, signals_blocked
from .hand import Hand
from .rig import ClawRig, read_rig_for
from .vision import Vision

if TYPE_CHECKING:
    from ..camera.camera import Camera


class DClaw(Robot):
    """A three-finger hand on a Dynamixel bus.

    `connect` identifies the servos and leaves them without torque; the first `command` lets them hold their position
    and moves on from there. A joint that cannot be measured is NaN; faults are in `troubles`. SIGTERM ends the process
    with torque off, unless another handler is set.
    """

    def __init__(
        self, rig: ClawRig, camera: CameraSpec | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Take a rig and the size of the images; `sleep` waits for the schedule."""
        self.rig = rig
        self.hand = Hand(rig)
        joints = tuple(drive.joint for drive in rig.drives)
        self._spec = RobotSpec(joints, rig.control_hz, camera or CameraSpec())
        self._schedule = Schedule(1 / rig.control_hz, sleep=sleep)
        self._exit_handler = ExitHandler(self.close)
        self._vision = Vision(rig.camera, self._spec)
        self.identical_frames = self._vision.identical_frames
        self._is_connected = self._is_moving = False

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def camera(self) -> Camera:
        """The camera. RobotError if the hand has none."""
        if self._vision.camera is None:
            raise RobotError("the hand has no camera; set camera.source in its rig")
        return self._vision.camera

    @property
    def punctuality(self) -> Punctuality:
        return self._schedule.punctuality

    @property
    def vitals(self) -> Vitals | None:
        return self.hand.vitals

    @property
    def camera_settings(self) -> CameraSettings:
        return settings_of_images(self.rig.camera) if self.rig.camera.source else {}

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return (*self.hand.troubles, *self._vision.troubles)

    def connect(self) -> None:
        if self._is_connected:
            raise RobotError("the hand is already connected; close it first")
        self._exit_handler.arm()
        self._is_connected = True
        try:
            self._vision.open()
            self.hand.open()
        except BaseException:
            with contextlib.suppress(RobotError):  # the first error tells more
                self.close()
            raise

    def observe(self) -> Observation:
        self._require_connection()
        if self._is_moving:
            self._schedule.wait_to_observe()
            self._is_moving = False
        joint_rad = self.hand.measure().joint_rad.copy()
        return Observation(self._vision.see(joint_rad), joint_rad, time.monotonic(), np.zeros(0, np.float32))

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._require_connection()
        with np.errstate(all="ignore"):
            try:
                target = np.array(target_rad, np.float32)
            except (TypeError, ValueError) as error:
                raise RobotError(f"command refused: {target_rad!r:.80} is no pose ({error})") from error
        if target.shape != self._spec.lower_rad.shape or not np.isfinite(target).all():
            raise RobotError(f"command refused: {target}, expected {len(self._spec.joints)} finite values in rad")
        self._schedule.wait_to_command()
        sent = self.hand.send(target)
        self._schedule.written()
        self._is_moving = True
        self.hand.restore_failed()
        return sent

    def relax(self) -> None:
        self._schedule.forget()
        self._is_moving = False
        self.hand.relax()

    def close(self) -> None:
        self._schedule.forget()
        self._is_connected = self._is_moving = False
        with signals_blocked():
            try:
                self.hand.close()
            finally:
                self._vision.close()
                self._exit_handler.disarm()

    def relax_for(self) -> None:
        """Open the port and take torque off every servo that answers; the hand need not be complete."""
        bus, chain = self.hand.bus, self.hand.chain
        with bus:
            left = chain.relax()
        if left:
            names = ", ".join(chain.name(servo) for servo in left)
            raise RobotError(f"{names} did not confirm to have no torque; take the servos' power away")

    def _require_connection(self) -> None:
        if not self._is_connected:
            raise RobotError("the hand is not connected; call connect() first")


def from_task(task: Task, *, diagnostic: bool = False, rig: Path | None = None) -> DClaw:
    """Build the hand of a rig file for a task: the robot of `--robot dclaw --rig FILE`."""
    if rig is None:
        raise UserError("robot 'dclaw' needs its rig: --rig FILE; r3l calibrate writes one")
    return DClaw(read_rig_for(rig, task), task.rig.camera)
