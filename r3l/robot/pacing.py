"""Control periods by the wall clock: when commands are due, how punctual they are, a simulated robot in real time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from r3l.config.schema import Config
from r3l.robot.base import FloatArray, Observation, Punctuality, Robot, SimulatedRobot
from r3l.robot.wrapper import RobotWrapper

ON_TIME_S = 0.005
"""A command that is written at most this late is on time."""
THINK_SHARE = 0.1
"""Share of a control period between an observation and the next command, for the policy to choose it."""
OVERRUN_SHARE = 0.25
"""A command that is later than this share of a control period is an overrun: the schedule restarts at it."""


class Schedule:
    """Due times of commands, one per control period; an overrun restarts it, so that no burst of commands follows."""

    def __init__(
        self,
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period_s, self._clock, self._sleep = period_s, clock, sleep
        self._due_s: float | None = None
        self.punctuality = Punctuality()
        self.on_command: Callable[[float], None] = lambda late_s: None
        """Called with the lateness of each command, s."""

    def forget(self) -> None:
        """Restart with the next command, after a pause."""
        self._due_s = None

    def written(self) -> None:
        """Record that a command has just been written."""
        now_s = self._clock()
        if self._due_s is None:
            self._due_s = now_s
        late_s = max(now_s - self._due_s, 0.0)
        self._count(late_s)
        if late_s > OVERRUN_SHARE * self._period_s:
            self._due_s = now_s
        self._due_s += self._period_s

    def wait_to_observe(self) -> None:
        """Sleep until the time to observe: early enough to choose the next command before it is due."""
        self._sleep_until(THINK_SHARE * self._period_s)

    def wait_to_command(self) -> None:
        """Sleep until the next command is due."""
        self._sleep_until(0.0)

    def _sleep_until(self, before_s: float) -> None:
        if self._due_s is not None:
            self._sleep(max(self._due_s - before_s - self._clock(), 0.0))

    def _count(self, late_s: float) -> None:
        found = self.punctuality
        found.commands += 1
        found.on_time += late_s <= ON_TIME_S
        found.overruns += late_s > OVERRUN_SHARE * self._period_s
        found.worst_late_s = max(found.worst_late_s, late_s)
        self.on_command(late_s)


class RealTime(RobotWrapper):
    """A simulated robot whose control periods take as long as a real robot's.

    The simulator works right after the command, and `observe` sleeps until shortly before the period is over: between
    an observation and the next command there is only the time that the policy takes, as on a robot that measures while
    it moves.
    """

    def __init__(
        self,
        robot: Robot,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(robot)
        self.schedule = Schedule(1 / robot.spec.control_hz, clock, sleep)
        self._ahead: Observation | None = None
        """The observation of the current control period, until `observe` returns it."""

    @property
    def punctuality(self) -> Punctuality:
        return self.schedule.punctuality

    def command(self, target_rad: FloatArray) -> FloatArray:
        self.schedule.wait_to_command()
        sent = self.robot.command(target_rad)
        self.schedule.written()
        self._ahead = self.robot.observe()
        return sent

    def observe(self) -> Observation:
        if self._ahead is None:
            return self.robot.observe()
        self.schedule.wait_to_observe()
        observation, self._ahead = self._ahead, None
        return observation

    def relax(self) -> None:
        self._forget()
        self.robot.relax()

    def close(self) -> None:
        self._forget()
        self.robot.close()

    def _forget(self) -> None:
        self.schedule.forget()
        self._ahead = None


def keeps_real_time(config: Config, robot: Robot) -> bool:
    """Return whether the robot's time goes on while no process acts."""
    return config.real_time or not isinstance(robot.unwrapped, SimulatedRobot)


def leaves_a_core(config: Config, robot: Robot) -> bool:
    """Return whether the actor leaves the learner a second core: on two cores not if it acts without a pause."""
    return config.sync or keeps_real_time(config, robot) or (os.cpu_count() or 1) > 2
