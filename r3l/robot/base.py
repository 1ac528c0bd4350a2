"""The one interface that every robot implements: the real rig, the PyBullet twin and the fake."""

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
"""Ground truth of a simulated scene by name; `error` is among them."""


CameraSettings = dict[str, tuple[float, ...]]
"""What a camera is set to, by name; what goal images and a run must have in common."""


class RobotError(ReportedError, RuntimeError):
    """A robot cannot do what was asked; the message says what, what was expected and the next step."""


@dataclass(frozen=True)
class Joint:
    """A position-controlled joint with its limits in rad."""

    name: str
    min_rad: float
    max_rad: float


@dataclass(frozen=True)
class CameraSpec:
    """Size in pixels of the images a robot returns."""

    width: int = 64
    height: int = 64


@dataclass(frozen=True)
class RobotSpec:
    """What a robot is: its joints in the order of every joint vector, its control rate, its camera."""

    joints: tuple[Joint, ...]
    control_hz: float
    camera: CameraSpec
    diagnostic: tuple[str, ...] = ()
    """Names of ground-truth values that observations carry: empty but on diagnostic variants of the twin."""

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
    """What a robot sees and feels at the end of a control period."""

    image: Image
    """[H, W, 3] uint8 RGB."""
    joint_rad: FloatArray
    """[A] float32, rad: measured joint positions."""
    time_s: float
    """The robot's monotonic clock; simulated seconds on a twin."""
    diagnostic: FloatArray
    """[D] float32: ground truth, and empty (D = 0) on everything but a diagnostic twin."""


@dataclass(frozen=True)
class Trouble:
    """What a robot finds wrong with itself."""

    name: str
    """The same trouble has the same name, a joint's with the joint's."""
    action: Action
    message: str
    """One line: what was found, with its values, and the next step."""


@dataclass
class Punctuality:
    """How commands kept their time."""

    commands: int = 0
    on_time: int = 0
    """Written within 5 ms of their time."""
    overruns: int = 0
    """Later than a quarter of a control period."""
    worst_late_s: float = 0.0


@dataclass(frozen=True)
class Vitals:
    """How a robot's actuators feel."""

    hottest_c: float
    """Temperature of the warmest one."""
    current_a: float
    """Of the one that draws most."""
    voltage_v: float
    """Of the one that has least."""


class Robot(ABC):
    """A robot with position-controlled joints and one camera.

    A constructor stores, `connect` does I/O, `with` connects and closes. `command` begins a control period,
    the next `observe` ends it.
    """

    identical_frames: Literal["never", "at rest", "often"] = "never"
    """When a working camera gives identical frames: never, since each has its noise; at rest or out of sight; often."""

    @property
    @abstractmethod
    def spec(self) -> RobotSpec:
        """What this robot is; known before `connect`."""

    @property
    def unwrapped(self) -> Robot:
        """The innermost robot below all wrappers; the one to ask whether it is a SimulatedRobot."""
        return self

    @property
    def camera_settings(self) -> CameraSettings:
        """What its camera is set to; known before `connect`, and empty where there is nothing to set."""
        return {}

    @property
    def punctuality(self) -> Punctuality | None:
        """How its commands keep the time of the clock on the wall; None where nobody looks."""
        return None

    @property
    def vitals(self) -> Vitals | None:
        """How its actuators felt at the newest observation; None where nobody knows."""
        return None

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What the robot found wrong with itself by its newest observation. It sends no command while one forbids it.

        Such a command returns where the joints are to be, as any; who drives a robot looks here.
        """
        return ()

    @abstractmethod
    def connect(self) -> None:
        """Open the devices. Raises RobotError when already connected or when a device does not answer."""

    @abstractmethod
    def observe(self) -> Observation:
        """Wait for the end of the current control period and return what is seen then.

        Without a command since the last call a simulated robot returns the same state; a real one measures again. A
        joint that could not be measured is NaN.
        """

    @abstractmethod
    def command(self, target_rad: FloatArray) -> FloatArray:
        """Begin a control period towards `target_rad` [A] (rad); return the target really sent, [A] float32."""

    @abstractmethod
    def relax(self) -> None:
        """Take torque off every joint; the next command puts it on again. Safe to call at any time, twice too.

        Raises RobotError where a joint did not confirm it: people must take its power away.
        """

    @abstractmethod
    def close(self) -> None:
        """Relax and release the devices. Safe to call twice and without `connect`. Raises what `relax` does."""

    def relax_for(self) -> None:
        """Relax in place of a process that is gone, from one that drives nothing. Raises what `relax` does."""
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
    """A robot in a simulated world. What it can do beyond a robot is for evaluation, goals, baselines and tests alone.

    Reset-free training calls nothing of it but `save_world` and `restore_world`, with its checkpoints.
    """

    identical_frames = "at rest"

    on_period: Callable[[float, Truth], None] | None = None
    """Called by the robot itself at the end of each control period: how the truth recorder listens."""

    @abstractmethod
    def place(self, state: FloatArray, rng: np.random.Generator | None = None) -> None:
        """Put the object at `state` [S], the fingers at home or with `rng` in a random pose that touches nothing."""

    @abstractmethod
    def truth(self) -> Truth:
        """Return ground truth: for evaluation and tests alone."""

    def vary(self, level: str, seed: int) -> None:
        """Let the world be another one now and then, the same for the same seed: r3l.hardware.variation has the levels.

        Raises RobotError where it can be only as it is.
        """
        raise RobotError("this robot's world does not vary; --randomize needs --robot twin")

    def view(self, side: int) -> Image:
        """Return a square picture of the world for people, [side, side, 3]; nothing that learns ever sees it."""
        image = self.observe().image
        rows, columns = (np.arange(side) * size // side for size in image.shape[:2])
        picture: Image = image[rows][:, columns]
        return picture

    @abstractmethod
    def save_world(self) -> bytes:
        """Return the state of the world."""

    @abstractmethod
    def restore_world(self, world: bytes) -> None:
        """Continue from `save_world`'s bytes of a robot of the same task; RobotError where they are not."""


def world_numbers(world: bytes, count: int) -> list[float]:
    """Return a saved world's float64 numbers; RobotError where it has not `count` finite ones."""
    if len(world) != 8 * count:
        raise RobotError(f"the saved world has {len(world)} bytes, expected {8 * count}; it is not of this task")
    numbers = np.frombuffer(world, np.float64)
    if not np.isfinite(numbers).all():
        raise RobotError("the saved world has numbers that are not finite; it is damaged")
    found: list[float] = numbers.tolist()
    return found
