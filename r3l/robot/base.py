"""The interface that every robot implements, real or simulated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from r3l.config.errors import ReportedError
from r3l.config.schema import Action

FloatArray = NDArray[np.float32]
Image = NDArray[np.uint8]
Truth = dict[str, float]
"""Ground truth of a simulated scene by name; it contains `error`."""
CameraSettings = dict[str, tuple[float, ...]]
"""Settings of a camera by name; goal images and a run must have the same."""


class RobotError(ReportedError, RuntimeError):
    """A robot cannot do what was asked; the message says what failed, what was expected and the next step."""


@dataclass(frozen=True)
class Joint:
    """A position-controlled joint with its limits in rad."""

    name: str
    min_rad: float
    max_rad: float


@dataclass(frozen=True)
class CameraSpec:
    """Size in pixels of a robot's images."""

    width: int = 64
    height: int = 64


@dataclass(frozen=True)
class RobotSpec:
    """A robot's joints, in the order of every joint vector, its control rate and its camera."""

    joints: tuple[Joint, ...]
    control_hz: float
    camera: CameraSpec
    diagnostic: tuple[str, ...] = ()
    """Names of the ground-truth values in observations; empty except on diagnostic variants of the twin."""

    @property
    def lower_rad(self) -> FloatArray:
        """Lower joint limits: [A] float32, rad."""
        return np.array([joint.min_rad for joint in self.joints], np.float32)

    @property
    def upper_rad(self) -> FloatArray:
        """Upper joint limits: [A] float32, rad."""
        return np.array([joint.max_rad for joint in self.joints], np.float32)


@dataclass(frozen=True)
class Observation:
    """The camera image and the joint positions at the end of a control period."""

    image: Image
    """[H, W, 3] uint8 RGB."""
    joint_rad: FloatArray
    """[A] float32, rad: measured joint positions."""
    time_s: float
    """The robot's monotonic clock, s; simulated time on a twin."""
    diagnostic: FloatArray
    """[D] float32: ground truth; D = 0 except on a diagnostic twin."""


@dataclass(frozen=True)
class Trouble:
    """A fault of a robot or of an observation: a robot reports its own, the checks report the others."""

    name: str
    """The same for the same fault; the fault of a joint has the joint's name in it."""
    action: Action
    message: str
    """One line: the fault with its values, the limit, the next step."""


@dataclass
class Punctuality:
    """Counts of commands by how late they were written."""

    commands: int = 0
    on_time: int = 0
    """Commands at most 5 ms late."""
    overruns: int = 0
    """Commands later than a quarter of a control period."""
    worst_late_s: float = 0.0


@dataclass(frozen=True)
class Vitals:
    """Temperature, current and voltage of a robot's actuators."""

    hottest_c: float
    """Max temperature of an actuator."""
    current_a: float
    """Max current of an actuator."""
    voltage_v: float
    """Min voltage of an actuator."""


class Robot(ABC):
    """A robot with position-controlled joints and one camera.

    The constructor stores, `connect` does I/O, `with` connects and closes. `command` begins a control period, the next
    `observe` ends it.
    """

    identical_frames: Literal["never", "at rest", "often"] = "never"
    """When a working camera returns identical frames: never (noise), at rest or with no joint in sight, often."""

    @property
    @abstractmethod
    def spec(self) -> RobotSpec:
        """The robot's joints, control rate and camera; known before `connect`."""

    @property
    def unwrapped(self) -> Robot:
        """The robot below all wrappers; only this one can be a SimulatedRobot."""
        return self

    @property
    def camera_settings(self) -> CameraSettings:
        """The settings of the camera; known before `connect`, empty if there are none."""
        return {}

    @property
    def punctuality(self) -> Punctuality | None:
        """How late commands were by the wall clock; None if the robot does not measure it."""
        return None

    @property
    def vitals(self) -> Vitals | None:
        """The actuators at the newest observation; None if the robot does not measure them."""
        return None

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The robot's own faults at its newest observation.

        A fault may keep the robot from sending commands; `command` returns its target all the same.
        """
        return ()

    @abstractmethod
    def connect(self) -> None:
        """Open the devices. Raises RobotError when already connected or when a device does not answer."""

    @abstractmethod
    def observe(self) -> Observation:
        """Wait for the end of the current control period and return an observation.

        Without a command since the last call a simulated robot returns the same state; a real one measures again. A
        joint that could not be measured is NaN.
        """

    @abstractmethod
    def command(self, target_rad: FloatArray) -> FloatArray:
        """Begin a control period towards `target_rad` [A] (rad); return the target really sent, [A] float32."""

    @abstractmethod
    def relax(self) -> None:
        """Take torque off every joint until the next command. Safe to call at any time, and twice.

        Raises RobotError if a joint does not confirm it: then people must switch its power off.
        """

    @abstractmethod
    def close(self) -> None:
        """Relax and release the devices. Safe to call twice and without `connect`. Raises the same as `relax`."""

    def relax_for(self) -> None:
        """Relax the robot after the process that drove it has ended. Raises the same as `relax`."""
        with self:
            self.relax()

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SimulatedRobot(Robot):
    """A robot in a simulated world. What it adds to Robot is for evaluation, goal images, baselines and tests.

    Of these methods reset-free training calls only `save_world` and `restore_world`, with its checkpoints.
    """

    identical_frames = "at rest"

    on_period: Callable[[float, Truth], None] | None = None
    """Called by the robot with time and truth at the end of each control period; the truth recorder sets it."""

    @abstractmethod
    def place(self, state: FloatArray, rng: np.random.Generator | None = None) -> None:
        """Put the object at `state` [S] and the fingers home; with `rng` in a random pose that touches nothing."""

    @abstractmethod
    def truth(self) -> Truth:
        """Return ground truth."""

    def vary(self, level: str, seed: int) -> None:
        """Change the world at random times from now on, the same way for the same seed.

        `level` is a value of the config key `randomize`. Raises RobotError if the world cannot vary.
        """
        raise RobotError("this robot's world does not vary; --randomize needs --robot twin")

    def view(self, side: int) -> Image:
        """Return a square picture of the world for people, [side, side, 3]; it is never learned from."""
        image = self.observe().image
        rows, columns = (np.arange(side) * size // side for size in image.shape[:2])
        picture: Image = image[rows][:, columns]
        return picture

    @abstractmethod
    def save_world(self) -> bytes:
        """Return the state of the world."""

    @abstractmethod
    def restore_world(self, world: bytes) -> None:
        """Continue from the bytes of `save_world`; RobotError if they are not of the same task."""


def world_numbers(world: bytes, count: int) -> list[float]:
    """Return the float64 numbers of a saved world; RobotError unless there are `count` finite ones."""
    if len(world) != 8 * count:
        raise RobotError(f"the saved world has {len(world)} bytes, expected {8 * count}; it is not of this task")
    numbers = np.frombuffer(world, np.float64)
    if not np.isfinite(numbers).all():
        raise RobotError("the saved world has numbers that are not finite; it is damaged")
    found: list[float] = numbers.tolist()
    return found
