"""The bench: the fake's joints and dial in real time, servos that outlive processes, faults on demand.

It counts as a real robot: there is no ground truth, time goes on without commands, and torque stays on until a process
takes it off. The folder that the environment variable R3L_BENCH names holds its servos (`servos.log`: a line per
change, written before the call returns) and its faults (`faults.json`: fault names, read at every observation).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from r3l.robot import FloatArray, Image, Observation, Punctuality, Robot, RobotError, RobotSpec, Schedule
from r3l.task import Task

from .fake import Fake
from .fake import from_task as fake_from_task

FOLDER_VARIABLE, RATE_VARIABLE = "R3L_BENCH", "R3L_BENCH_HZ"
LATE_S = 1.0
"""Duration of an observation under the fault `late`."""
OBJECT_COLOUR = (200, 180, 60)
PUSHES_FROM_RAD = 0.3
"""Position of the first joint from which it touches the dial."""
NOISE_LEVELS = 4
"""Noise of the camera, grey levels."""
FAULTS = ("dark", "saturated", "frozen", "late", "nan", "far", "still", "moved", "stuck", "hang", "unplugged")


class Bench(Robot):
    """The fake robot behind servos and a camera that can fail."""

    def __init__(self, fake: Fake, folder: Path | None, control_hz: float) -> None:
        self._fake, self._folder = fake, folder
        fake.pushes_from_rad = PUSHES_FROM_RAD
        self._spec = RobotSpec(fake.spec.joints, control_hz, fake.spec.camera)
        self._schedule = Schedule(1 / control_hz)
        self._rng = np.random.default_rng(0)
        self._last: Observation | None = None
        self._is_connected = False

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def punctuality(self) -> Punctuality:
        return self._schedule.punctuality

    def connect(self) -> None:
        if "unplugged" in self._faults():
            raise RobotError("the bench does not answer: it is unplugged; plug it in")
        self._fake.connect()
        self._is_connected = True
        self._servo("connect")

    def observe(self) -> Observation:
        faults = self._faults()
        if "unplugged" in faults:
            raise RobotError("the bench does not answer: it is unplugged; plug it in")
        while "hang" in self._faults():
            time.sleep(0.05)
        self._schedule.wait_to_observe()
        self._fake.is_stuck = "stuck" in faults
        seen = self._fake.observe()
        joints = seen.joint_rad + self._rng.normal(0, 1e-4, seen.joint_rad.shape).astype(np.float32)
        fresh = Observation(self._seen(seen.image), joints, time.monotonic(), seen.diagnostic)
        self._last = shown = self._spoilt(fresh, faults)
        return shown

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._schedule.wait_to_command()
        sent = self._fake.command(target_rad)
        self._servo("torque-on", sent)
        self._schedule.written()
        return sent

    def relax(self) -> None:
        self._schedule.forget()
        self._fake.relax()
        self._servo("torque-off")

    def close(self) -> None:
        if self._is_connected:
            self.relax()
            self._fake.close()
            self._is_connected = False

    def take(self, dial_rad: float) -> Image:
        """Set the dial by hand and take a picture: for goal images."""
        self._fake.place(np.array([dial_rad], np.float32), self._rng)
        image: Image = self._fake.observe().image
        return self._seen(image)

    def _seen(self, image: Image) -> Image:
        """Return the camera's picture: a bright object on the dial, a striped frame around it, and noise."""
        image = self._with_object(image)
        seen: Image = image + self._rng.integers(0, NOISE_LEVELS, image.shape, np.uint8)
        edge = len(seen) // 8
        stripes = (np.indices(seen.shape[:2]).sum(0) // 4 % 2 * 60).astype(np.uint8)[:, :, None]
        for part in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            seen[part] = np.maximum(seen[part], 60) + stripes[part]
        return seen

    def _with_object(self, image: Image) -> Image:
        """Draw a bright square at the end of the dial's pointer."""
        side, turn = len(image), self._fake.truth()["angle_rad"]
        down, right = (int(side * (0.5 + 0.25 * part)) for part in (-np.sin(turn), np.cos(turn)))
        half = side // 12
        image = image.copy()
        image[down - half : down + half, right - half : right + half] = OBJECT_COLOUR
        return image

    def _spoilt(self, fresh: Observation, faults: set[str]) -> Observation:
        image, joints, time_s = fresh.image, fresh.joint_rad.copy(), fresh.time_s
        if "dark" in faults:
            image = image // 64
        if "saturated" in faults:
            image = np.full_like(image, 255)
        if "moved" in faults:
            image = np.roll(image, 6, axis=1)
        if "frozen" in faults and self._last is not None:
            image = self._last.image
        if "still" in faults and self._last is not None:
            joints = self._last.joint_rad
        if "nan" in faults:
            joints[0] = np.nan
        if "far" in faults:
            joints[0] = 40.0
        if "late" in faults:
            time.sleep(LATE_S)
            time_s = time.monotonic()
        return Observation(image, joints, time_s, fresh.diagnostic)

    def _faults(self) -> set[str]:
        if self._folder is None:
            return set()
        try:
            return set(json.loads((self._folder / "faults.json").read_text()))
        except (OSError, ValueError):
            return set()

    def _servo(self, event: str, target_rad: FloatArray | None = None) -> None:
        """Log a change of the servos in one write, as a bus would carry it."""
        if self._folder is None:
            return
        target = None if target_rad is None else [round(float(value), 4) for value in target_rad]
        line = json.dumps({"time_s": time.monotonic(), "pid": os.getpid(), "event": event, "target_rad": target})
        with (self._folder / "servos.log").open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")


def from_task(task: Task, *, diagnostic: bool = False) -> Bench:
    """Build the bench with a task's joints and camera: the robot of `--robot bench`."""
    folder = os.environ.get(FOLDER_VARIABLE)
    rate = float(os.environ.get(RATE_VARIABLE, task.rig.control_hz))
    return Bench(fake_from_task(task), Path(folder) if folder else None, rate)
