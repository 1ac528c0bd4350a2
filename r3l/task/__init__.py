"""Tasks: their interface, and robots and tasks by name."""

from r3l.robot.rig import JointRange, Rig, load_rig
from r3l.task.base import CameraPose, Scene, Task, Values
from r3l.task.registry import load_robot, load_task, robot_names, task_names

__all__ = [
    "CameraPose",
    "JointRange",
    "Rig",
    "Scene",
    "Task",
    "Values",
    "load_rig",
    "load_robot",
    "load_task",
    "robot_names",
    "task_names",
]
