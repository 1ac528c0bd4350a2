"""One episode of a behaviour on a robot, for evaluation, trials, play and film."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from r3l.evaluation.policies import Behaviour
from r3l.robot.base import Observation
from r3l.robot.env import RobotEnv, TimeStep


def run_episode(
    env: RobotEnv,
    behaviour: Behaviour,
    steps: int,
    is_fit: Callable[[Observation], bool] = lambda observation: True,
) -> Iterator[tuple[TimeStep, bool]]:
    """Act for `steps` env steps; yield each time step, the start first, and whether its observation is fit.

    The behaviour does not see an unfit observation; its action before is repeated.
    """
    seen = env.observe()
    fits = is_fit(seen.observation)
    yield seen, fits
    behaviour.begin()
    action = np.zeros(0, np.float32)
    for _ in range(steps):
        if fits:
            behaviour.see(seen.observation.image, seen.joints, seen.applied, seen.observation.diagnostic)
            action = behaviour.choose()
        seen = env.act(action)
        fits = is_fit(seen.observation)
        yield seen, fits
