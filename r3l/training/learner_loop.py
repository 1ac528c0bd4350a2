"""The learner loop: follows the experience store, makes the updates that are owed, publishes, saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from r3l.config.schema import Config
from r3l.learner.coverage import CELLS, Coverage
from r3l.learner.judged_episodes import JudgedEpisodes
from r3l.learner.learner import Learner
from r3l.learner.reward_health import RewardHealth
from r3l.learner.rollback import Recovery
from r3l.models.judge import load_judge
from r3l.models.judge_training import fit_after_exploration
from r3l.models.networks import channels_first
from r3l.models.torch_setup import pick_device
from r3l.robot.base import Robot
from r3l.robot.pacing import leaves_a_core
from r3l.run.checkpoint import restore_newest, save_checkpoint
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore, StoreError
from r3l.run.goals import Goals
from r3l.run.jsonl import read_jsonl
from r3l.run.metrics import MetricsWriter
from r3l.run.tensors import Tensors
from r3l.task.base import Task
from r3l.training.disk import Writes
from r3l.training.parts import Parts
from r3l.training.policy_updates import Publication
from r3l.training.shared_status import State, Status, Wanted
from r3l.training.timer import Timer

if TYPE_CHECKING:  # a learner process needs no actor
    from r3l.training.actor_loop import ActorLoop

IDLE_S, POLL_S = 0.002, 0.02
STORE_LIMIT_S = 2.0
"""A new experience store can be opened after at most this time."""
ROWS_PER_TURN = 256
"""Max rows that the learner process takes in before it makes the updates that these rows owe."""
METRICS_EVERY = 250
UPDATES_PER_METRIC = 10
"""The metrics of every tenth update are averaged."""
RECENT_ROWS = 1000
"""Rows over which coverage is measured."""
DISK_RETRY_S = 30.0


class StoppedError(Exception):
    """A stop was requested during long work."""


class LearnerLoop:
    """Learns from a run's experience, one piece of work per `turn`. Use as a context manager.

    A learner process publishes the weights that act, and saves by steps, by the clock and after pretraining. In sync
    mode the actor shares the weights, takes turns with the learner and is part of the checkpoints, which are saved by
    steps alone: nothing depends on the clock, so that the seed decides every weight.
    """

    def __init__(
        self,
        parts: Parts,
        learner: Learner,
        is_stopped: Callable[[], bool],
        *,
        actor: ActorLoop | None = None,
        evaluate: Callable[[int], Mapping[str, float]] | None = None,
    ) -> None:
        """Build the loop.

        Args:
            is_stopped: whether the loop is to end now.
            actor: the loop that takes turns with this loop in sync mode; None in a learner process.
            evaluate: evaluates the snapshot of a step and returns metrics; None where another process does it.
        """
        self._parts, self._learner, self._is_stopped = parts, learner, is_stopped
        self._actor, self._evaluate = actor, evaluate
        self._run, self._config, self._status = parts.run, parts.config, parts.status
        self._stack = ExitStack()
        self._metrics = MetricsWriter(parts.run.metrics, parts.run.tensorboard, METRICS_EVERY)
        self._stack.callback(self._metrics.close)
        self._health = RewardHealth(learner, channels_first(parts.goals.held_out), parts.config.health, parts.tell)
        self._health.recall(line for line in read_jsonl(parts.run.metrics) if "health/auc" in line)
        self._recovery = Recovery(learner, parts.run.checkpoints, parts.tell)
        self._writes = Writes(parts.tell)
        self._judged: JudgedEpisodes | None = None
        self._coverage: Coverage | None = None
        self._publication: Publication | None = None
        self._checkpoints = Timer(math.inf)
        if actor is None:
            supervision = parts.config.supervision
            self._publication = Publication(parts.run.acting_weights, supervision.publish_every_s)
            self._checkpoints = Timer(supervision.checkpoint_every_s)
            learner.on_progress = self.beat
        self._is_loaded = False

    def __enter__(self) -> LearnerLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def beat(self) -> None:
        """Count progress; raise StoppedError when the loop is to end now."""
        self._status.add("learner.progress")
        if self._is_stopped() or self.has_failed:
            raise StoppedError

    @property
    def is_over(self) -> bool:
        """Whether every owed update of the run is made, or the loop must end."""
        learner, config = self._learner, self._config
        has_learned = learner.is_pretrained or config.steps < config.phases.exploration_steps
        is_done = has_learned and learner.steps >= config.steps and learner.owed() <= 0
        return is_done or self._is_stopped() or self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether learning broke for good."""
        return self._recovery.has_failed

    def load(self, store: ExperienceStore) -> None:
        """Continue from the newest good checkpoint, if there is one."""
        self._store = store
        self._status["learner.state"] = State.LOADING
        if restore_newest(self._run.checkpoints, lambda text: self._parts.tell("checkpoint", text), self._restore):
            self._status["learner.checkpoint_step"] = self._learner.steps
        self._catch_up()
        self._is_loaded = True

    def begin(self) -> None:
        """Take the snapshot of the untrained policy, or publish what is learned so far."""
        learner = self._learner
        if not self._run.snapshot_path(0).exists() and not learner.updates:
            self._save_snapshot(0, evaluated=True)
        if learner.is_pretrained:
            self._begin_acting()
        self._report()
        self._status["learner.ready"] = 1

    def turn(self) -> bool:
        """Make an update that is owed, or take in new rows, or pretrain; return False where there was nothing to do."""
        learner, status = self._learner, self._status
        status.add("learner.progress")
        has_worked = True
        if learner.owed() > 0:
            status["learner.state"] = State.LEARNING
            self._update()
        elif not self.follow():
            status["learner.state"] = State.WAITING_FOR_STEPS
            has_worked = False
        if not learner.is_pretrained and learner.steps >= self._config.phases.exploration_steps:
            self._pretrain()
            has_worked = True
        if self._publication is not None and learner.is_pretrained and self._publication.is_due():
            self._publish()
        if self._checkpoints.is_due():
            self._save()
        self._report()
        return has_worked

    def follow(self) -> bool:
        """Take in new rows and do what is due at their steps; return whether there were any."""
        learner, before, sequence = self._learner, self._learner.steps, self._learner.sequence
        learner.follow(self._store, ROWS_PER_TURN)
        if self._judged is not None:
            self._judged.follow()
        for step in range(before + 1, learner.steps + 1):
            self._at(step)
        return learner.sequence > sequence

    def finish(self) -> None:
        """Write the last checkpoint and snapshot, unless the learner is half loaded, half restored or broken."""
        if self.has_failed:
            self._status["learner.failure"] = 1
        if not self._is_loaded or self._recovery.is_going_back:
            return
        if not self.has_failed:
            self._save()
            self._save_snapshot(self._learner.steps)
        self._report()

    def _at(self, step: int) -> None:
        """Do what is due at an env step."""
        config = self._config
        if step % METRICS_EVERY == 0:
            self._metrics.add(self._measure())
            self._write("metrics", lambda: self._metrics.on_step(step))
        if config.evaluate_every and step % config.evaluate_every == 0:
            self._save_snapshot(step, evaluated=True)
        if self._health.is_due(step):
            self._write("health", lambda: self._metrics.write(step, self._health.measure(load_judge(self._run))))
        if step % config.checkpoint_every == 0:
            self._save()

    def _update(self) -> None:
        learner = self._learner
        metrics = learner.update()
        if learner.updates % UPDATES_PER_METRIC == 0:
            self._metrics.add(metrics)
        if self._recovery.after_update(metrics, self._store):
            self._begin_again()

    def _pretrain(self) -> None:
        """Fit encoder, classifier and judge to what exploration saw; a stop keeps what is done."""
        self._status["learner.state"] = State.PRETRAINING
        self._save()

        def on_progress(done: int, total: int) -> None:
            self._status["learner.pretrained_share"] = done / total
            self.beat()
            if self._checkpoints.is_due():
                self._save()

        self._metrics.add(self._learner.pretrain(on_progress))
        if self._actor is None:
            self._save()
        if self._learner.is_pretrained:  # else the numbers broke, and pretraining begins again
            self._begin_acting()

    def _begin_acting(self) -> None:
        """Publish the pretrained policies, fit the judge, begin to measure what the policies do."""
        self._publish()
        self._write("judge", self._fit_judge)
        self._begin_measuring()

    def _begin_again(self) -> None:
        """After a rollback, let the restored weights act."""
        self._catch_up()
        if self._learner.is_pretrained:
            self._begin_measuring()
            self._publish()

    def _catch_up(self) -> None:
        """In sync mode, take in at once the rows whose steps were dealt with before a restart or a rollback."""
        if self._actor is not None:
            self._learner.follow(self._store)

    def _fit_judge(self) -> None:
        """Fit the judge to what exploration saw and save it, unless there is one."""
        seen, goals = self._learner.exploration_images(), self._parts.goals
        if len(seen) and not self._run.judge.exists():
            seed = self._config.seed
            judge = fit_after_exploration(goals.train, goals.held_out, seen, seed, on_progress=self.beat)
            judge.save(self._run.judge)

    def _begin_measuring(self) -> None:
        """Judge episodes and measure coverage from now on."""
        replay = self._learner.replay
        judge = load_judge(self._run)
        if judge is not None:
            self._judged = JudgedEpisodes(replay, judge)
        rows = replay.rows_of("exploration")
        if len(rows) >= CELLS and replay.latents.shape[1]:
            self._coverage = Coverage(replay.latents[rows].cpu().numpy())

    def _measure(self) -> dict[str, float]:
        """Return the metrics that are not those of an update."""
        found = self._learner.reward_check()
        names = ("commands", "refused", "position_limited", "speed_limited")
        found |= {f"safety/{name}": self._status[f"actor.{name}"] for name in names}
        if self._coverage is not None:
            replay = self._learner.replay
            found["coverage"] = self._coverage.measure(replay.latents[replay.newest(RECENT_ROWS)].cpu().numpy())
        if self._judged is not None:
            found |= self._judged.metrics()
        return found

    def _publish(self) -> None:
        """Publish the weights that act; where the disk takes nothing, the last ones stay in place."""
        publication, learner = self._publication, self._learner
        if publication is not None:
            self._write("acting weights", lambda: publication.publish(learner.weights(averaged=False), learner.steps))

    def _save_snapshot(self, step: int, *, evaluated: bool = False) -> None:
        """Write the weights of a step for evaluation; in sync mode also evaluate a point of the success curve."""

        def write() -> None:
            self._run.save_weights(step, self._learner.weights())
            if evaluated and self._evaluate is not None:
                self._metrics.write(step, self._evaluate(step))

        self._write("weights", write)

    def _save(self) -> None:
        """Write a checkpoint whose numbers are all finite; where they are not, roll back."""
        if self.has_failed:
            return
        tensors, meta = self._learner.state()
        if not self._recovery.may_save(tensors, self._store):
            if not self.has_failed:
                self._begin_again()
            return
        everything = {"learner": meta, "watch": self._recovery.state()}
        if self._actor is not None:
            acting_tensors, acting_meta = self._actor.state()
            tensors |= acting_tensors
            everything |= acting_meta
        step, keep = self._learner.steps, self._config.keep_checkpoints
        write = partial(save_checkpoint, self._run.checkpoints, step, tensors, everything, keep=keep)
        if self._write("checkpoint", write):
            self._status["learner.checkpoint_step"] = step
            self._recovery.saved()

    def _restore(self, tensors: Tensors, meta: dict[str, Any]) -> None:
        self._learner.restore(tensors, meta.get("learner"), self._store)
        self._recovery.restore(meta.get("watch"))
        if self._actor is not None:
            is_newest = self._store.last()[0] == self._learner.sequence
            self._actor.restore(tensors, meta, is_newest=is_newest)

    def _write(self, name: str, write: Callable[[], object]) -> bool:
        """Write to the disk; after a failure a checkpoint is tried again in DISK_RETRY_S.

        In sync mode a failure ends the run: nothing there depends on the clock.
        """
        if self._actor is not None:
            write()
            return True
        is_written = self._writes.attempt(name, write)
        if not is_written:
            self._checkpoints.restart(DISK_RETRY_S)
        return is_written

    def _report(self) -> None:
        status, learner = self._status, self._learner
        status["learner.steps"], status["learner.updates"] = learner.steps, learner.updates
        status["learner.rollbacks"] = self._recovery.times
        status["learner.version"] = 0 if self._publication is None else self._publication.version
        if self.has_failed:
            status["learner.failure"] = 1


