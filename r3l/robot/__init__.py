"""Robots: their interface, and everything between a robot and a policy."""

from r3l.robot.base import (
    CameraSettings,
    CameraSpec,
    FloatArray,
    Image,
    Joint,
    Observation,
    Punctuality,
    Robot,
    RobotError,
    RobotSpec,
    SimulatedRobot,
    Trouble,
    Truth,
    Vitals,
    world_numbers,
)
from r3l.robot.pacing import Schedule
from r3l.robot.rig import JointRange, Rig, load_rig
from r3l.robot.wrapper import RobotWrapper

__all__ = [
    "CameraSettings",
    "CameraSpec",
    "FloatArray",
    "Image",
    "Joint",
    "JointRange",
    "Observation",
    "Punctuality",
    "Rig",
    "Robot",
    "RobotError",
    "RobotSpec",
    "RobotWrapper",
    "Schedule",
    "SimulatedRobot",
    "Trouble",
    "Truth",
    "Vitals",
    "load_rig",
    "world_numbers",
]
