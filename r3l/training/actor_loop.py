"""The actor loop: acts and stores, does what people want, and holds still while something is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from r3l.models.policy import Policies, build_policies
from r3l.robot.base import RobotError, SimulatedRobot
from r3l.robot.env import RobotEnv
from r3l.robot.monitor import Monitor
from r3l.robot.pacing import keeps_real_time
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import ScriptedMoves
from r3l.run.directory import Run
from r3l.run.experience import Row
from r3l.run.files import one_line
from r3l.run.tensors import CheckpointError, Tensors, under_prefix, with_prefix
from r3l.run.truth import TruthRecorder
from r3l.training.actor import Actor, Store
from r3l.training.disk import DiskWatch, await_room
from r3l.training.learner_link import LearnerLink
from r3l.training.parts import Parts
from r3l.training.shared_status import State, Status, Wanted
from r3l.training.store_writer import StoreWriter
from r3l.training.timer import Timer
from r3l.training.world_file import WorldFile

POLL_S, CATCH_UP_S = 0.02, 0.002
RECHECK_EVERY_S = 1.0
"""Seconds between two observations while the robot waits for a failed check to pass."""
TOLD = {
    State.PAUSED: "paused by people",
    State.RELAXED: "relaxed by people",
    State.LEARNER_AWAY: "the learner makes no progress (supervision.learner_away_s); the robot waits for it",
    State.DISK_FULL: "observations cannot be written; the robot waits until they can",
    State.CHECK_FAILED: "an observation failed a check; the robot waits until it passes",
    State.STUCK: "the object is stuck; the robot waits: free it, then r3l resume",
}
"""The holds that are written to the events."""
UNMOVED = (State.PAUSED, State.RELAXED, State.CHECK_FAILED, State.STUCK)
"""A robot that is held for one of these reasons is not moved when the run's time is up."""


@dataclass(frozen=True)
class ActorParts:
    """The parts of an actor loop that differ between an actor process and sync mode."""

    store: Store
    policies: Policies
    seed: int
    learner: LearnerLink | None = None
    """The learner process, if there is one."""
    disk: DiskWatch | None = None
    world: WorldFile | None = None
    """Keeps a simulated world for the next actor process."""


