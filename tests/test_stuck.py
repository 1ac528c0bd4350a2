"""An object that moves no more is noticed in images alone, and answered step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pybullet
import pytest
from numpy.typing import NDArray

from benchmarks.night import SMALL, goal_images
from r3l.config.schema import Check, ChecksConfig, Config, PersistenceConfig
from r3l.hardware.twin import Twin
from r3l.robot.base import FloatArray, Image, Observation
from r3l.robot.env import RobotEnv
from r3l.robot.monitor import MAX_SKIPPED, MIN_PASSES, Monitor
from r3l.robot.safety import SafeRobot, make_safe
from r3l.robot.scripted_moves import move
from r3l.robot.stuck import StuckDetector
from r3l.task.registry import load_robot, load_task

TASKS = ("valve", "beads", "reposition")
CONFIG = PersistenceConfig(after_steps=600, step_every=200)


class Scene:
    """Two fingers, drawn as bars where their joints are, wave before a square object."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.place = 10
        self.step = 0

    def run(self, detector: StuckDetector, steps: int) -> list[int]:
        """Return the level after each of some steps."""
        levels = []
        for _ in range(steps):
            joints = self.rng.uniform(-1, 1, 4).astype(np.float32)
            detector.update(self.picture(joints), joints, self.step)
            self.step += 1
            levels.append(detector.level)
        return levels

    def picture(self, joints: FloatArray) -> Image:
        image = np.full((64, 64, 3), 90, np.uint8)
        image[24:40, self.place : self.place + 16] = (200, 40, 40)
        for across, down in joints.reshape(2, 2):
            column, row = int(28 + 28 * across), int(32 + 30 * down)
            image[:row, column : column + 8] = 30
        return image


def test_levels_rise_with_every_answer_that_did_not_help_up_to_the_last() -> None:
    detector = StuckDetector(CONFIG)
    levels = Scene().run(detector, 1400)
    assert [levels.index(level) for level in (1, 2, 3)] == [600, 800, 1000]
    assert max(levels) == levels[-1] == 3


def test_the_message_says_what_is_seen_and_what_is_answered() -> None:
    detector, scene = StuckDetector(CONFIG), Scene()
    assert detector.message == ""
    for steps, words in ((601, "more perturbation"), (200, "sweep"), (200, "pauses until people")):
        scene.run(detector, steps)
        assert words in detector.message
        assert f"for {scene.step - 1} env steps (persistence.after_steps 600)" in detector.message
        assert "\n" not in detector.message


def test_an_object_seen_to_move_takes_back_every_answer_at_once() -> None:
    detector, scene = StuckDetector(CONFIG), Scene()
    scene.run(detector, 1100)
    scene.place += 16
    levels = scene.run(detector, 250)
    assert levels[0] == 3
    assert levels[-1] == 0
    assert set(levels) == {0, 3}
    assert detector.message == "the object moves again; training goes on as usual"


def test_the_object_is_given_its_whole_time_again_after_people_looked() -> None:
    detector, scene = StuckDetector(CONFIG), Scene()
    scene.run(detector, 1100)
    detector.restart(scene.step)
    assert detector.level == 0
    levels = scene.run(detector, 700)
    assert levels.index(1) == 600


def test_steps_in_the_dark_count_neither_for_nor_against_motion() -> None:
    detector, scene = StuckDetector(CONFIG), Scene()
    scene.run(detector, 500)
    for _ in range(2000):
        detector.skip_step()
        scene.step += 1
    levels = scene.run(detector, 200)
    assert levels.index(1) == 100


def test_who_goes_on_in_the_dark_is_not_said_to_be_stuck() -> None:
    config = replace(SMALL, robot="fake", persistence=CONFIG, checks=ChecksConfig(dark=Check(12.0, "warn")))
    task, images = load_task("valve"), goal_images()[0]
    robot, joints = make_safe(load_robot(config.robot, task), task.rig), task.rig.home_rad
    events: list[str] = []
    monitor = Monitor(config, robot, images, lambda kind, message: events.append(kind))
    for step in range(3000):
        time_s = step / robot.spec.control_hz
        assert monitor.inspect(Observation(np.zeros((64, 64, 3), np.uint8), joints, time_s, np.zeros(0, np.float32)))
        assert monitor.after_step(images[0], joints, step) == 0.0
    assert events == ["check-dark"]


