"""Sync mode: actor and learner take turns in one process, so that a seed decides every weight."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import FrameType
from typing import Any

from tqdm import tqdm

from r3l.evaluation.curve import SuccessCurve
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore
from r3l.run.progress import progress_bar
from r3l.training.actor_loop import ActorLoop, ActorParts
from r3l.training.learner_loop import LearnerLoop, StoppedError, make_learner
from r3l.training.parts import Parts
from r3l.training.shared_status import Status
from r3l.training.signals import signal_handlers


class FailedError(RuntimeError):
    """The run had to end: a check failed whose action is to stop, the object is stuck, or learning broke for good."""


def train(run: Run) -> bool:
    """Run or resume `run` up to its configured steps; return whether it got there (False: stopped by a signal).

    The robot is relaxed and the store synced however this ends; a stop by signal writes a checkpoint first.

    Raises:
        FailedError: the run had to end.
    """
    with run.lock():
        return train_locked(run)


def train_locked(run: Run) -> bool:
    """Do as `train` does with a run whose lock the caller holds."""
    with stop_on_signal() as is_stopped, ExitStack() as stack:
        parts = Parts.load(run, ShownStatus(run, stack), tqdm.write)
        store = stack.enter_context(closing(ExperienceStore(run.experience, parts.image_shape)))
        learner = make_learner(parts.config, parts.task, parts.robot, parts.goals)
        acting = stack.enter_context(ActorLoop(parts, ActorParts(store, learner.policies(), run.config.seed)))
        evaluate = None
        if run.config.evaluate_every and isinstance(parts.robot, SimulatedRobot):
            evaluate = stack.enter_context(closing(SuccessCurve(run))).evaluate
        learning = stack.enter_context(LearnerLoop(parts, learner, is_stopped, actor=acting, evaluate=evaluate))
        acting.begin()
        learning.load(store)
        actor = acting.actor
        run.event("start", f"at step {actor.steps} of {run.config.steps}")
        with suppress(StoppedError):
            learning.begin()
            take_turns(acting, learning)
        if has_failed(acting, learning):
            run.event("failed", f"at step {actor.steps}; the event before says why")
            raise FailedError(f"the run cannot go on; the last lines of {run.events} say why")
        learning.finish()
        is_done = not is_stopped() and actor.steps >= run.config.steps
        run.event("end" if is_done else "stop", f"at step {actor.steps}; safety {acting.robot.counts()}")
        return is_done


def take_turns(acting: ActorLoop, learning: LearnerLoop) -> None:
    """Let the actor make an env step whenever the learner owes no update, until the run is over or has failed."""
    while not (learning.is_over or has_failed(acting, learning)):
        if not learning.turn():
            acting.step()
            learning.follow()


def has_failed(acting: ActorLoop, learning: LearnerLoop) -> bool:
    """Return whether the run must end. An object that is stuck ends it: sync mode has no `r3l resume`."""
    return acting.monitor.ends_the_run or acting.monitor.is_stuck or learning.has_failed


class ShownStatus(Status):
    """The status of a sync run, with progress bars for env steps and pretraining."""

    def __init__(self, run: Run, stack: ExitStack) -> None:
        """Show what is set in the status until `stack` is closed."""
        super().__init__()
        self._stack = stack
        self._bars: dict[str, tqdm[Any]] = {}
        self._labels = {
            "actor.steps": (run.folder.name, "step", run.config.steps),
            "learner.pretrained_share": ("encoder", "%", 100),
        }

    def __setitem__(self, slot: str, value: float) -> None:
        super().__setitem__(slot, value)
        if slot in self._labels:
            done = round(100 * value) if slot == "learner.pretrained_share" else int(value)
            if slot not in self._bars:
                self._bars[slot] = self._stack.enter_context(progress_bar(*self._labels[slot], done))
            self._bars[slot].update(done - self._bars[slot].n)


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

    with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), ask)):
        yield lambda: stopped
