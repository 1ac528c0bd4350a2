"""One fixed roll-out of each task on the twin: the same bytes from every simulator package that R3L accepts.

The simulator is pybullet on Python 3.11, and its fork pybullet-arm64 on Python 3.12 and 3.13.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from r3l.hardware.twin import Twin, from_task
from r3l.robot.safety import SafeRobot
from r3l.task.base import Task
from r3l.tasks.beads import Beads
from r3l.tasks.reposition import Reposition
from r3l.tasks.valve import Valve

PERIODS, HELD_PERIODS = 20, 3
TASKS: list[type[Task]] = [Beads, Reposition, Valve]
RECORDED = {
    "Beads": "e91659badc2d3bf0b1e33a8fe625db94fc0360d5340a70335b116875b9fd31c5",
    "Reposition": "1ed261fb7729f6bed109b9d42a538f2fd5797c84b74d50c9223185ba129c5e3e",
    "Valve": "fc67033a89e7ea6596665007e7e6d96aab365dbc8b54a13ed14cb43d65cb1ed0",
}
"""SHA-256 of each roll-out on pybullet 3.2.7, Python 3.11.7, x86-64 Linux."""


def roll_out(task: Task, twin: Twin) -> str:
    """Return the SHA-256 of all images, joint angles and object states while the fingers move at random."""
    rig, rng = task.rig, np.random.default_rng(0)
    robot = SafeRobot(twin, rig.limits, rig.max_step_rad)
    lower, upper = np.array([(joint.min_rad, joint.max_rad) for joint in rig.limits], np.float32).T
    digest = hashlib.sha256()
    for period in range(PERIODS):
        if period % HELD_PERIODS == 0:
            target_rad = rng.uniform(lower, upper).astype(np.float32)
        robot.command(target_rad)
        observation = robot.observe()
        digest.update(observation.image.tobytes())
        digest.update(observation.joint_rad.tobytes())
        digest.update(np.array(list(twin.truth().values()), np.float64).tobytes())
        digest.update(twin.save_world())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__.lower())
def test_a_rollout_gives_the_recorded_bytes(kind: type[Task]) -> None:
    task = kind()
    with from_task(task) as twin:
        assert roll_out(task, twin) == RECORDED[kind.__name__]