def test_too_many_observations_left_out_in_a_row_pause_until_good_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("valve")
    robot, images = make_safe(load_robot("fake", task), task.rig), goal_images()[0]
    events: list[str] = []
    monitor = Monitor(SMALL, robot, images, lambda kind, message: events.append(kind))

    def seen(joints: FloatArray) -> Observation:
        return Observation(images[0], joints, 0.0, np.zeros(0, np.float32))

    good, bad = seen(task.rig.home_rad), seen(np.full(9, np.nan, np.float32))
    for count in range(1, MAX_SKIPPED):
        assert not monitor.inspect(bad)
        assert monitor.trouble is None, count
    assert monitor.inspect(good)
    for _ in range(MAX_SKIPPED):
        monitor.inspect(bad)
    assert monitor.trouble is not None
    assert not monitor.ends_the_run
    robot.connect()
    for looks, joints in ((5, bad.joint_rad), (MIN_PASSES, good.joint_rad)):
        monkeypatch.setattr(robot, "observe", partial(seen, joints))
        assert monitor.trouble is not None
        for _ in range(looks):
            monitor.recheck()
    assert monitor.trouble is None
    assert events == ["check-joint_impossible"] * 2
    robot.close()


def monitor_of(config: Config, events: list[str]) -> tuple[Monitor, NDArray[np.uint8]]:
    images = goal_images()[0]
    task = load_task("valve")
    robot = make_safe(load_robot("fake", task), task.rig)
    robot.connect()
    return Monitor(config, robot, images, lambda kind, message: events.append(f"{kind}: {message}")), images


def test_a_light_that_flickers_is_told_now_and_then_and_counted_always() -> None:
    events: list[str] = []
    monitor, images = monitor_of(replace(SMALL, checks=ChecksConfig(dark=Check(12.0, "warn"))), events)
    joints, nothing = load_task("valve").rig.home_rad, np.zeros(0, np.float32)
    for step in range(600 * 10):  # ten minutes at 10 Hz, dark for a second, bright for a second
        image = images[step % 20] // (64 if step // 10 % 2 else 1)
        monitor.inspect(Observation(image, joints + 1e-3 * (step % 7), step / 10, nothing))
    assert monitor.checks.counts["dark"] == 3000
    assert 18 <= len(events) <= 22


