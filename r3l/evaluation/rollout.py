"""Rollouts of policies on any robot, with the checks of a run; nothing is stored or learned."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from r3l.config.schema import Config
from r3l.evaluation.episode import run_episode
from r3l.evaluation.policies import Behaviour
from r3l.robot.base import Image, Robot, RobotError
from r3l.robot.env import RobotEnv
from r3l.robot.monitor import Monitor
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import ScriptedMoves
from r3l.run.goals import Goals
from r3l.task.base import Task

RECHECK_EVERY_S = 1.0
"""Seconds between two checks of a paused robot."""
MAX_WAIT_S = 600.0
"""Max length of a pause; a longer one ends the rollout."""


class Rollout:
    """A robot for episodes of learned policies. Use as a context manager: leaving it relaxes the robot."""

    def __init__(self, config: Config, task: Task, robot: Robot, goals: Goals, say: Callable[[str], None]) -> None:
        """Take a robot that is not yet connected.

        Args:
            config: the run's config, with its checks and its moves home.
            task: the run's task.
            robot: simulated or real.
            goals: the run's goal images; the camera should see their background.
            say: tells people about failed checks and pauses.
        """
        self.config, self.task, self.robot, self._say = config, task, robot, say
        self._safe = make_safe(robot, task.rig, real_time=config.real_time)
        self._env = RobotEnv(self._safe)
        self._moves = ScriptedMoves(self._safe, task.rig, config.phases.homing_steps)
        self._monitor = Monitor(config, self._safe, goals.train, lambda kind, message: say(f"{kind}: {message}"))

    def __enter__(self) -> Self:
        try:
            self._env.observe()
        except BaseException:
            self._env.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def home(self) -> None:
        """Move the fingers home, if training does so between episodes."""
        if self.config.phases.between != "nothing":
            self._moves.home()

    def episode(self, behaviour: Behaviour, steps: int) -> list[Image] | None:
        """Act for `steps` env steps; return the images seen, or None if the robot had to pause: then start again.

        Raises:
            RobotError: a check fails and does not recover.
        """
        frames: list[Image] = []
        self._monitor.forget_time()
        for seen, is_fit in run_episode(self._env, behaviour, steps, self._monitor.inspect):
            if is_fit:
                frames.append(seen.observation.image)
            elif not frames or self._monitor.trouble is not None:
                self._wait()
                return None
        return frames

    def _wait(self) -> None:
        """If a check pauses the robot, relax it and wait until the check passes."""
        monitor, until_s = self._monitor, time.monotonic() + MAX_WAIT_S
        if monitor.trouble is None:
            return
        try:
            self._safe.relax()
        except RobotError as error:  # the adapter may be unplugged, and come back
            self._say(str(error))
        while monitor.trouble is not None:
            if monitor.ends_the_run or time.monotonic() > until_s:
                raise RobotError(f"{monitor.trouble.message}; the robot is relaxed")
            time.sleep(RECHECK_EVERY_S)
            monitor.recheck()
        self._say("the check passes again; the episode starts again")
