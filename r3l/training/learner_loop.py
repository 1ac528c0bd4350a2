"""The learner process: follows the experience store, updates what is owed, publishes, checkpoints, watches itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from tqdm import tqdm

from r3l.learner.coverage import CELLS, Coverage
from r3l.learner.judged_episodes import JudgedEpisodes
from r3l.learner.learner import Learner
from r3l.learner.reward_health import Health, Learning
from r3l.learner.rollback import Recovery
from r3l.models.judge import load_judge
from r3l.models.judge_training import fit_after_exploration
from r3l.models.networks import channels_first
from r3l.models.torch_setup import pick_device
from r3l.robot.pacing import leaves_a_core
from r3l.run.checkpoint import restore_newest, save_checkpoint
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore, StoreError
from r3l.run.goals import load_goals
from r3l.run.metrics import MetricsWriter
from r3l.run.tensors import CheckpointError, Tensors
from r3l.run.weights import publish, read
from r3l.task.registry import load_task, robot_of
from r3l.training.shared_status import SharedStatus, State, Wanted

if TYPE_CHECKING:
    from r3l.training.sync import Training

if TYPE_CHECKING:
    from r3l.training.sync import Training

IDLE_S, POLL_S = 0.002, 0.02
STORE_S = 2.0
"""An experience store that was just made can be opened by then."""
FOLLOWED_AT_ONCE = 256
"""Rows taken in before the updates that they owe are made."""
RECENT = 1000
"""Rows over which coverage is measured."""
DISK_RETRY_S = 30.0


class Timer:
    """Says now and then that it is time."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last_s = every_s, time.monotonic()

    def is_due(self) -> bool:
        """Return whether the time has passed; if so it begins anew."""
        now = time.monotonic()
        if now - self._last_s < self._every_s:
            return False
        self._last_s = now
        return True

    def delay(self, seconds: float) -> None:
        """Be due again in so many seconds."""
        self._last_s = time.monotonic() + seconds - self._every_s