def make_learner(config: Config, task: Task, robot: Robot, goals: Goals) -> Learner:
    """Return a run's untrained learner."""
    return Learner(
        config,
        robot.spec,
        channels_first(goals.train),
        device=pick_device(config.device),
        true_reward=task.true_reward if config.reads_truth else None,
        overlaps=leaves_a_core(config, robot),
    )


def learn(run: Run, status: Status, is_ended: Callable[[], bool]) -> None:
    """Be the learner process of a run: learn until the run is over or stopped, then write a last checkpoint.

    `is_ended`: this process is to end at once, by a signal or because its supervisor is gone.
    """

    def is_stopped() -> bool:
        return is_ended() or status.wanted in (Wanted.STOP, Wanted.PARK)

    with ExitStack() as stack:
        parts = Parts.load(run, status)
        learner = make_learner(parts.config, parts.task, parts.robot, parts.goals)
        loop = stack.enter_context(LearnerLoop(parts, learner, is_stopped))
        with suppress(StoppedError):
            loop.load(stack.enter_context(closing(await_store(parts, loop.beat))))
            loop.begin()
            while not loop.is_over:
                if not loop.turn():
                    time.sleep(IDLE_S)
        loop.finish()
        if not is_ended():  # else the supervisor starts another learner
            status["learner.state"] = State.ENDED


def await_store(parts: Parts, beat: Callable[[], None]) -> ExperienceStore:
    """Open the experience store once the actor has made it; `beat` is called while waiting."""
    path, limit_s = parts.run.experience, math.inf
    while True:
        beat()
        if path.exists():
            limit_s = min(limit_s, time.monotonic() + STORE_LIMIT_S)
            try:
                return ExperienceStore(path, parts.image_shape, readonly=True)
            except StoreError:
                if time.monotonic() > limit_s:
                    raise
        time.sleep(POLL_S)