class ActorLoop:
    """Acts on a run's robot, one env step or one moment of waiting per `step`.

    Use as a context manager: leaving it relaxes the robot.
    """

    def __init__(self, parts: Parts, own: ActorParts, is_ended: Callable[[], bool] = lambda: False) -> None:
        """Build the loop; `is_ended`: it is to end at once."""
        self._parts, self._own, self._is_ended = parts, own, is_ended
        self._config, self._status = parts.config, parts.status
        self._stack = ExitStack()
        if isinstance(parts.robot, SimulatedRobot):
            recorder = TruthRecorder(parts.run.truth)
            self._stack.callback(recorder.close)
            parts.robot.on_period = recorder.record
        rig, phases = parts.task.rig, parts.config.phases
        self.robot = make_safe(parts.robot, rig, real_time=parts.config.real_time)
        self._env = RobotEnv(self.robot)
        self._stack.callback(self._env.close)
        self._moves = ScriptedMoves(self.robot, rig, phases.homing_steps, is_interrupted=self._must_not_move)
        self.monitor = Monitor(parts.config, self.robot, parts.goals.train, parts.tell)
        self._rng = np.random.default_rng(parts.config.seed)
        """Draws where a diagnostic reset places the object."""
        usual = self._moves.between(phases.between, self._place)
        self.actor = Actor(
            self._env,
            own.store,
            own.policies,
            phases,
            seed=own.seed,
            between=self.monitor.between(usual, self._moves.sweep),
            inspect=self.monitor.inspect,
        )
        self._unmonitored: Row | None = None
        """The newest row, until the monitor has seen it."""
        self._is_world_due = False
        self._hold: State | None = None
        """Why the robot is held."""
        self._recheck = Timer(RECHECK_EVERY_S)
        self._resumed = 0.0
        self._keeps_real_time = keeps_real_time(parts.config, parts.robot)
        if self._keeps_real_time:
            self._env.on_command = self._do_housekeeping
            self.monitor.checks.background.is_deferred = True

    def __enter__(self) -> ActorLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_over(self) -> bool:
        """Whether all env steps are made, or the loop must end."""
        is_done = self.actor.steps >= self._config.steps or self._status.wanted is Wanted.PARK
        return is_done or self._must_end() or self.monitor.ends_the_run

    def begin(self) -> None:
        """Connect the robot, and continue in the saved world, if there is one."""
        self._env.observe()
        if self._own.world is not None and self._own.world.restore():
            self.robot.forget()
        if self._own.learner is not None:
            self._own.learner.weights.start()
        self._report()
        self._status["actor.ready"] = 1

    def step(self) -> None:
        """Make an env step; where the robot may not act, hold it and wait for a moment."""
        self._status.add("actor.progress")
        reason = self._reason()
        if reason is State.WAITING_FOR_LEARNER and not self._keeps_real_time:  # the world waits too
            self._release()
            self._status["actor.state"] = reason
            time.sleep(CATCH_UP_S)
            return
        if self._hold is not None and reason is not self._hold and self.is_over:
            return  # the run ended during the hold: `end` must see why the robot was held
        if reason is not self._hold:
            self._release()
        if reason is None:
            self._act()
        elif self._hold is None:
            self._begin_hold(reason)
        else:
            self._wait()

    def end(self) -> None:
        """Move the robot home where it may be moved, relax it, and save its world."""
        if not self._must_end() and not self.monitor.ends_the_run and self._hold not in UNMOVED:
            self._move_home()
        self.robot.relax()
        self._is_world_due = True
        self._save_world()
        self._report()
        if self.monitor.ends_the_run:
            self._status["actor.failure"] = 1

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what sync mode needs to continue in the same world: tensors, and JSON values."""
        tensors, meta = self.actor.state()
        tensors = with_prefix("actor", tensors)
        if isinstance(self._parts.robot, SimulatedRobot):
            tensors["world"] = torch.frombuffer(bytearray(self._parts.robot.save_world()), dtype=torch.uint8)
        return tensors, {"actor": meta, "env": self._env.state(), "rng": self._rng.bit_generator.state}

    def restore(self, tensors: Tensors, meta: dict[str, Any], *, is_newest: bool) -> None:
        """Continue from `state`, in the same episode where the experience store has no row after it.

        Raises:
            CheckpointError: this is no state of this run.
        """
        robot, goes_on = self._parts.robot, False
        try:
            if isinstance(robot, SimulatedRobot):
                robot.restore_world(tensors["world"].numpy().tobytes())
                goes_on = is_newest
            if goes_on:
                self._env.restore(meta["env"])
            else:
                self.robot.forget()
            self.actor.restore(under_prefix("actor", tensors), meta["actor"], same_segment=goes_on)
            self._rng.bit_generator.state = meta["rng"]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RobotError) as error:
            raise CheckpointError(f"the checkpoint is not of this run ({one_line(error)}); see r3l check") from error

    def _act(self) -> None:
        self._status["actor.state"] = State.ACTING
        if self._own.learner is not None:
            self._own.learner.weights.update(self._own.policies)
        self._unmonitored = self.actor.step()
        self._is_world_due |= self.actor.episode is None
        if not self._keeps_real_time:
            self._do_housekeeping()
        elif self._unmonitored is None:  # perhaps nothing was commanded
            self._report()

    def _do_housekeeping(self) -> None:
        """Do the work that is not urgent; in real time right after a command, when most of the period is left."""
        row, self._unmonitored = self._unmonitored, None
        if row is not None:
            self.actor.phases.min_perturbation_share = self.monitor.after_step(
                row.image, row.proprioception, self.actor.steps
            )
            self._status["actor.phase"] = row.phase
        self.monitor.checks.background.compare()
        if self._own.disk is not None:
            self._own.disk.poll()
        self._save_world()
        self._report()

    def _reason(self) -> State | None:
        """Return why the robot may not act now."""
        if self._status.wanted in (Wanted.PAUSE, Wanted.RELAX):
            return State.PAUSED if self._status.wanted is Wanted.PAUSE else State.RELAXED
        if self._own.disk is not None and self._own.disk.problem is not None:
            return State.DISK_FULL
        if self.monitor.trouble is not None:
            return State.CHECK_FAILED
        if self.monitor.is_stuck:
            return State.STUCK
        if self._own.learner is not None:
            return self._own.learner.hold(self.actor.steps, in_episode=self.actor.episode is not None)
        return None

    def _begin_hold(self, reason: State) -> None:
        """Relax the robot, after a move home where people paused it."""
        self.actor.break_off()
        self._hold = reason
        if reason is State.PAUSED and self.monitor.trouble is None:
            self._move_home()
        self._try(self.robot.relax, "relax")
        self._status["actor.state"] = reason
        if reason in TOLD:
            detail = None
            if reason is State.DISK_FULL and self._own.disk is not None:
                detail = self._own.disk.problem
            elif reason is State.CHECK_FAILED and self.monitor.trouble is not None:
                detail = self.monitor.trouble.name
            self._parts.tell("pause", TOLD[reason] + (f" ({detail})" if detail else ""))
        self._recheck.restart()
        self._resumed = self._status["resumed"]

    def _wait(self) -> None:
        """Wait for a moment of the hold."""
        self._do_housekeeping()
        time.sleep(POLL_S)
        if self._status["resumed"] != self._resumed:
            self._resumed = self._status["resumed"]
            self.monitor.resume(self.actor.steps)
        if self._hold is State.CHECK_FAILED and self._recheck.is_due():
            self._try(self.monitor.recheck, "robot", "; trying again")

    def _release(self) -> None:
        """End the hold, if there is one."""
        reason, self._hold = self._hold, None
        if reason is not None:
            self.monitor.forget_time()
        if reason in TOLD:
            self._parts.tell("resume", f"over: {TOLD[reason].split(';')[0]}")

    def _try(self, do: Callable[[], None], kind: str, advice: str = "") -> None:
        """Do something with the robot; an error is told and ends nothing."""
        try:
            do()
        except RobotError as error:
            self._parts.tell(kind, f"{error}{advice}")

    def _move_home(self) -> None:
        self._try(self._moves.home, "robot", "; it is relaxed where it is")

    def _place(self) -> None:
        """Place the object anew: a diagnostic reset between two episodes."""
        self.robot.place(self._parts.task.random_states(1, self._rng)[0], self._rng)

    def _must_end(self) -> bool:
        return self._is_ended() or self._status.wanted is Wanted.STOP

    def _must_not_move(self) -> bool:
        """Return whether a scripted move must be broken off; each of its control periods counts as progress."""
        self._status.add("actor.progress")
        return self._must_end() or self._status.wanted is Wanted.RELAX

    def _save_world(self) -> None:
        if self._is_world_due and self._own.world is not None:
            self._own.world.save()
        self._is_world_due = False

    def _report(self) -> None:
        status, robot, own = self._status, self.robot, self._own
        status["actor.steps"] = self.actor.steps
        status["actor.unwritten"] = 0 if own.disk is None else own.disk.unwritten
        status["actor.version"] = 0 if own.learner is None else own.learner.weights.version
        status["actor.stuck_level"] = self.monitor.stuck.level
        for name, count in self.monitor.checks.counts.items():
            status[f"check.{name}"] = count
        counts = robot.counts()
        for name in ("position_limited", "speed_limited", "refused", "commands"):
            status[f"actor.{name}"] = counts[name]
        punctuality = robot.punctuality
        if punctuality is not None:
            status["actor.on_time"], status["actor.overruns"] = punctuality.on_time, punctuality.overruns
            status["actor.worst_late_s"] = punctuality.worst_late_s
        vitals = robot.vitals
        if vitals is not None:
            for name, value in asdict(vitals).items():
                status[f"actor.{name}"] = value


def act(run: Run, status: Status, is_ended: Callable[[], bool]) -> None:
    """Be the actor process of a run: act until the run is over or stopped, then leave the robot relaxed.

    `is_ended`: this process is to end at once, by a signal or because its supervisor is gone.
    """
    await_room(run, status, is_ended)
    with ExitStack() as stack:
        parts = Parts.load(run, status)
        robot, config = parts.robot, parts.config
        writer = StoreWriter(run.experience, parts.image_shape)
        stack.callback(writer.close)
        correlation = config.sac.noise_correlation
        policies, _ = build_policies(config, robot.spec, torch.device("cpu"), noise_correlation=correlation)
        learner = LearnerLink(parts)
        stack.callback(learner.weights.close)
        world = None
        if isinstance(robot, SimulatedRobot):
            world = WorldFile(run.world, robot, parts.tell)
            stack.callback(world.close)
        seed = config.seed + writer.last()[0]  # a restarted actor draws other numbers
        own = ActorParts(writer, policies, seed, learner, DiskWatch(run, writer), world)
        loop = stack.enter_context(ActorLoop(parts, own, is_ended))
        loop.begin()
        while not loop.is_over:
            loop.step()
        loop.end()
        if not is_ended():  # else the supervisor starts another actor
            status["actor.state"] = State.ENDED
