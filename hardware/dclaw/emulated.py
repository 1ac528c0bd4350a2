"""The emulated stack: the hand's driver and camera on emulated servos whose fingers are the twin's.

The driver's bytes go over a pseudo-terminal, the pictures over HTTP; PyBullet moves the fingers and draws the pictures.
Time is the world's: a control period passes in `observe`, as fast as this machine can, or in real time with
`--real-time`.

The environment variable R3L_STACK_FAULTS orders faults, for example {"corrupt": 0.01, "camera_lost_every": 36000}: the
share of packets with a flipped bit, and the number of observations between two short losses of the camera.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from r3l.config import UserError, from_dict
from r3l.robot import (
    CameraSpec,
    FloatArray,
    Image,
    Observation,
    RobotError,
    RobotSpec,
    SimulatedRobot,
    Trouble,
    Truth,
    Vitals,
)
from r3l.task import Task

from ..camera.server import CameraServer
from ..dynamixel.emulator import Emulator
from ..dynamixel.servo import Servo
from ..twin import SUBSTEPS_PER_S, Twin
from ..twin import from_task as twin_from_task
from .rig import ClawRig, default_rig, read_rig_for
from .robot import DClaw

FPS = 200.0
"""A picture is served as soon as it exists; an old one is served again after REPEAT_S."""
REPEAT_S = 0.1
FRAME_S, MAX_AGE_S = 2.0, 1.5
"""Max delay of a new picture through server and camera; a picture older than this counts as lost."""
IDLE_SPEED_RAD_S = 8.0
FAULTS_VARIABLE = "R3L_STACK_FAULTS"
LOST_FOR = 5
"""Observations for which the camera is lost."""


@dataclass(frozen=True)
class StackFaults:
    """Faults of wire and camera."""

    corrupt: float = 0.0
    """Share of packets with a flipped bit."""
    camera_lost_every: int = 0
    """Observations between two losses of the camera; 0 for none."""

    @classmethod
    def ordered(cls) -> StackFaults:
        """Return the faults of the environment variable; UserError if it cannot be read."""
        text = os.environ.get(FAULTS_VARIABLE, "{}")
        try:
            return from_dict(cls, json.loads(text))
        except (ValueError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{FAULTS_VARIABLE} is {text!r:.80}, expected JSON with {cls.__name__}'s keys") from error


class Shutter:
    """The newest picture of the world, for which the camera's server waits."""

    def __init__(self) -> None:
        self._picture: Image = np.zeros((1, 1, 3), np.uint8)
        self._number = self._served = 0
        self._condition = threading.Condition()

    def show(self, picture: Image) -> None:
        """Publish a new picture."""
        with self._condition:
            self._picture, self._number = picture, self._number + 1
            self._condition.notify_all()

    def wait(self) -> Image:
        """Return a picture that was not served yet, or the last one again after a while."""
        with self._condition:
            self._condition.wait_for(lambda: self._number != self._served, REPEAT_S)
            self._served = self._number
            return self._picture