class LearnerProcess:
    """Everything the learner process is made of. Use as a context manager."""

    def __init__(self, run: Run, shared: SharedStatus, is_ended: Callable[[], bool]) -> None:
        """Build the parts; `is_ended` says that this process is to end at once (a signal, or no supervisor)."""
        self.run, self._shared, self._is_ended = run, shared, is_ended
        self.config = config = run.config
        self._stack = ExitStack()
        task = load_task(config.task)
        camera = task.rig.camera
        self.goals = load_goals(run.goals, camera, task.minimum_goals)
        robot = robot_of(run.config, run.rig)
        self.learner = Learner(
            config,
            robot.spec,
            channels_first(self.goals.train),
            device=pick_device(config.device),
            true_reward=task.true_reward if config.reads_truth else None,
            overlaps=leaves_a_core(config, robot),
        )
        self._image_shape = (camera.height, camera.width, 3)
        self._metrics = MetricsWriter(run.metrics, run.tensorboard, METRICS_EVERY)
        self._stack.callback(self._metrics.close)
        self._health = Health(self, self._metrics)
        self._recovery = Recovery(self.learner, run.checkpoints, self._tell)
        self.learner.on_progress = self._beat
        self._is_whole = False
        """Whether the learner is in a state that a checkpoint may be written of."""
        self._judged: JudgedEpisodes | None = None
        self._coverage: Coverage | None = None
        self._publications = Timer(config.supervision.publish_every_s)
        self._checkpoints = Timer(config.supervision.checkpoint_every_s)
        self._version = 0
        self._unwritten: set[str] = set()
        """What the disk did not take."""

    def __enter__(self) -> LearnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def work(self) -> None:
        """Learn until the run is over or somebody stops it; then write a last checkpoint."""
        try:
            self._load()
            while not self._is_over():
                self._shared.add("learner.progress")
                self._turn()
        except StoppedError:
            if not self._is_whole or self._recovery.is_going_back:
                self._sign_off()
                return
        self._finish()

    def _load(self) -> None:
        shared, learner, run = self._shared, self.learner, self.run
        shared["learner.state"] = State.LOADING
        self._store = self._await_store()
        self._stack.callback(self._store.close)
        if restore_newest(run.checkpoints, lambda message: self._tell("checkpoint", message), self._restore):
            shared["learner.checkpoint_step"] = learner.steps
        if not run.snapshot_path(0).exists() and not learner.updates:
            self._guarded("weights", lambda: run.save_weights(0, learner.weights()))
        try:
            self._version = read(run.acting_weights).version
        except CheckpointError:
            self._version = 0  # none are published yet, or they are damaged: published anew below
        self._is_whole = True
        if learner.is_pretrained:
            self._publish()
            self._guarded("judge", lambda: fit_judge(self, self._beat))
        self._begin_looking()
        self._note()
        shared["learner.ready"] = 1

    def _restore(self, tensors: Tensors, meta: dict[str, Any]) -> None:
        self.learner.restore(tensors, meta.get("learner"), self._store)
        self._recovery.restore(meta.get("watch"))

    def _await_store(self) -> ExperienceStore:
        """Open the experience store, once the actor has made it."""
        until_s: float | None = None
        while True:
            self._beat()
            if self.run.experience.exists():
                until_s = until_s or time.monotonic() + STORE_S
                try:
                    return ExperienceStore(self.run.experience, self._image_shape, readonly=True)
                except StoreError:
                    if time.monotonic() > until_s:
                        raise
            time.sleep(POLL_S)

    def _beat(self) -> None:
        """Tell that work goes on; StoppedError where it must not."""
        self._shared.add("learner.progress")
        if self._is_stopped():
            raise StoppedError

    def _is_stopped(self) -> bool:
        return self._is_ended() or self._shared.wanted in (Wanted.STOP, Wanted.PARK)

    def _is_over(self) -> bool:
        learner, config = self.learner, self.config
        has_learned = learner.is_pretrained or config.steps < config.phases.exploration_steps
        is_done = has_learned and learner.steps >= config.steps and learner.owed() <= 0
        return is_done or self._is_stopped() or bool(self._shared["learner.failure"])

    def _turn(self) -> None:
        """Do the next thing: an update that is owed, rows to take in, or nothing for a moment."""
        learner, shared = self.learner, self._shared
        if learner.owed() > 0:
            shared["learner.state"] = State.LEARNING
            self._update()
        elif not self._follow():
            shared["learner.state"] = State.WAITING_FOR_STEPS
            time.sleep(IDLE_S)
        if not learner.is_pretrained and learner.steps >= self.config.phases.exploration_steps:
            self._pretrain()
        if learner.is_pretrained and self._publications.is_due():
            self._publish()
        if self._checkpoints.is_due():
            self._save()
        self._note()

    def _update(self) -> None:
        learner = self.learner
        metrics = learner.update()
        if learner.updates % 10 == 0:
            self._metrics.add(metrics)
        if self._recovery.after_update(metrics, self._store):
            self._begin_anew()
        self._note_recovery()

    def _follow(self) -> bool:
        """Take in new rows and do what is due at their steps; return whether there were any."""
        learner, before, sequence = self.learner, self.learner.steps, self.learner.sequence
        learner.follow(self._store, FOLLOWED_AT_ONCE)
        if self._judged is not None:
            self._judged.follow()
        for step in range(before + 1, learner.steps + 1):
            self._at(step)
        return learner.sequence > sequence

    def _at(self, step: int) -> None:
        """Do what is due at an env step."""
        config = self.config
        if step % METRICS_EVERY == 0:
            self._metrics.add(self._numbers())
            self._guarded("metrics", lambda: self._metrics.on_step(step))
        self._guarded("health", lambda: self._health.on_step(step))
        if config.evaluate_every and step % config.evaluate_every == 0:
            self._guarded("weights", lambda: self.run.save_weights(step, self.learner.weights()))
        if step % config.checkpoint_every == 0:
            self._save()

    def _numbers(self) -> dict[str, float]:
        """Return what is measured now and then beside the updates' metrics."""
        found = self.learner.reward_check()
        names = ("commands", "refused", "position_limited", "speed_limited")
        found |= {f"safety/{name}": self._shared[f"actor.{name}"] for name in names}
        if self._coverage is not None:
            replay = self.learner.replay
            found["coverage"] = self._coverage.measure(replay.latents[replay.newest(RECENT)].cpu().numpy())
        if self._judged is not None:
            found |= self._judged.metrics()
        return found

    def _pretrain(self) -> None:
        """Fit encoder and classifier, then the judge, on what exploration saw; what is done by then outlives a stop."""
        self._shared["learner.state"] = State.PRETRAINING
        self._save()

        def show(done: int, total: int) -> None:
            self._shared["learner.pretrained_share"] = done / total
            self._beat()
            if self._checkpoints.is_due():
                self._save()

        self._metrics.add(self.learner.pretrain(show))
        self._save()
        if not self.learner.is_pretrained:  # it broke, and begins again
            return
        self._publish()
        self._guarded("judge", lambda: fit_judge(self, self._beat))
        self._begin_looking()

    def _begin_looking(self) -> None:
        """Begin to judge episodes and to measure coverage, once there is something to do it with."""
        replay = self.learner.replay
        if not self.learner.is_pretrained:
            return
        judge = load_judge(self.run)
        if judge is not None:
            self._judged = JudgedEpisodes(replay, judge)
        rows = replay.rows_of("exploration")
        if len(rows) >= CELLS and replay.latents.shape[1]:
            self._coverage = Coverage(replay.latents[rows].cpu().numpy())

    def _publish(self) -> None:
        """Publish the weights that act; a disk that takes nothing leaves the last ones in place."""

        def write() -> None:
            weights = self.learner.weights(averaged=False)
            publish(self.run.acting_weights, weights, version=self._version + 1, step=self.learner.steps)
            self._version += 1

        self._guarded("acting weights", write)

    def _save(self) -> None:
        """Write a checkpoint of numbers that are all finite."""
        tensors, meta = self.learner.state()
        if not self._recovery.may_save(tensors, self._store):
            self._note_recovery()
            if not self._recovery.has_failed:
                self._begin_anew()
            return
        keep, everything = self.config.keep_checkpoints, {"learner": meta, "watch": self._recovery.state()}
        if self._guarded(
            "checkpoint",
            lambda: save_checkpoint(self.run.checkpoints, self.learner.steps, tensors, everything, keep=keep),
        ):
            self._shared["learner.checkpoint_step"] = self.learner.steps
            self._recovery.saved()

    def _guarded(self, what: str, write: Callable[[], object]) -> bool:
        """Write to the disk; that it fails is told once, until what could not be written can be."""
        try:
            write()
        except OSError as error:
            if not self._unwritten:
                self._tell("disk", f"the learner cannot write ({error}); it tries again: free the disk")
            self._unwritten.add(what)
            self._checkpoints.delay(DISK_RETRY_S)
            return False
        if what in self._unwritten:
            self._unwritten.discard(what)
            if not self._unwritten:
                self._tell("disk", "over: the learner writes again")
        return True

    def _tell(self, kind: str, message: str) -> None:
        try:
            self.run.event(kind, message)
        except OSError as error:
            print(f"{kind}: {message} (events cannot be written: {error})", flush=True)

    def _begin_anew(self) -> None:
        """After going back: what acts is what is learned on from."""
        self._begin_looking()
        if self.learner.is_pretrained:
            self._publish()

    def _note_recovery(self) -> None:
        self._shared["learner.rollbacks"] = self._recovery.times
        if self._recovery.has_failed:
            self._shared["learner.failure"] = 1

    def _note(self) -> None:
        shared, learner = self._shared, self.learner
        shared["learner.steps"], shared["learner.updates"] = learner.steps, learner.updates
        shared["learner.version"] = self._version

    def _finish(self) -> None:
        """Write the last checkpoint and the weights that are evaluated; nothing of a learner that broke."""
        if not self._shared["learner.failure"]:
            self._save()
            if self.learner.is_pretrained:
                self._guarded("weights", lambda: self.run.save_weights(self.learner.steps, self.learner.weights()))
        self._note()
        self._sign_off()

    def _sign_off(self) -> None:
        if not self._is_ended():  # else the supervisor starts another one
            self._shared["learner.state"] = State.ENDED


