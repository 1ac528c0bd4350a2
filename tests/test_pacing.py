"""Pacing: commands keep the time of the clock on the wall, and what was missed is never made up for."""

from __future__ import annotations

import time

import numpy as np
import pytest

from r3l.hardware.fake import Fake
from r3l.processes.pacing import ON_TIME_S, THINK_SHARE, RealTime, Schedule
from r3l.robot import Joint, Observation

JOINTS = (Joint("a", -1.0, 1.0), Joint("b", -1.0, 1.0))
TARGET = np.array([0.5, -0.5], np.float32)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Slow(Fake):  # type: ignore[misc]
    """A fake whose observations take their time, when told so."""

    delay_s = 0.0

    def observe(self) -> Observation:
        time.sleep(self.delay_s)
        seen: Observation = super().observe()
        return seen


def make(control_hz: float = 50.0) -> tuple[Slow, RealTime]:
    fake = Slow(JOINTS, np.zeros(2, np.float32), control_hz=control_hz)
    paced = RealTime(fake)
    paced.connect()
    return fake, paced


def test_a_period_takes_as_long_as_a_real_ones() -> None:
    _, robot = make()
    robot.command(TARGET)
    robot.observe()
    began = time.monotonic()
    for _ in range(10):
        robot.command(TARGET)
        robot.observe()
    assert 0.19 <= time.monotonic() - began < 2


def test_without_a_command_nothing_is_waited_for() -> None:
    _, robot = make(control_hz=1.0)
    began = time.monotonic()
    first, second = robot.observe(), robot.observe()
    assert time.monotonic() - began < 0.9
    assert first.time_s == second.time_s == 0.0


def test_the_world_is_the_one_of_the_robot_without_pacing() -> None:
    _, paced = make()
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
    schedule = Schedule(0.1, clock)
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
    schedule = Schedule(0.1, clock)
    schedule.written()
    for number in range(1, 21):
        clock.now_s = 100.0 + 0.1 * number + 0.01
        schedule.written()
    assert schedule.punctuality.worst_late_s == pytest.approx(0.01)


def test_an_overrun_is_never_followed_by_a_burst() -> None:
    fake, robot = make()
    written: list[float] = []
    robot.schedule.on_command = lambda late_s: written.append(time.monotonic())
    for step in range(12):
        fake.delay_s = 0.3 if step == 4 else 0.0
        robot.command(TARGET)
        robot.observe()
    gaps = np.diff(written)
    assert robot.schedule.punctuality.overruns == 1
    assert gaps.max() >= 0.3
    assert gaps.min() >= 0.75 * 0.02, "no two commands are closer than three quarters of a period"


def test_after_a_pause_the_schedule_begins_anew() -> None:
    _, robot = make()
    robot.command(TARGET)
    robot.observe()
    robot.relax()
    time.sleep(0.1)
    robot.command(TARGET)
    assert robot.schedule.punctuality.overruns == 0
    assert robot.schedule.punctuality.commands == 2


def test_there_is_time_to_think_between_an_observation_and_its_command() -> None:
    _, robot = make(control_hz=10.0)
    written: list[float] = []
    robot.schedule.on_command = lambda late_s: written.append(time.monotonic())
    left = []
    for _ in range(4):
        robot.command(TARGET)
        robot.observe()
        left.append(written[-1] + 0.1 - time.monotonic())
    assert all(0 < each <= THINK_SHARE * 0.1 + 1e-3 for each in left), "it is not over when the robot has looked"
    assert np.diff(written) == pytest.approx(0.1, abs=0.02), "and the command keeps its time all the same"
