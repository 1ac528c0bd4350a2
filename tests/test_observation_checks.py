"""What each check finds in bad observations, and that ordinary running shows it nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from r3l.cli.goal_collection import collect_on_twin
from r3l.config.schema import Action, Check, ChecksConfig
from r3l.robot.base import FloatArray, Image, Joint, Observation, SimulatedRobot, Trouble
from r3l.robot.camera_place import RECENT, STRIDE
from r3l.robot.env import RobotEnv
from r3l.robot.observation_checks import CHECKS, ObservationChecks
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import move
from r3l.task.base import Task
from r3l.task.registry import load_robot, load_task

TASKS = ("valve", "beads", "reposition")
HZ, PERIOD_S = 10.0, 0.1
JOINTS = tuple(Joint(name, -1.0, 1.0) for name in ("swing", "curl", "tip"))
ENOUGH = RECENT * STRIDE
"""Looks until the camera's place can be told."""
RNG = np.random.default_rng(0)
SCENE = np.kron(RNG.integers(40, 200, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
"""A background with edges everywhere."""

Reading = tuple[Observation, FloatArray | None, float]


def seen(image: Image, joint_rad: NDArray[np.floating[Any]] | None = None) -> Observation:
    joints = RNG.uniform(-1, 1, 3) if joint_rad is None else joint_rad
    return Observation(image, joints.astype(np.float32), 0.0, np.zeros(0, np.float32))


def noisy(image: Image = SCENE) -> Image:
    shown: Image = (image + RNG.integers(0, 4, image.shape)).astype(np.uint8)
    return shown


def good() -> Reading:
    return seen(noisy()), np.zeros(3, np.float32), PERIOD_S


GOALS = np.stack([noisy() for _ in range(20)])


def checks_of(config: ChecksConfig | None = None, *, is_simulated: bool = False) -> ObservationChecks:
    return ObservationChecks(
        config or ChecksConfig(), JOINTS, HZ, GOALS, identical_frames="at rest" if is_simulated else "never"
    )


def last(checks: ObservationChecks, readings: list[Reading]) -> Trouble | None:
    """Return the trouble of the last reading; all readings before it pass."""
    for reading in readings[:-1]:
        assert checks.check(*reading) is None
    return checks.check(*readings[-1])


def bad(name: str) -> list[Reading]:
    """Return readings of which the last fails the check `name` with the default config."""
    resting, away = np.zeros(3, np.float32), np.full(3, 0.9, np.float32)
    image = noisy()
    readings: dict[str, list[Reading]] = {
        "dark": [(seen(noisy() // 32), None, PERIOD_S)],
        "saturated": [(seen(np.full_like(SCENE, 255)), None, PERIOD_S)],
        "frozen": [(seen(image), None, PERIOD_S)] * 5,
        "late": [(seen(noisy()), None, 4 * PERIOD_S)],
        "joint_impossible": [(seen(noisy(), np.full(3, 1.6)), None, PERIOD_S)],
        "joint_frozen": [(seen(noisy(), resting), away, PERIOD_S) for _ in range(10)],
        "moved": [(seen(noisy(np.roll(SCENE, 2, 1))), None, PERIOD_S) for _ in range(ENOUGH)],
    }
    return readings[name]


@pytest.mark.parametrize("name", ChecksConfig.__dataclass_fields__)
@pytest.mark.parametrize("action", get_args(Action))
def test_every_check_finds_what_it_is_for_and_answers_as_configured(name: str, action: Action) -> None:
    config = ChecksConfig()
    check: Check = getattr(config, name)
    checks = checks_of(replace(config, **{name: replace(check, action=action)}))
    trouble = last(checks, [good(), *bad(name)] if name != "moved" else bad(name))
    assert trouble is not None
    assert (trouble.name, trouble.action) == (name, action)
    assert f"checks.{name}.threshold {check.threshold:g}" in trouble.message
    assert f"checks.{name}.action" in trouble.message
    assert "\n" not in trouble.message
    assert checks.counts == dict.fromkeys(CHECKS, 0) | {name: 1}


def test_the_gravest_of_several_findings_is_returned_and_all_are_counted() -> None:
    joints = np.full(3, np.nan)
    config = replace(ChecksConfig(), joint_impossible=Check(0.5, "stop"), dark=Check(12.0, "warn"))
    checks = checks_of(config)
    trouble = checks.check(seen(noisy() // 32, joints), None, 9 * PERIOD_S)
    assert trouble is not None
    assert trouble.name == "joint_impossible"
    assert checks.counts["dark"] == checks.counts["late"] == 1
    checks = checks_of(replace(config, joint_impossible=Check(0.5, "skip"), dark=Check(12.0, "pause")))
    trouble = checks.check(seen(noisy() // 32, joints), None, 9 * PERIOD_S)
    assert trouble is not None
    assert trouble.action == "pause"


@pytest.mark.parametrize("joints", [[0, np.nan, 0], [np.inf, 0, 0], [0, 0], [0, 0, -1.51], [40, 0, 0]])
def test_joints_that_cannot_be_are_found(joints: list[float]) -> None:
    trouble = checks_of().check(seen(noisy(), np.array(joints)), None, PERIOD_S)
    assert trouble is not None
    assert trouble.name == "joint_impossible"
    assert "\n" not in trouble.message


def test_a_joint_pushed_a_little_beyond_its_limit_is_believed() -> None:
    assert checks_of().check(seen(noisy(), np.array([1.4, 0, -1.4])), None, PERIOD_S) is None


def test_goal_images_say_how_dark_and_how_bright_pictures_may_be() -> None:
    for level in (6, 255):
        goals = np.full((4, 64, 64, 3), level, np.uint8)
        checks = ObservationChecks(ChecksConfig(), JOINTS, HZ, goals, identical_frames="at rest")
        assert checks.check(seen(goals[0]), None, PERIOD_S) is None


def test_a_frozen_camera_stays_frozen_until_it_shows_something_new() -> None:
    checks = checks_of()
    readings = bad("frozen")
    last(checks, readings)
    for _ in range(20):
        trouble = checks.check(*readings[-1])
        assert trouble is not None
        assert trouble.name == "frozen"
    assert checks.check(*good()) is None


@pytest.mark.parametrize("level", [0, 255])
def test_frames_that_are_all_black_or_all_white_are_not_called_frozen(level: int) -> None:
    config = ChecksConfig(dark=Check(12.0, "warn"), saturated=Check(0.5, "warn"))
    checks = checks_of(config)
    for _ in range(50):
        trouble = checks.check(seen(np.full_like(SCENE, level)), None, PERIOD_S)
        assert trouble is not None
        assert trouble.action == "warn"
    assert checks.counts["frozen"] == 0
    assert last(checks, [good(), *bad("frozen")]) is not None


def test_a_simulated_camera_is_frozen_only_when_every_joint_roamed_and_not_while_the_robot_rests() -> None:
    image = noisy()
    checks = checks_of(is_simulated=True)
    for step in range(100):
        joints = np.array([0.9 * np.sin(step), 0.9 * np.cos(step), 0.4 * np.sin(step)])
        assert checks.check(seen(image, joints), None, PERIOD_S) is None, "fingers may be out of sight"
    away = np.full(3, -0.7)
    for identical in (101, 102):
        trouble = checks.check(seen(image, away), None, PERIOD_S)
        assert trouble is not None
        assert trouble.message.startswith(f"{identical} identical frames in a row")
    checks.rest()
    assert checks.check(seen(image, away), None, PERIOD_S) is None
    assert checks.check(seen(image, np.full(3, 0.7)), None, PERIOD_S) is not None


def test_fingers_out_of_the_twins_sight_are_no_frozen_camera() -> None:
    """As it happened: the valve rests, all fingers move beside the picture."""
    limits = load_task("valve").rig.limits
    checks = ObservationChecks(ChecksConfig(), limits, HZ, GOALS, identical_frames="at rest")
    lower, upper = (np.array([getattr(joint, end) for joint in limits]) for end in ("min_rad", "max_rad"))
    path = """
        0.84 -0.72 0.39 0.29 -0.79 -0.84 0.93 -0.76 -0.85   0.86 -0.41 0.12 0.18 -0.78 -0.80 0.82 -0.85 -0.92
        0.95 -0.52 0.32 0.13 -0.83 -0.90 0.52 -0.68 -0.91   0.98 -0.59 0.17 -0.27 -0.75 -0.95 0.91 -0.36 -0.97
        0.95 -0.50 0.45 -0.12 -0.90 -0.90 0.94 -0.56 -0.99  0.95 -0.50 0.30 -0.12 -0.70 -0.70 0.70 -0.56 -0.80
    """
    image = noisy()
    for pose in np.array(path.split(), np.float32).reshape(-1, 9):
        assert checks.check(seen(image, lower + (pose + 1) / 2 * (upper - lower)), None, PERIOD_S) is None


def test_a_robot_at_rest_where_it_was_sent_has_no_frozen_joints() -> None:
    checks, joints = checks_of(), np.zeros(3)
    for target in (np.full(3, 0.1, np.float32), None, np.array([0, 0, 0.9], np.float32)):
        for _ in range(50):
            assert checks.check(seen(noisy(), joints), target, PERIOD_S) is None


def swaying(step: int) -> FloatArray:
    return np.full(3, 0.9 if step // 10 % 2 else -0.9, np.float32)


def test_one_joint_whose_reading_never_changes_is_found() -> None:
    checks, found = checks_of(), None
    for step in range(60):
        joints = np.append(RNG.uniform(-0.5, 0.5, 2), 0.1)
        found = found or checks.check(seen(noisy(), joints), swaying(step), PERIOD_S)
    assert found is not None
    assert found.name == "joint_frozen"
    assert "'tip'" in found.message


def test_a_joint_that_is_held_on_one_side_is_not_frozen() -> None:
    checks = checks_of()
    for step in range(100):
        sent = swaying(step)
        joints = np.append(RNG.uniform(-0.5, 0.5, 2), 0.1 if sent[2] > 0 else RNG.uniform(-0.9, 0))
        assert checks.check(seen(noisy(), joints), sent, PERIOD_S) is None


def test_frozen_joints_stay_so_while_paused_and_pass_with_a_new_reading() -> None:
    checks = checks_of()
    last(checks, bad("joint_frozen"))
    trouble = checks.check(seen(noisy(), np.zeros(3)), None, PERIOD_S)
    assert trouble is not None
    assert trouble.name == "joint_frozen"
    assert checks.check(seen(noisy(), np.full(3, 1e-3)), None, PERIOD_S) is None


def test_a_camera_put_back_is_believed_after_some_readings_and_not_before() -> None:
    checks = checks_of()
    last(checks, bad("moved"))
    away = [(seen(noisy(np.roll(SCENE, 2, 1))), None, PERIOD_S) for _ in range(RECENT)]
    back = [good() for _ in range(RECENT)]
    assert all(checks.check(*reading) is not None for reading in away)
    results = [checks.check(*reading) is None for reading in back]
    assert not any(results[: RECENT // 3])
    assert all(results[2 * RECENT // 3 :])


@pytest.mark.parametrize("goals", [RNG.integers(0, 255, (20, 64, 64, 3)), np.full((20, 64, 64, 3), 90)])
def test_goals_without_anything_constant_tell_nothing_about_the_camera(goals: NDArray[np.int64]) -> None:
    checks = ObservationChecks(ChecksConfig(), JOINTS, HZ, goals.astype(np.uint8))
    for _ in range(ENOUGH + STRIDE):
        assert checks.check(*good()) is None


def test_a_look_takes_well_under_a_millisecond() -> None:
    checks = checks_of()
    readings = [good() for _ in range(2 * ENOUGH)]
    began_s = time.process_time()
    for reading in readings:
        checks.check(*reading)
    assert (time.process_time() - began_s) / len(readings) < 1e-3


# Ordinary running


@dataclass(frozen=True)
class Rollout:
    """What a robot saw while it ran as it does in training, and where it was sent."""

    task: str
    goals: NDArray[np.uint8]
    joints: tuple[Joint, ...]
    readings: list[Reading]

    def trouble(self, change: str = "") -> Trouble | None:
        """Return the first trouble where every image is changed in one way."""
        checks = ObservationChecks(ChecksConfig(), self.joints, HZ, self.goals, identical_frames="at rest")
        for observation, target, elapsed_s in self.readings:
            found = checks.check(replace(observation, image=CHANGES[change](observation.image)), target, elapsed_s)
            if found is not None:
                return found
        return None


CHANGES = {
    "": lambda image: image,
    "darker": lambda image: (image * 0.8).astype(np.uint8),
    "brighter": lambda image: np.minimum(image * 1.2, 255).astype(np.uint8),
    "less contrast": lambda image: (30 + 0.75 * image).astype(np.uint8),
    "down": lambda image: np.roll(image, 2, 0),
    "up": lambda image: np.roll(image, -3, 0),
    "right": lambda image: np.roll(image, 2, 1),
    "left": lambda image: np.roll(image, -3, 1),
    "far": lambda image: np.roll(image, (12, 9), (0, 1)),
}


def goals_of(task: Task, robot: SimulatedRobot, name: str) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    if name == "twin":
        return np.stack(collect_on_twin(task, robot, task.minimum_goals, rng))
    images = []
    for state in task.goal_states(task.minimum_goals, rng):
        robot.place(state)
        images.append(robot.observe().image)
    return np.stack(images)


def roll(task_name: str, robot_name: str, actions: Iterator[FloatArray], steps: int) -> Rollout:
    """Run `steps` env steps with homing moves in between."""
    task = load_task(task_name)
    robot = load_robot(robot_name, task)
    assert isinstance(robot, SimulatedRobot)
    safe = make_safe(robot, task.rig)
    env = RobotEnv(safe)
    readings: list[Reading] = []
    try:
        env.reset()
        goals = goals_of(task, robot, robot_name)
        safe.place(task.random_states(1, np.random.default_rng(1))[0])
        for step in range(steps):
            if step % 50 == 0:
                move(safe, task.rig.home_rad, 8)
            readings.append((env.act(next(actions)).observation, safe.newest_target, PERIOD_S))
        return Rollout(task_name, goals, safe.spec.joints, readings)
    finally:
        env.close()


def held(scale: float = 1.0, seed: int = 0) -> Iterator[FloatArray]:
    """Yield random actions, each held for three steps, as exploration does."""
    rng = np.random.default_rng(seed)
    while True:
        action = (scale * rng.uniform(-1, 1, 9)).astype(np.float32)
        yield from (action, action, action)


@pytest.fixture(scope="module", params=TASKS)
def rollout(request: pytest.FixtureRequest) -> Rollout:
    return roll(request.param, "twin", held(), ENOUGH + 3 * STRIDE)


@pytest.mark.parametrize("change", ["", "darker", "brighter", "less contrast"])
def test_ordinary_running_of_the_twin_raises_nothing(rollout: Rollout, change: str) -> None:
    assert rollout.trouble(change) is None


def test_a_camera_that_was_shifted_is_found(rollout: Rollout) -> None:
    troubles = {change: rollout.trouble(change) for change in ("down", "up", "right", "left", "far")}
    if rollout.task == "beads":
        # Of what rests there, a rail across the whole picture is all that has edges.
        assert troubles.pop("right") is troubles.pop("left") is None
    assert {trouble and trouble.name for trouble in troubles.values()} == {"moved"}


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("task", ["valve", "beads"])
def test_ordinary_running_of_the_fake_raises_nothing(task: str, scale: float) -> None:
    assert roll(task, "fake", held(scale), 2 * ENOUGH).trouble() is None


@pytest.mark.parametrize("pose", [0.0, 1.0])
def test_a_robot_that_rests_or_pushes_against_the_valve_raises_nothing(pose: float) -> None:
    actions = iter([np.full(9, pose, np.float32)] * 100)
    found = roll("valve", "twin", actions, 100)
    assert found.trouble() is None
    blocked = max(
        float(np.abs(target - seen.joint_rad).max()) for seen, target, _ in found.readings if target is not None
    )
    assert pose == 0.0 or blocked > 0.2


def test_a_hand_that_rests_tells_nothing_new_of_the_cameras_place() -> None:
    checks, hand = checks_of(), np.zeros(3)
    covered = np.roll(SCENE, 2, 1)
    for _ in range(2 * ENOUGH):
        assert checks.check(seen(noisy(covered), hand), None, PERIOD_S) is None
