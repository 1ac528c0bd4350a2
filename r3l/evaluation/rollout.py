"""A stage: a robot on which learned policies act, nothing stored and nothing learned, looked after as in a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

import numpy as np

from r3l.config.schema import Config
from r3l.evaluation.policies import Behaviour
from r3l.robot.base import Image, Robot, RobotError
from r3l.robot.env import RobotEnv
from r3l.robot.monitor import Monitor
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import ScriptedMoves
from r3l.run.goals import Goals
from r3l.task.base import Task

LOOK_EVERY_S = 1.0
"""Between two looks at what pauses the robot."""
MAX_WAIT_S = 600.0
"""A pause that is not over after so long ends what was begun."""


class Rollout:
    """A robot for episodes of learned policies. Use as a context manager: leaving it relaxes the robot."""

    def __init__(self, config: Config, task: Task, robot: Robot, goals: Goals, say: Callable[[str], None]) -> None:
        """Take a robot that is not yet connected, and the goal images whose background its camera should see.

        Args:
            config: of the run whose policies act: its checks, its homing.
            task: of the run.
            robot: simulated or real.
            goals: of the run.
            say: tells people what was found and what is waited for.
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
        """Move the fingers home, where training does so between episodes."""
        if self.config.phases.between != "nothing":
            self._moves.home()

    def episode(self, behaviour: Behaviour, steps: int) -> list[Image] | None:
        """Act for so many env steps; return the images seen; None where the robot had to pause: begin anew then.

        What a check leaves out is not shown to the policy, and the action before it is repeated.

        Raises:
            RobotError: what was found wrong does not pass.
        """
        env, monitor = self._env, self._monitor
        monitor.forget_time()
        seen = env.observe()
        if not monitor.inspect(seen.observation):
            self._wait()
            return None
        behaviour.begin()
        frames, action = [seen.observation.image], np.zeros(0, np.float32)
        is_fit = True
        for _ in range(steps):
            if is_fit:
                behaviour.see(seen.observation.image, seen.joints, seen.applied, seen.observation.diagnostic)
                action = behaviour.choose()
            seen = env.act(action)
            is_fit = monitor.inspect(seen.observation)
            if is_fit:
                frames.append(seen.observation.image)
            elif monitor.trouble is not None:
                self._wait()
                return None
        return frames

    def _wait(self) -> None:
        """Relax and wait until what pauses the robot is over, if anything does."""
        monitor, until_s = self._monitor, time.monotonic() + MAX_WAIT_S
        if monitor.trouble is None:
            return
        try:
            self._safe.relax()
        except RobotError as error:  # its adapter may be away, and come back
            self._say(str(error))
        while monitor.trouble is not None:
            if monitor.ends_the_run or time.monotonic() > until_s:
                raise RobotError(f"{monitor.trouble.message}; the robot is relaxed")
            time.sleep(LOOK_EVERY_S)
            monitor.recheck()
        self._say("over; the episode begins anew")
