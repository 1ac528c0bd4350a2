"""Monitor of an unattended robot: it checks every observation and answers an object that is stuck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from r3l.config.schema import Config
from r3l.robot.base import FloatArray, Image, Observation, Trouble
from r3l.robot.observation_checks import BLINDING, ROBOT, ObservationChecks, gravest
from r3l.robot.safety import SafeRobot
from r3l.robot.stuck import PAUSE, PERTURB, SWEEP, StuckDetector

Tell = Callable[[str, str], None]
"""tell(kind, message) writes an event."""
MIN_PASSES = 3
"""Observations in a row that must pass before a pause ends, or before a check is reported to pass again."""
MAX_SKIPPED = 20
"""Observations skipped in a row at which the robot pauses: it would hold still with torque on."""
MIN_TELL_INTERVAL_S = 60.0
"""A check that fails again sooner is counted but not reported."""
STUCK_SHARE = 0.75
"""Share of perturbation episodes while the object is stuck."""


class Monitor:
    """Checks of a run's observations: it says when the robot must wait, and whether the run must end."""

    def __init__(self, config: Config, robot: SafeRobot, goals: NDArray[np.uint8], tell: Tell) -> None:
        """Watch `robot`; the goal images [G, H, W, 3] show the background that its camera should see."""
        self._robot, self._tell = robot, tell
        settings = config.checks
        if config.randomize != "none":  # the camera is moved on purpose
            settings = replace(settings, moved=replace(settings.moved, threshold=1.0))
        spec = robot.spec
        self.checks = ObservationChecks(
            settings, spec.joints, spec.control_hz, goals, identical_frames=robot.identical_frames
        )
        self.stuck = StuckDetector(config.persistence)
        self.trouble: Trouble | None = None
        """The trouble that pauses the robot or ends the run at present."""
        self._failing: dict[str, bool] = {}
        """Checks that failed since all passed, and whether that was reported."""
        self._told_s: dict[str, float] = {}
        self._is_blind = False
        self._passes = self._skipped = 0
        self._last_s: float | None = None

    @property
    def ends_the_run(self) -> bool:
        """Whether a check failed whose action is to stop."""
        return self.trouble is not None and self.trouble.action == "stop"

    @property
    def is_stuck(self) -> bool:
        """Whether the object is stuck and every gentler answer had its time."""
        return self.stuck.level >= PAUSE

    def inspect(self, observation: Observation) -> bool:
        """Return whether an observation is fit to be learned from."""
        troubles = self._check(observation)
        worst = gravest(troubles)
        self._is_blind = worst is not None and worst.name in BLINDING
        self._skipped = self._skipped + 1 if worst is not None and worst.action == "skip" else 0
        if worst is None:
            self._count_pass()
            return True
        self._report(troubles, observation.time_s)
        if worst.action == "warn":
            return True
        if worst.action in ("pause", "stop") or self._skipped >= MAX_SKIPPED:
            self.trouble = worst
        return False

    def recheck(self) -> None:
        """Observe during a pause; the pause ends after MIN_PASSES good observations in a row."""
        self.forget_time()
        self.checks.rest()
        observation = self._robot.observe()
        troubles = self._check(observation)
        worst = gravest(troubles)
        if worst is not None and worst.action != "warn":
            self._report(troubles, observation.time_s)
            self.trouble = worst
        elif self._count_pass():
            self.trouble, self._skipped = None, 0
            self.forget_time()

    def forget_time(self) -> None:
        """Never call the next observation late: a pause or a scripted move came before it."""
        self._last_s = None

    def after_step(self, image: Image, joints: FloatArray, steps: int) -> float:
        """Check whether the object still moves, after env step `steps`; return the min share of perturbations."""
        if self._is_blind:
            self.stuck.skip_step()
        elif self.stuck.update(image, joints, steps):
            self._tell("stuck", self.stuck.message)
        return STUCK_SHARE if self.stuck.level >= PERTURB else 0.0

    def between(self, usual: Callable[[], None] | None, sweep: Callable[[], None]) -> Callable[[], bool]:
        """Return a function to call between episodes: `usual`, or `sweep` while the object is stuck.

        The function returns whether it did anything.
        """

        def do() -> bool:
            move = sweep if self.stuck.level >= SWEEP else usual
            if move is None:
                return False
            move()
            self.forget_time()
            return True

        return do

    def resume(self, steps: int) -> None:
        """Give the object its whole time again: people freed it and resumed the run."""
        self.stuck.restart(steps)

    def _check(self, observation: Observation) -> list[Trouble]:
        """Return the troubles of the robot itself, and the gravest trouble of its observation."""
        period_s = 1 / self._robot.spec.control_hz
        elapsed_s = period_s if self._last_s is None else observation.time_s - self._last_s
        self._last_s = observation.time_s
        troubles = list(self._robot.troubles)
        self.checks.counts[ROBOT] += len(troubles)
        found = self.checks.check(observation, self._robot.newest_target, elapsed_s)
        return troubles if found is None else [*troubles, found]

    def _report(self, troubles: list[Trouble], now_s: float) -> None:
        """Report the checks that fail: each once until all pass again, and at most once per MIN_TELL_INTERVAL_S."""
        self._passes = 0
        for trouble in troubles:
            name = trouble.name
            if name in self._failing:
                continue
            self._failing[name] = now_s - self._told_s.get(name, -MIN_TELL_INTERVAL_S) >= MIN_TELL_INTERVAL_S
            if self._failing[name]:
                self._told_s[name] = now_s
                self._tell(f"check-{name}", trouble.message)

    def _count_pass(self) -> bool:
        """Count an observation that passed; once there are MIN_PASSES in a row, report it and return True."""
        self._passes += 1
        if self._passes < MIN_PASSES:
            return False
        for name in sorted(name for name, is_told in self._failing.items() if is_told):
            self._tell(f"check-{name}", "over: the check passes again")
        self._failing.clear()
        return True
