"""The environment with resets, true rewards and ground truth, for baselines and for learners of other projects."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from r3l.config.errors import UserError
from r3l.robot.base import FloatArray, SimulatedRobot
from r3l.robot.env import Observed, RobotEnv
from r3l.robot.safety import make_safe
from r3l.task.base import Task
from r3l.task.registry import load_robot, load_task


class ResetsEnv(RobotEnv):
    """`RobotEnv` with what a real rig lacks: `reset` places the object anywhere, and the reward is the true one."""

    def __init__(self, task: Task, robot: SimulatedRobot, render_mode: str | None = None) -> None:
        super().__init__(make_safe(robot, task.rig), render_mode)
        self._task, self._simulated = task, robot
        self._began_s = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Place the object at a random state and the fingers in a random pose."""
        gymnasium.Env.reset(self, seed=seed)
        self._connect()
        self.robot.place(self._task.random_states(1, self.np_random)[0], self.np_random)
        observed, info = super().reset()
        self._began_s = info["time_s"]
        return observed, info | {"truth": self._simulated.truth(), "time_s": 0.0}

    def step(self, action: FloatArray) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """Step and reward with the task's true reward in [0, 1]."""
        observed, _, terminated, truncated, info = super().step(action)
        reward = float(self._task.true_reward(torch.from_numpy(info["diagnostic"])[None])[0])
        truth = self._simulated.truth()
        info |= {"truth": truth, "is_success": truth["error"] <= self._task.success_error}
        info["time_s"] = round(info["time_s"] - self._began_s, 6)
        return observed, reward, terminated, truncated, info


class TrueState(gymnasium.ObservationWrapper[FloatArray, FloatArray, Observed]):
    """Observes [true state, proprioception] as one vector instead of images, for learners on states."""

    def __init__(self, env: ResetsEnv) -> None:
        super().__init__(env)
        size = len(env.robot.spec.diagnostic) + 2 * len(env.robot.spec.joints)
        self.observation_space = spaces.Box(-10.0, 10.0, (size,), np.float32)
        self._env = env

    def observation(self, observation: Observed) -> FloatArray:
        """Return float32 [D + 2A]."""
        assert self._env.newest is not None
        vector = np.concatenate([self._env.newest.observation.diagnostic, observation["proprioception"]])
        shown: FloatArray = np.clip(vector, -10.0, 10.0).astype(np.float32)
        return shown


def make_limited(
    task: str, robot: str = "twin", *, true_state: bool = False, render_mode: str | None = None
) -> gymnasium.Env[Any, FloatArray]:
    """Build `r3l/TASK-Resets-v0` as `gymnasium.make` does: truncated after the task's own episode length."""
    env = make(task, robot, true_state=true_state, render_mode=render_mode)
    return gymnasium.wrappers.TimeLimit(env, load_task(task).episode_steps)


def make(
    task: str, robot: str = "twin", *, true_state: bool = False, render_mode: str | None = None
) -> gymnasium.Env[Any, FloatArray]:
    """Build the environment without a time limit; with `true_state` it observes the true state, not the image."""
    known = load_task(task)
    simulated = load_robot(robot, known, diagnostic=True)
    if not isinstance(simulated, SimulatedRobot):
        raise UserError(f"robot {robot!r} is not simulated, so that its object cannot be placed; use --robot twin")
    env = ResetsEnv(known, simulated, render_mode)
    return TrueState(env) if true_state else env
