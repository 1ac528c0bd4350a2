"""The actor process: acts and stores, follows what people want, and holds still while something is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np
import torch

from r3l.models.policy import build_policies
from r3l.robot.base import RobotError, SimulatedRobot
from r3l.robot.env import RobotEnv
from r3l.robot.monitor import Monitor
from r3l.robot.pacing import keeps_real_time
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import ScriptedMoves
from r3l.run import files
from r3l.run.directory import Run
from r3l.run.disk_space import RESERVE_BYTES, can_write, is_full, quota_bytes
from r3l.run.experience import Row
from r3l.run.files import write_file
from r3l.run.goals import load_goals
from r3l.run.truth import TruthRecorder
from r3l.task.registry import load_task, robot_of
from r3l.training.actor import Actor
from r3l.training.policy_updates import Subscription
from r3l.training.shared_status import SharedStatus, State, Wanted
from r3l.training.store_writer import StoreWriter

POLL_S = 0.02
LOOK_EVERY_S = 1.0
"""Between two looks at the disk, and at what a failed check sees while the robot waits."""
AWAY_S = 1.0
"""A learner without an update for so long is away, not slow: nobody waits for it in real time."""
MAX_WORLD_BYTES = 64 << 20
MAX_UNWRITTEN = 50
"""Observations not on the disk yet, above which the robot waits."""
TOLD = {
    State.PAUSED: "paused by people",
    State.RELAXED: "relaxed by people",
    State.LEARNER_AWAY: "the learner makes no progress (supervision.learner_away_s); the robot waits for it",
    State.DISK_FULL: "observations cannot be written; the robot waits until they can",
    State.CHECK_FAILED: "an observation failed a check; the robot waits until it passes",
    State.STUCK: "the object is stuck; the robot waits: free it, then r3l resume",
}
"""Holds that people read about in the events."""

UNMOVED = (State.PAUSED, State.RELAXED, State.CHECK_FAILED, State.STUCK)
"""A robot that is relaxed for one of these is not moved when the run's time is up."""


def await_room(run: Run, shared: SharedStatus, is_ended: Callable[[], bool]) -> None:
    """Wait until the disk takes observations, or the run is to end: without it there is nothing to begin with."""
    while not is_ended() and shared.wanted < Wanted.PARK:
        if can_write(run.folder) and not is_full(run.folder, quota_bytes(run.config)):
            return
        shared["actor.state"] = State.DISK_FULL
        shared.add("actor.progress")
        time.sleep(LOOK_EVERY_S)