class FailedError(RuntimeError):
    """The run had to end: a check failed whose action is to stop, or learning broke for good."""


class StoppedError(Exception):
    """A stop was asked for in the middle of what takes long."""


def fit_judge(learning: Learning, on_progress: Callable[[], None] = lambda: None) -> None:
    """Fit the judge on what exploration saw and save it, unless there is one; `on_progress` may break it off."""
    seen = learning.learner.exploration_images()
    if learning.run.judge.exists() or not len(seen):
        return
    goals, seed = learning.goals, learning.config.seed
    judge = fit_after_exploration(goals.train, goals.held_out, seen, seed, on_progress=on_progress)
    judge.save(learning.run.judge)


METRICS_EVERY = 250


class Watcher(Protocol):
    """Something that watches a run; the loop does not know what it does."""

    def on_step(self, step: int) -> None:
        """Called after each env step and its updates."""
        ...

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Called with the metrics of some updates."""
        ...


class Numbers:
    """Watches a run: metrics of updates, the reward of the newest steps, the safety counters, a progress bar."""

    def __init__(self, training: Training, metrics: MetricsWriter, bar: tqdm[Any]) -> None:
        self._training, self._metrics, self._bar = training, metrics, bar

    def on_step(self, step: int) -> None:
        """Move the bar; now and then write the numbers."""
        self._bar.update(step - self._bar.n)
        if step % METRICS_EVERY == 0:
            counts = {f"safety/{name}": float(count) for name, count in self._training.safe.counts().items()}
            self._metrics.add(counts | self._training.learner.reward_check())
        self._metrics.on_step(step)

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Take in metrics."""
        self._metrics.add(metrics)


class Checkpoints:
    """Watches a run: writes a checkpoint at the configured steps."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_step(self, step: int) -> None:
        """Save when it is time."""
        if step % self._training.config.checkpoint_every == 0:
            self._training.save()

    def on_update(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Nothing to keep."""
