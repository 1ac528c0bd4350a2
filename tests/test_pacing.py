"""Pacing: commands keep the time of the wall clock, and no burst follows an overrun."""

from __future__ import annotations

import time

import numpy as np
import pytest

from r3l.hardware.fake import Fake
from r3l.robot.base import Joint, Observation
from r3l.robot.pacing import ON_TIME_S, THINK_SHARE, RealTime, Schedule

JOINTS = (Joint("a", -1.0, 1.0), Joint("b", -1.0, 1.0))
TARGET = np.array([0.5, -0.5], np.float32)


class Clock:
    """A clock that a test sets, and that sleeping moves: no test here depends on how busy the machine is."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        assert duration_s >= 0.0
        self.now_s += duration_s


class Slow(Fake):  # type: ignore[misc]
    """A fake whose observations take their time, when told so."""

    delay_s = 0.0
    clock: Clock

    def observe(self) -> Observation:
        self.clock.now_s += self.delay_s
        seen: Observation = super().observe()
        return seen


def make(control_hz: float = 50.0) -> tuple[Slow, RealTime, Clock]:
    fake = Slow(JOINTS, np.zeros(2, np.float32), control_hz=control_hz)
    fake.clock = Clock()
    paced = RealTime(fake, fake.clock, fake.clock.sleep)
    paced.connect()
    return fake, paced, fake.clock


def test_a_period_takes_as_long_as_a_real_ones() -> None:
    fake, robot, clock = make()
    fake.delay_s = 0.005
    robot.command(TARGET)
    robot.observe()
    began = clock()
    for _ in range(10):
        robot.command(TARGET)
        robot.observe()
    assert clock() - began == pytest.approx(10 / 50.0)


def test_it_is_the_clock_on_the_wall_that_is_kept() -> None:
    robot = RealTime(Fake(JOINTS, np.zeros(2, np.float32), control_hz=50.0))
    robot.connect()
    began = time.monotonic()
    for _ in range(5):
        robot.command(TARGET)
        robot.observe()
    assert time.monotonic() - began >= 0.09, "four periods, and the time to observe in the fifth"


def test_without_a_command_nothing_is_waited_for() -> None:
    _, robot, clock = make(control_hz=1.0)
    first, second = robot.observe(), robot.observe()
    assert clock() == 100.0
    assert first.time_s == second.time_s == 0.0


def test_the_world_is_the_one_of_the_robot_without_pacing() -> None:
    _, paced, _ = make()
    plain = Fake(JOINTS, np.zeros(2, np.float32), control_hz=50.0)
    plain.connect()
    for robot in (paced, plain):
        for target in (TARGET, -TARGET, TARGET):
            robot.command(target)
            seen = robot.observe()
        assert seen.time_s == pytest.approx(0.06)
        np.testing.assert_allclose(seen.joint_rad, paced.observe().joint_rad)


def test_lateness_is_counted() -> None:
    clock = Clock()
    schedule = Schedule(0.1, clock, clock.sleep)
    late: list[float] = []
    schedule.on_command = late.append
    for delay_s in (0.0, 0.004, 0.007, 0.02):
        clock.now_s += delay_s
        schedule.written()
        clock.now_s += 0.1 - delay_s
    assert late == pytest.approx([0.0, 0.004, 0.007, 0.02])
    found = schedule.punctuality
    assert (found.commands, found.on_time, found.overruns) == (4, 2, 0)
    assert found.worst_late_s == pytest.approx(0.02)
    assert ON_TIME_S == 0.005


def test_small_delays_do_not_add_up() -> None:
    clock = Clock()
    schedule = Schedule(0.1, clock, clock.sleep)
    schedule.written()
    for number in range(1, 21):
        clock.now_s = 100.0 + 0.1 * number + 0.01
        schedule.written()
    assert schedule.punctuality.worst_late_s == pytest.approx(0.01)


def test_an_overrun_is_never_followed_by_a_burst() -> None:
    fake, robot, clock = make()
    written: list[float] = []
    robot.schedule.on_command = lambda late_s: written.append(clock())
    for step in range(12):
        fake.delay_s = 0.3 if step == 4 else 0.0
        robot.command(TARGET)
        robot.observe()
    gaps = np.diff(written)
    assert robot.schedule.punctuality.overruns == 1
    assert gaps.max() == pytest.approx(0.3)
    assert np.delete(gaps, gaps.argmax()).min() >= 0.02 - 1e-9, "no two commands are closer than a period"


def test_after_a_pause_the_schedule_begins_anew() -> None:
    _, robot, clock = make()
    robot.command(TARGET)
    robot.observe()
    robot.relax()
    clock.sleep(0.1)
    robot.command(TARGET)
    assert clock() == pytest.approx(100.0 + (1 - THINK_SHARE) * 0.02 + 0.1), "and is not waited for"
    assert robot.schedule.punctuality.overruns == 0
    assert robot.schedule.punctuality.commands == 2


def test_there_is_time_to_think_between_an_observation_and_its_command() -> None:
    _, robot, clock = make(control_hz=10.0)
    written: list[float] = []
    robot.schedule.on_command = lambda late_s: written.append(clock())
    left = []
    for _ in range(4):
        robot.command(TARGET)
        robot.observe()
        left.append(written[-1] + 0.1 - clock())
    assert left == pytest.approx([THINK_SHARE * 0.1] * 4), "the period is not over when the robot has observed"
    assert np.diff(written) == pytest.approx([0.1] * 3), "and the command keeps its time all the same"
