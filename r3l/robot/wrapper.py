"""A robot around another robot."""

from __future__ import annotations

from r3l.robot.base import CameraSettings, FloatArray, Observation, Punctuality, Robot, RobotSpec, Trouble, Vitals


class RobotWrapper(Robot):
    """A robot around another robot. It forwards every member of Robot; a subclass overrides the members it changes."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self.identical_frames = robot.identical_frames

    @property
    def unwrapped(self) -> Robot:
        return self.robot.unwrapped

    @property
    def spec(self) -> RobotSpec:
        return self.robot.spec

    @property
    def camera_settings(self) -> CameraSettings:
        return self.robot.camera_settings

    @property
    def punctuality(self) -> Punctuality | None:
        return self.robot.punctuality

    @property
    def vitals(self) -> Vitals | None:
        return self.robot.vitals

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return self.robot.troubles

    def connect(self) -> None:
        self.robot.connect()

    def observe(self) -> Observation:
        return self.robot.observe()

    def command(self, target_rad: FloatArray) -> FloatArray:
        return self.robot.command(target_rad)

    def relax(self) -> None:
        self.robot.relax()

    def close(self) -> None:
        self.robot.close()

    def relax_for(self) -> None:
        self.robot.relax_for()