class EmulatedClaw(SimulatedRobot):
    """The twin's world behind the real driver. Abilities of a simulator alone go directly to the twin."""

    identical_frames = "at rest"

    def __init__(self, twin: Twin, rig: ClawRig, camera: CameraSpec, faults: StackFaults | None = None) -> None:
        """Put `rig`'s servos and camera in front of a twin; port and source are created here."""
        self.twin, self._camera = twin, camera
        self._faults = faults or StackFaults()
        self._looks = 0
        self._rig = rig
        self._spec = RobotSpec(tuple(drive.joint for drive in rig.drives), rig.control_hz, camera)
        self.emulator: Emulator | None = None
        self.server: CameraServer | None = None
        self._claw: DClaw | None = None
        self._shutter = Shutter()
        self._folder: Path | None = None
        self._is_pending = False
        twin.on_period = self._period

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return self._claw.troubles if self._claw else ()

    @property
    def vitals(self) -> Vitals | None:
        return self._claw.vitals if self._claw else None

    @property
    def claw(self) -> DClaw:
        """The driver."""
        if self._claw is None:
            raise RobotError("the emulated hand is not connected; call connect() first")
        return self._claw

    def connect(self) -> None:
        if self._claw is not None:
            raise RobotError("the emulated hand is already connected; close it first")
        self.twin.connect()
        self._folder = Path(tempfile.mkdtemp(prefix="r3l-claw-"))
        self.emulator = Emulator(self._servos(), link=self._folder / "port")
        self.emulator.advances = False
        self.emulator.faults.corrupt = self._faults.corrupt
        self.server = CameraServer(self._shutter.wait, FPS)
        self._shutter.show(self.twin.camera_image())
        self.emulator.start()
        self.server.start()
        height, width = self.twin.camera_image().shape[:2]
        rig = replace(
            self._rig,
            bus=replace(self._rig.bus, port=str(self._folder / "port")),
            camera=replace(
                self._rig.camera, source=self.server.address, width=width, height=height, crop=(), max_age_s=MAX_AGE_S
            ),
        )
        self._claw = DClaw(rig, self._camera, sleep=lambda duration_s: None)
        try:
            self._claw.connect()
        except BaseException:
            self.close()
            raise

    def _servos(self) -> list[Servo]:
        """Return servos at the positions of the twin's joints."""
        servos = []
        for joint, drive in enumerate(self._rig.drives):
            servo = Servo(drive.id, self._rig.model)
            servo.moved_by = self._mover(joint, drive.servo_rad, drive.sign)
            servo.advance(0.0)
            servos.append(servo)
        return servos

    def _mover(self, joint: int, servo_rad: Callable[[float], float], sign: int) -> Callable[[], tuple[float, float]]:
        def place() -> tuple[float, float]:
            angle, speed, _ = self.twin.joint_states()[joint]
            return servo_rad(angle), sign * speed

        return place

    def observe(self) -> Observation:
        claw = self.claw
        if self._is_pending:
            self._advance()
            self._is_pending = False
        self._lose_camera()
        self._show()
        seen = claw.observe()
        return Observation(seen.image, seen.joint_rad, self.twin.time_s, seen.diagnostic)

    def command(self, target_rad: FloatArray) -> FloatArray:
        sent = self.claw.command(target_rad)
        self._is_pending = True
        return sent

    def relax(self) -> None:
        if self._claw is not None:
            self._claw.relax()

    def close(self) -> None:
        claw, self._claw = self._claw, None
        try:
            if claw is not None:
                claw.close()
        finally:
            for part in (self.emulator, self.server):
                if part is not None:
                    part.close()
            self.twin.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self.emulator = self.server = self._folder = None
            self._is_pending = False

    def place(self, state: FloatArray, rng: np.random.Generator | None = None) -> None:
        self.claw.relax()
        self.twin.place(state, rng)
        self._is_pending = False
        self._settle()

    def truth(self) -> Truth:
        return self.twin.truth()

    def view(self, side: int) -> Image:
        return self.twin.view(side)

    def save_world(self) -> bytes:
        return self.twin.save_world()

    def restore_world(self, world: bytes) -> None:
        self.claw.relax()
        self.twin.restore_world(world)
        self._is_pending = False
        self._settle()

    # The world

    def _advance(self) -> None:
        """Simulate a control period: the servos' registers drive the twin's joints."""
        assert self.emulator is not None
        substeps = round(SUBSTEPS_PER_S / self._rig.control_hz)
        with self.emulator.lock:
            for _ in range(substeps):
                self._drive()
                self.twin.substep()
            self._settle()
        self.twin.end_period(1 / self._rig.control_hz)

    def _drive(self) -> None:
        assert self.emulator is not None
        for joint, drive in enumerate(self._rig.drives):
            servo = self.emulator.servos[drive.id]
            if servo.is_powered and servo.is_on:
                torque_nm = servo.mechanics.torque_per_a * abs(servo.value("goal_current"))
                speed_rad_s = servo.value("profile_velocity") or IDLE_SPEED_RAD_S
                self.twin.turn(joint, drive.joint_rad(servo.value("goal_position")), torque_nm, speed_rad_s)
            else:
                self.twin.turn(joint, 0.0, 0.0, IDLE_SPEED_RAD_S)

    def _settle(self) -> None:
        """Give the servos their joints' positions, and the heat of a control period."""
        assert self.emulator is not None
        states = self.twin.joint_states()
        with self.emulator.lock:
            for joint, drive in enumerate(self._rig.drives):
                servo = self.emulator.servos[drive.id]
                servo.current_a = drive.sign * states[joint][2] / servo.mechanics.torque_per_a if servo.is_on else 0.0
                servo.hear()
                servo.advance(1 / self._rig.control_hz)

    def _lose_camera(self) -> None:
        every = self._faults.camera_lost_every
        if every:
            assert self.server is not None
            self._looks += 1
            self.server.faults.refuses = self._looks > every and self._looks % every < LOST_FOR

    def _show(self) -> None:
        """Show the world to the camera, and wait until the picture has arrived."""
        camera = self.claw.camera
        since_s = time.monotonic()
        self._shutter.show(self.twin.camera_image())
        while True:
            frame = camera.newest()
            if (frame is not None and frame.time_s >= since_s) or time.monotonic() - since_s > FRAME_S:
                return
            time.sleep(0.0005)

    def _period(self, time_s: float, truth: Truth) -> None:
        if self.on_period is not None:
            self.on_period(time_s, truth)


def from_task(task: Task, *, diagnostic: bool = False, rig: Path | None = None) -> EmulatedClaw:
    """Build the stack for a task: the robot of `--robot dclaw-emulated`. A rig file sets its limits and calibration."""
    if diagnostic:
        raise UserError("robot 'dclaw-emulated' has no diagnostic variants; use --robot twin")
    found = read_rig_for(rig, task) if rig else replace(default_rig(), control_hz=task.rig.control_hz)
    return EmulatedClaw(twin_from_task(task), found, task.rig.camera, StackFaults.ordered())