class ActorProcess:
    """Everything the actor process is made of. Use as a context manager: leaving it relaxes the robot."""

    def __init__(self, run: Run, shared: SharedStatus, is_ended: Callable[[], bool]) -> None:
        """Build the parts; `is_ended` says that this process is to end at once (a signal, or no supervisor)."""
        self._run, self._shared, self._is_ended = run, shared, is_ended
        self._config = config = run.config
        self._stack = ExitStack()
        self._task = task = load_task(config.task)
        rig = task.rig
        camera = rig.camera
        robot = robot_of(run.config, run.rig)
        self._safe = make_safe(robot, rig, real_time=config.real_time)
        self._env = RobotEnv(self._safe)
        self._stack.callback(self._env.close)
        self._keeps_real_time = keeps_real_time(config, robot)
        homing_steps = config.phases.homing_steps
        self._moves = ScriptedMoves(self._safe, rig, homing_steps, is_interrupted=self._moves_on)
        self._rng = np.random.default_rng(config.seed)
        """Draws where diagnostic resets place the object."""
        self._writer = StoreWriter(run.experience, (camera.height, camera.width, 3))
        self._stack.callback(self._writer.close)
        self._disk: ThreadPoolExecutor = self._stack.enter_context(ThreadPoolExecutor(1, "world"))
        self._saved: Future[None] | None = None
        if isinstance(robot, SimulatedRobot):
            recorder = TruthRecorder(run.truth)
            self._stack.callback(recorder.close)
            robot.on_period = recorder.record
        goals = load_goals(run.goals, camera, task.minimum_goals)
        self._monitor = Monitor(config, self._safe, goals.train, run.event)
        device = torch.device("cpu")
        correlation = config.sac.noise_correlation
        policies, _ = build_policies(config, robot.spec, device, noise_correlation=correlation)
        self._policies = policies
        self._weights = Subscription(
            run.acting_weights, config, robot.spec, device, lambda message: self._tell("weights", message)
        )
        self._actor = Actor(
            self._env,
            self._writer,
            policies,
            config.phases,
            seed=config.seed + self._writer.last()[0],  # a restarted actor does not draw the same again
            between=self._monitor.between(self._between(), self._moves.sweep),
            inspect=self._monitor.inspect,
        )
        self._counted: dict[str, tuple[float, float]] = {}
        """Counters on the board as they were seen to change last, and when."""
        self._disk_looked_s = 0.0
        self._is_disk_full = False
        self._newest: Row | None = None
        """What care has not looked at yet."""
        self._holds: State | None = None
        """Why the robot does not act."""
        self._is_world_due = False
        self._env.on_command = self._use_slack
        self._monitor.checks.background.is_deferred = True

    def __enter__(self) -> ActorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Act until the run is over or somebody stops it."""
        shared, actor = self._shared, self._actor
        self._env.reset()
        self._restore_world()
        self._weights.start()
        self._stack.callback(self._weights.close)
        self._note()
        shared["actor.ready"] = 1
        while not self._is_over():
            shared.add("actor.progress")
            reason = self._reason()
            if reason is not None:
                self._hold(reason)
                continue
            shared["actor.state"] = State.ACTING
            self._weights.update(self._policies)
            self._newest = actor.step()
            if self._newest is None:  # nothing was commanded, perhaps
                self._note()
            self._is_world_due |= actor.episode is None
        self._end()

    def _use_slack(self) -> None:
        """Do what takes time right after a command: until the next one there is a whole control period."""
        row, self._newest = self._newest, None
        if row is not None:
            share = self._monitor.after_step(row.image, row.proprioception, self._actor.steps)
            self._actor.phases.least_share = share
            self._shared["actor.phase"] = row.phase
        self._monitor.checks.background.compare()
        self._look_at_disk()
        if self._is_world_due:
            self._save_world()
        self._note()

    def _between(self) -> Callable[[], None] | None:
        usual = self._moves.between(self._config.phases.between, self._place)
        if usual is None:
            return None

        def do() -> None:
            self._shared.add("actor.progress")
            usual()

        return do

    def _place(self) -> None:
        self._safe.place(self._task.random_states(1, self._rng)[0], self._rng)

    def _is_over(self) -> bool:
        done = self._actor.steps >= self._config.steps
        return done or self._must_end() or self._shared.wanted is Wanted.PARK or self._monitor.ends_the_run

    def _must_end(self) -> bool:
        return self._is_ended() or self._shared.wanted is Wanted.STOP

    def _must_relax(self) -> bool:
        return self._must_end() or self._shared.wanted is Wanted.RELAX

    def _moves_on(self) -> bool:
        """Return whether a scripted move must be broken off; each of its control periods is progress."""
        self._shared.add("actor.progress")
        return self._must_relax()

    def _end(self) -> None:
        """Park where that is wanted, relax, write what is pending. What was relaxed by people or fault is not moved."""
        if not self._must_end() and not self._monitor.ends_the_run and self._holds not in UNMOVED:
            self._go_home()
        self._safe.relax()
        self._save_world()
        self._note()
        if self._monitor.ends_the_run:
            self._shared["actor.failure"] = 1
        if not self._is_ended():  # else the supervisor starts another one
            self._shared["actor.state"] = State.ENDED

    def _relax(self) -> None:
        try:
            self._safe.relax()
        except RobotError as error:
            self._tell("relax", str(error))

    def _go_home(self) -> None:
        try:
            self._moves.home()
        except RobotError as error:
            self._tell("robot", f"{error}; it is relaxed where it is")

    def _reason(self) -> State | None:
        """Return why the robot may not act now."""
        shared = self._shared
        if shared.wanted in (Wanted.PAUSE, Wanted.RELAX):
            return State.PAUSED if shared.wanted is Wanted.PAUSE else State.RELAXED
        if self._is_full():
            return State.DISK_FULL
        if self._monitor.trouble is not None:
            return State.CHECK_FAILED
        if self._monitor.is_stuck:
            return State.STUCK
        explored = self._actor.steps >= self._config.phases.exploration_steps
        if explored and not self._weights.version and not self._weights.is_ready:
            return State.WAITING_FOR_WEIGHTS
        if self._is_learner_away():
            return State.LEARNER_AWAY
        if explored and self._is_ahead():
            return State.WAITING_FOR_LEARNER
        return None

    def _is_ahead(self) -> bool:
        """Return whether the learner's updates must catch up first.

        In real time that waits for an episode's end, and for a learner that updates: not while it re-encodes.
        """
        if self._keeps_real_time:
            is_away = not self._shared["learner.ready"] or self._idle_s("learner.updates") > AWAY_S
            if is_away or self._actor.episode is not None:
                return False
        if not self._config.update_ratio:
            return False
        learned = self._config.phases.exploration_steps + self._shared["learner.updates"] / self._config.update_ratio
        is_ahead = self._actor.steps >= learned + self._config.supervision.lead_steps
        return is_ahead or not self._shared["learner.ready"]

    def _is_learner_away(self) -> bool:
        return self._idle_s("learner.progress") > self._config.supervision.learner_away_s

    def _idle_s(self, slot: str) -> float:
        """Return for how long a counter on the board has stood still, s."""
        count, now = self._shared[slot], time.monotonic()
        if count != self._counted.get(slot, (-1.0, now))[0]:
            self._counted[slot] = (count, now)
        return now - self._counted[slot][1]

    def _is_full(self) -> bool:
        """Return whether the disk takes nothing more."""
        is_stuck = self._writer.failure is not None or self._writer.unwritten > MAX_UNWRITTEN
        return is_stuck or self._is_disk_full

    def _look_at_disk(self) -> None:
        """Look for room, now and then."""
        now = time.monotonic()
        if now - self._disk_looked_s >= LOOK_EVERY_S:
            self._disk_looked_s = now
            margin = RESERVE_BYTES * (2 if self._is_disk_full else 1)
            self._is_disk_full = is_full(self._run.folder, quota_bytes(self._config), reserve_bytes=margin)

    def _hold(self, reason: State) -> None:
        """Hold still until the reason is over: relaxed, but where the world stands still meanwhile."""
        if reason is State.WAITING_FOR_LEARNER and not self._keeps_real_time:
            self._shared["actor.state"] = reason
            time.sleep(POLL_S / 10)
            return
        self._actor.break_off()
        self._holds = reason
        if reason is State.PAUSED and self._monitor.trouble is None:
            self._go_home()
        self._relax()
        self._shared["actor.state"] = reason
        if reason in TOLD:
            self._tell("pause", f"{TOLD[reason]}{self._detail(reason)}")
        looked_s, resumed = time.monotonic(), self._shared["resumed"]
        while not self._is_over() and self._reason() is reason:
            self._shared.add("actor.progress")
            self._use_slack()
            time.sleep(POLL_S)
            if self._shared["resumed"] != resumed:
                resumed = self._shared["resumed"]
                self._monitor.resume(self._actor.steps)
            if reason is State.CHECK_FAILED and time.monotonic() - looked_s >= LOOK_EVERY_S:
                looked_s = time.monotonic()
                self._look_again()
        self._monitor.forget_time()
        if not self._is_over():
            self._holds = None
        if reason in TOLD and not self._is_over():
            self._tell("resume", f"over: {TOLD[reason].split(';')[0]}")

    def _detail(self, reason: State) -> str:
        if reason is State.DISK_FULL:
            return f" ({self._writer.failure or 'no room left on the disk or in the quota (quota_gib)'})"
        if reason is State.CHECK_FAILED and self._monitor.trouble is not None:
            return f" ({self._monitor.trouble.name})"
        return ""

    def _look_again(self) -> None:
        try:
            self._monitor.recheck()
        except RobotError as error:
            self._tell("robot", f"{error}; trying again")

    def _tell(self, kind: str, message: str) -> None:
        """Write an event; on a full disk that must not stop the robot's care."""
        try:
            self._run.event(kind, message)
        except OSError as error:
            print(f"{kind}: {message} (events cannot be written: {error})", flush=True)

    def _note(self) -> None:
        """Write on the board how things are."""
        shared, safe = self._shared, self._safe
        shared["actor.steps"] = self._actor.steps
        shared["actor.unwritten"] = self._writer.unwritten
        shared["actor.version"] = self._weights.version
        shared["actor.stuck_level"] = self._monitor.stuck.level
        for name, count in self._monitor.checks.counts.items():
            shared[f"check.{name}"] = count
        counters = safe.counts()
        for name in ("position_limited", "speed_limited", "refused", "commands"):
            shared[f"actor.{name}"] = counters[name]
        found = safe.punctuality
        if found is not None:
            shared["actor.on_time"], shared["actor.overruns"] = found.on_time, found.overruns
            shared["actor.worst_late_s"] = found.worst_late_s
        vitals = safe.vitals
        if vitals is not None:
            for name, value in asdict(vitals).items():
                shared[f"actor.{name}"] = value

    def _save_world(self) -> None:
        """Keep a simulated world for the process that comes after this one, as a real one keeps itself."""
        robot = self._safe.unwrapped
        self._is_world_due = False
        if not isinstance(robot, SimulatedRobot) or (self._saved is not None and not self._saved.done()):
            return
        if self._saved is not None and self._saved.exception() is not None:
            print(f"the world cannot be saved: {self._saved.exception()}", flush=True)
        self._saved = self._disk.submit(write_file, self._run.world, robot.save_world())

    def _restore_world(self) -> None:
        robot = self._safe.unwrapped
        if isinstance(robot, SimulatedRobot) and self._run.world.exists():
            try:
                robot.restore_world(files.read(self._run.world, MAX_WORLD_BYTES))
            except (RobotError, OSError, ValueError) as error:
                self._tell("world", f"{error}; the world begins anew")
            self._safe.forget()
