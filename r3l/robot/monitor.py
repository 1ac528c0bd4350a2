"""Care: what looks after a robot that is alone: checks on what it sees, answers to an object that moves no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from r3l.config.schema import Config
from r3l.robot.base import Observation
from r3l.robot.observation_checks import BLINDING, ROBOT, SEVERITY, Checks, Finding
from r3l.robot.scripted_moves import Body
from r3l.robot.stuck import StuckDetector
from r3l.run.experience import Row
from r3l.run.goals import Goals
from r3l.training.actor import Actor

Tell = Callable[[str, str], None]
"""tell(kind, message) writes an event."""
GOOD_LOOKS = 3
"""Observations in a row that must pass before a pause is over, or a check is said to pass again."""
TELL_EVERY_S = 60.0
"""A check that fails again sooner is counted, not told."""
MAX_SKIPPED = 20
"""Observations in a row that are left out; after them the robot pauses, for it would hold still with torque on."""
STUCK_SHARE = 0.75
"""Share of perturbations while the object is stuck."""
PERTURB, SWEEP, PAUSE = 1, 2, 3
"""The answers to an object that is stuck, each beside the ones before."""


class Monitor:
    """Inspects what the actor is about to keep; says when to wait, and whether the run must end."""

    def __init__(self, config: Config, body: Body, goals: Goals, tell: Tell) -> None:
        self._body, self._tell = body, tell
        spec = body.safe.spec
        identical = body.robot.identical_frames
        settings = config.checks
        if config.randomize != "none":  # a camera that is moved on purpose is no fault
            settings = replace(settings, moved=replace(settings.moved, threshold=1.0))
        self.checks = Checks(settings, spec.joints, spec.control_hz, goals.train, identical_frames=identical)
        self.persistence = StuckDetector(config.persistence)
        self.finding: Finding | None = None
        """What pauses the robot, or ends the run, at present."""
        self._failing: set[str] = set()
        """Checks that failed since all passed, and those of them that were told of."""
        self._said: set[str] = set()
        self._told_s: dict[str, float] = {}
        self._is_blind = False
        self._good_looks = self._skipped = 0
        self._last_s: float | None = None
        self._level = 0

    @property
    def ends_the_run(self) -> bool:
        """Whether a check failed whose action is to stop."""
        return self.finding is not None and self.finding.action == "stop"

    @property
    def is_stuck(self) -> bool:
        """Whether the object is stuck and every gentler answer was given its time."""
        return self._level >= PAUSE

    @property
    def level(self) -> int:
        """Which answer to a stuck object is being given; 0 while it moves."""
        return self._level

    def inspect(self, observation: Observation) -> bool:
        """Return whether an observation is fit to be learned from."""
        every = self._look(observation)
        found = _gravest(every)
        self._is_blind = found is not None and found.name in BLINDING
        self._skipped = self._skipped + 1 if found is not None and found.action == "skip" else 0
        if found is None:
            self._good_looks += 1
            if self._good_looks >= GOOD_LOOKS:
                self._say_over()
            return True
        self._say(every, observation.time_s)
        if found.action == "warn":
            return True
        if found.action in ("pause", "stop") or self._skipped >= MAX_SKIPPED:
            self.finding = found
        return False

    def look_again(self) -> None:
        """Observe while paused; a few good looks in a row end the pause."""
        self.forget()
        self.checks.rest()
        observation = self._body.safe.observe()
        every = self._look(observation)
        found = _gravest(every)
        if found is not None and found.action != "warn":
            self._say(every, observation.time_s)
            self.finding = found
            return
        self._good_looks += 1
        if self._good_looks >= GOOD_LOOKS:
            self.finding, self._skipped = None, 0
            self._say_over()
            self.forget()

    def forget(self) -> None:
        """Let the next observation come when it may: after a pause or a move it follows from nothing."""
        self._last_s = None

    def after_step(self, row: Row, actor: Actor) -> None:
        """Look whether the object still moves, and answer."""
        persistence = self.persistence
        if self._is_blind:
            persistence.overlook()
            return
        persistence.look(row.image, row.proprioception, actor.steps)
        actor.phases.least_share = STUCK_SHARE if persistence.level >= PERTURB else 0.0
        if persistence.level != self._level:
            self._level = persistence.level
            self._tell("stuck", persistence.message)

    def between(self, usual: Callable[[], None] | None) -> Callable[[], bool]:
        """Return what to do between episodes: the usual, or a sweep of the fingers while the object is stuck.

        It returns whether anything was done.
        """

        def do() -> bool:
            if self._level >= SWEEP:
                self._body.sweep()
            elif usual is not None:
                usual()
            else:
                return False
            self.forget()
            return True

        return do

    def resume(self, steps: int) -> None:
        """Go on after people looked: the object is given its time again."""
        self._level = 0
        self.persistence.restart(steps)

    def _look(self, observation: Observation) -> list[Finding]:
        """Return what the robot finds wrong with itself, and the gravest of what the checks find."""
        period_s = 1 / self._body.safe.spec.control_hz
        elapsed_s = period_s if self._last_s is None else observation.time_s - self._last_s
        self._last_s = observation.time_s
        target = self._body.safe.newest_target
        troubles = [Finding(each.name, each.action, each.message) for each in self._body.robot.troubles]
        self.checks.counts[ROBOT] += len(troubles)
        found = self.checks.look(observation, target, elapsed_s)
        return troubles if found is None else [*troubles, found]

    def _say(self, every: list[Finding], now_s: float) -> None:
        """Tell which checks fail, once until they pass again, and not again and again where they flicker."""
        self._good_looks = 0
        for found in every:
            if found.name in self._failing:
                continue
            self._failing.add(found.name)
            if now_s - self._told_s.get(found.name, -TELL_EVERY_S) >= TELL_EVERY_S:
                self._told_s[found.name] = now_s
                self._said.add(found.name)
                self._tell(f"check-{found.name}", found.message)

    def _say_over(self) -> None:
        for name in sorted(self._said):
            self._tell(f"check-{name}", "over: the check passes again")
        self._said.clear()
        self._failing.clear()


def _gravest(found: list[Finding]) -> Finding | None:
    return max(found, key=lambda finding: SEVERITY.index(finding.action), default=None)
