"""Train: build the parts of a run and hand them to the loop; in sync mode actor and learner take turns."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from r3l.evaluation.curve import Curves
from r3l.learner.learner import Learner
from r3l.learner.reward_health import Health
from r3l.learner.rollback import Recovery
from r3l.models.networks import channels_first
from r3l.models.torch_setup import pick_device
from r3l.robot.base import RobotError, SimulatedRobot
from r3l.robot.env import RobotEnv
from r3l.robot.monitor import Monitor
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import ScriptedMoves
from r3l.run.checkpoint import restore_newest, save_checkpoint
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore
from r3l.run.files import one_line
from r3l.run.goals import load_goals
from r3l.run.metrics import MetricsWriter
from r3l.run.progress import progress_bar
from r3l.run.tensors import CheckpointError, Tensors, under_prefix, with_prefix
from r3l.run.truth import TruthRecorder
from r3l.task.registry import load_task, robot_of
from r3l.training.actor import Actor
from r3l.training.learner_loop import METRICS_EVERY, Checkpoints, FailedError, Numbers, StoppedError, Watcher, fit_judge

LOOK_EVERY_S = 1.0


class Training:
    """The parts of a run in sync mode, built in one place. Use as a context manager: leaving it relaxes the robot."""

    def __init__(self, run: Run, stack: ExitStack) -> None:
        config = run.config
        self.run, self.config = run, config
        self.device = pick_device(config.device)
        self.task = load_task(config.task)
        rig = self.task.rig
        self.goals = load_goals(run.goals, rig.camera, self.task.minimum_goals)
        self.robot = robot_of(run.config, run.rig)
        self.safe = make_safe(self.robot, rig, real_time=config.real_time)
        self.env = RobotEnv(self.safe)
        self.rng = np.random.default_rng(config.seed)
        """Draws where diagnostic resets place the object."""
        self.store = ExperienceStore(run.experience, (rig.camera.height, rig.camera.width, 3))
        stack.callback(self.store.close)
        if isinstance(self.robot, SimulatedRobot):
            recorder = TruthRecorder(run.truth)
            stack.callback(recorder.close)
            self.robot.on_period = recorder.record
        stack.callback(self.env.close)
        self.learner = Learner(
            config,
            self.robot.spec,
            channels_first(self.goals.train),
            device=self.device,
            true_reward=self.task.true_reward if config.reads_truth else None,
        )
        self.monitor = Monitor(config, self.safe, self.goals.train, self._tell)
        moves = ScriptedMoves(self.safe, rig, config.phases.homing_steps)
        usual = moves.between(config.phases.between, self._place)
        self.actor = Actor(
            self.env,
            self.store,
            self.learner.policies(),
            config.phases,
            seed=config.seed,
            between=self.monitor.between(usual, moves.sweep),
            inspect=self.monitor.inspect,
        )
        self.recovery = Recovery(self.learner, run.checkpoints, self._tell)
        self.env.reset()

    def _place(self) -> None:
        self.safe.place(self.task.random_states(1, self.rng)[0], self.rng)

    @property
    def has_failed(self) -> bool:
        """Whether the run cannot go on: a check failed whose action is to stop, learning broke for good, or the object
        is stuck, since nobody can say here that it was freed."""
        return self.monitor.ends_the_run or self.recovery.has_failed or self.monitor.is_stuck

    def save(self) -> None:
        """Write a checkpoint of everything that a new process needs to go on, where all numbers are finite."""
        tensors, meta = self.learner.state()
        if self.recovery.has_failed or not self.recovery.may_save(tensors, self.store):
            return
        actor_tensors, actor_meta = self.actor.state()
        tensors |= with_prefix("actor", actor_tensors)
        if isinstance(self.robot, SimulatedRobot):
            tensors["world"] = torch.frombuffer(bytearray(self.robot.save_world()), dtype=torch.uint8)
        everything: dict[str, Any] = {"learner": meta, "actor": actor_meta, "env": self.env.state()}
        everything["watch"] = self.recovery.state()
        everything["rng"] = self.rng.bit_generator.state
        save_checkpoint(self.run.checkpoints, self.actor.steps, tensors, everything, keep=self.config.keep_checkpoints)
        self.recovery.saved()

    def restore(self) -> None:
        """Go on from the newest good checkpoint, if there is one; steps stored after it are learned from again."""
        restore_newest(self.run.checkpoints, self._warn, self._restore)
        self.learner.follow(self.store)

    def _restore(self, tensors: Tensors, meta: dict[str, Any]) -> None:
        self.learner.restore(tensors, meta.get("learner"), self.store)
        try:
            self._restore_acting(tensors, meta)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RobotError) as error:
            raise CheckpointError(f"the checkpoint is not of this run ({one_line(error)}); see r3l check") from error

    def _restore_acting(self, tensors: Tensors, meta: dict[str, Any]) -> None:
        self.recovery.restore(meta.get("watch"))
        is_same = False
        if isinstance(self.robot, SimulatedRobot):
            self.robot.restore_world(tensors["world"].numpy().tobytes())
            is_same = self.store.last()[0] == self.learner.sequence
        if is_same:
            self.env.restore(meta["env"])
        else:
            self.safe.forget()
        self.actor.restore(under_prefix("actor", tensors), meta["actor"], same_segment=is_same)
        self.rng.bit_generator.state = meta["rng"]

    def publish(self) -> int:
        """Write the weights that act at this step; return the step."""
        self.run.save_weights(self.actor.steps, self.learner.weights())
        return self.actor.steps

    def _warn(self, message: str) -> None:
        self._tell("checkpoint", message)

    def _tell(self, kind: str, message: str) -> None:
        self.run.event(kind, message)
        tqdm.write(f"{kind}: {message}")


def loop(training: Training, watchers: list[Watcher], is_stopped: Callable[[], bool]) -> None:
    """Take turns until the configured number of env steps: act, follow, pretrain once, update what is owed."""
    actor, learner, config = training.actor, training.learner, training.config
    has_judge = training.run.judge.exists()
    while not is_stopped() and not training.has_failed:
        if not learner.is_pretrained and learner.steps >= config.phases.exploration_steps:
            training.save()
            pretrain(training, watchers, is_stopped)
        if learner.is_pretrained and not has_judge:
            fit_judge(training)
            has_judge = True
        while learner.owed() > 0 and not is_stopped() and not training.has_failed:
            metrics = learner.update()
            if training.recovery.after_update(metrics, training.store):
                learner.follow(training.store)
            if learner.updates % 10 == 0:
                for watcher in watchers:
                    watcher.on_update(metrics)
        if actor.steps >= config.steps or is_stopped():
            break
        row = actor.step()
        if training.has_failed:
            break
        if training.monitor.trouble is not None:
            wait_until_well(training, is_stopped)
        if row is None:
            continue
        actor.phases.least_share = training.monitor.after_step(row.image, row.proprioception, actor.steps)
        learner.follow(training.store)
        for watcher in watchers:
            watcher.on_step(actor.steps)


def wait_until_well(training: Training, is_stopped: Callable[[], bool]) -> None:
    """Relax and look again every second until what failed a check passes."""
    training.safe.relax()
    while training.monitor.trouble is not None and not is_stopped():
        time.sleep(LOOK_EVERY_S)
        training.monitor.recheck()
    training.actor.break_off()


def pretrain(training: Training, watchers: list[Watcher], is_stopped: Callable[[], bool]) -> None:
    """Fit encoder and classifier on what exploration saw; StoppedError breaks off between two updates."""
    with progress_bar("encoder", "update", 1) as bar:

        def show(done: int, total: int) -> None:
            if is_stopped():
                raise StoppedError
            bar.total = total
            bar.update(done - bar.n)

        metrics = training.learner.pretrain(show)
    for watcher in watchers:
        watcher.on_update(metrics)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current step; a second one interrupts."""
    stopped = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        tqdm.write("stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(run: Run) -> bool:
    """Run or resume `run` up to its configured steps; return whether it got there (False: stopped by a signal).

    The robot is relaxed and the store synced however this ends; a stop by signal writes a checkpoint first.
    FailedError says that the run had to end.
    """
    with run.lock():
        return train_locked(run)


def train_locked(run: Run) -> bool:
    """Do as `train` does with a run whose lock the caller holds."""
    with stop_on_signal() as is_stopped, ExitStack() as stack:
        training = Training(run, stack)
        training.restore()
        start = training.actor.steps
        run.event("start", f"at step {start} of {run.config.steps}")
        metrics = MetricsWriter(run.metrics, run.tensorboard, METRICS_EVERY)
        stack.callback(metrics.close)
        curves = Curves(training, metrics)
        stack.callback(curves.close)
        bar = stack.enter_context(progress_bar(run.folder.name, "step", run.config.steps, start))
        if start == 0:
            curves.evaluate()
        watchers: list[Watcher] = [
            Numbers(training, metrics, bar),
            curves,
            Health(training, metrics),
            Checkpoints(training),
        ]
        is_done = False
        with suppress(StoppedError):
            loop(training, watchers, is_stopped)
            is_done = not is_stopped() and training.actor.steps >= run.config.steps
        if training.has_failed:
            run.event("failed", f"at step {training.actor.steps}; the event before says why")
            raise FailedError(f"the run cannot go on; the last lines of {run.events} say why")
        training.save()
        training.publish()
        run.event("end" if is_done else "stop", f"at step {training.actor.steps}; safety {training.safe.counts()}")
        return is_done