def test_what_goes_wrong_while_something_else_is_wrong_is_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monitor, images = monitor_of(replace(SMALL, checks=ChecksConfig()), events)
    good, nothing = load_task("valve").rig.home_rad, np.zeros(0, np.float32)

    def recheck(image: NDArray[np.uint8], joints: FloatArray, time_s: float) -> None:
        monkeypatch.setattr(SafeRobot, "observe", lambda robot: Observation(image, joints, time_s, nothing))
        monitor.recheck()

    monitor.inspect(Observation(images[0] // 64, good, 0.0, nothing))
    assert monitor.trouble is not None
    assert monitor.trouble.name == "dark"
    recheck(images[1], np.full(9, np.nan, np.float32), 1.0)
    assert monitor.trouble.name == "joint_impossible"
    for second in range(MIN_PASSES):
        assert monitor.trouble is not None
        recheck(images[second], good + 1e-3 * np.float32(second), 2.0 + second)
    assert monitor.trouble is None
    kinds = [event.split(":")[0] for event in events]
    assert kinds == ["check-dark", "check-joint_impossible"] * 2
    assert all("over" in event for event in events[2:])


def test_after_people_freed_the_object_perturbation_is_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monitor, images = monitor_of(replace(SMALL, persistence=CONFIG), events)
    joints = np.zeros(9, np.float32)
    monkeypatch.setattr(StuckDetector, "update", lambda self, *given: False)
    monitor.stuck.level = 3
    assert monitor.after_step(images[0], joints, 0) > 0
    assert monitor.is_stuck
    monitor.resume(0)
    assert monitor.stuck.level == 0
    assert monitor.after_step(images[0], joints, 0) == 0


def test_a_sweep_is_made_also_where_nothing_is_done_between_episodes() -> None:
    monitor, _ = monitor_of(SMALL, [])
    swept: list[bool] = []
    between = monitor.between(None, lambda: swept.append(True))
    assert not between()
    monitor.stuck.level = 2
    assert between()
    assert swept == [True]


def test_nobody_looks_where_the_config_says_so() -> None:
    detector = StuckDetector(PersistenceConfig(after_steps=0))
    assert set(Scene().run(detector, 100)) == {0}


def test_a_world_that_moves_while_the_fingers_rest_is_seen_to_move() -> None:
    detector, scene = StuckDetector(CONFIG), Scene()
    joints = np.zeros(4, np.float32)
    for step in range(900):
        scene.place = 20 + int(15 * np.sin(step))
        detector.update(scene.picture(joints), joints, step)
        assert detector.level == 0


# On the twin


@dataclass(frozen=True)
class Hand:
    """A twin whose fingers move at random, and come home every 50 steps."""

    task: str
    freezes: bool
    seed: int = 0

    def run(self, steps: int, config: PersistenceConfig, turn: Callable[[Twin, int], None] | None = None) -> list[int]:
        """Return the level after each step; `turn` may move a frozen object before each."""
        task = load_task(self.task)
        twin = load_robot("twin", task)
        assert isinstance(twin, Twin)
        safe = make_safe(twin, task.rig)
        env, rng, detector = RobotEnv(safe), np.random.default_rng(self.seed), StuckDetector(config)
        levels = []
        try:
            env.reset()
            safe.place(task.random_states(1, rng)[0])
            if self.freezes:
                freeze(twin)
            for step in range(steps):
                if step % 50 == 0:
                    move(safe, task.rig.home_rad, 8)
                if turn is not None:
                    turn(twin, step)
                if step % 3 == 0:
                    action = rng.uniform(-1, 1, 9).astype(np.float32)
                seen = env.act(action)
                detector.update(seen.observation.image, seen.joints, step)
                levels.append(detector.level)
        finally:
            env.close()
        return levels


def freeze(twin: Twin) -> None:
    """Fix the object where it is."""
    client, body = twin.client, twin.scene.bodies[0]
    client.changeDynamics(body, -1, mass=0)
    for joint in range(client.getNumJoints(body)):
        place = client.getJointState(body, joint)[0]
        client.setJointMotorControl2(body, joint, pybullet.POSITION_CONTROL, targetPosition=place, force=1e4)


def turn_valve(twin: Twin, degrees: float) -> None:
    body = twin.scene.bodies[0]
    angle = twin.client.getJointState(body, 0)[0] + np.radians(degrees)
    twin.scene.place(np.array([angle], np.float32))
    freeze(twin)


def test_a_valve_that_cannot_turn_is_stuck() -> None:
    levels = Hand("valve", freezes=True).run(750, PersistenceConfig(600, 100))
    assert [levels.index(level) for level in (1, 2)] == [600, 700]


def test_a_valve_that_turned_by_fifteen_degrees_moved() -> None:
    def turn(twin: Twin, step: int) -> None:
        if step == 400:
            turn_valve(twin, 15)

    levels = Hand("valve", freezes=True).run(640, PersistenceConfig(390, 1000), turn)
    assert set(levels[390:400]) == {1}
    assert levels[-1] == 0


@pytest.mark.parametrize("task", TASKS)
def test_the_fingers_play_moves_the_object(task: str) -> None:
    assert set(Hand(task, freezes=False).run(560, PersistenceConfig(550, 100))) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_an_object_that_cannot_move_is_stuck_however_the_fingers_wave(task: str) -> None:
    levels = Hand(task, freezes=True, seed=1).run(4600, PersistenceConfig())
    assert [levels.index(level) for level in (1, 2)] == [3000, 4500]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_ordinary_play_is_never_stuck(task: str) -> None:
    assert set(Hand(task, freezes=False, seed=1).run(4000, PersistenceConfig(1000, 100))) == {0}


@pytest.mark.slow
def test_motion_every_five_hundred_steps_is_enough() -> None:
    def turn(twin: Twin, step: int) -> None:
        if step % 500 == 499:
            turn_valve(twin, 15)

    assert set(Hand("valve", freezes=True).run(4000, PersistenceConfig(1500, 100), turn)) == {0}
