"""The start of every process of a supervised run: `python -m r3l.training.worker ROLE RUN`. People call r3l instead."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType

from r3l.config.errors import UserError
from r3l.models.torch_setup import tune_process
from r3l.robot.base import RobotError
from r3l.robot.pacing import keeps_real_time
from r3l.run.directory import Run
from r3l.run.experience import StoreError
from r3l.run.tensors import CheckpointError
from r3l.task.registry import robot_of
from r3l.training.shared_status import SharedStatus, State

ORPHAN_LIMIT_S = 5.0
"""A process without a supervisor must relax the robot and end within this time."""
SWITCH_S = 1e-4
"""Max time that a thread of the actor keeps Python's lock from the control thread."""
ENDED, BROKEN = 0, 1


class Lifeline:
    """Knows whether this process is to end: it got a signal, or its supervisor is gone."""

    def __init__(self, parent: int | None) -> None:
        """`parent` is the reading end of a pipe whose other end only the supervisor holds."""
        self._is_cut = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._cut)
        if parent is not None:
            threading.Thread(target=self._wait, args=(parent,), name="lifeline", daemon=True).start()

    def is_cut(self) -> bool:
        """Return whether to end now."""
        return self._is_cut

    def _cut(self, number: int, frame: FrameType | None) -> None:
        self._is_cut = True

    def _wait(self, parent: int) -> None:
        os.read(parent, 1)
        self._is_cut = True
        threading.Event().wait(ORPHAN_LIMIT_S)
        os._exit(BROKEN)


def main(arguments: list[str] | None = None) -> int:
    """Run one role of a run; return 0 when its work is done."""
    parser = argparse.ArgumentParser(prog="python -m r3l.training.worker", description=__doc__)
    parser.add_argument("role", choices=list(ROLES))
    parser.add_argument("run", type=Path)
    parser.add_argument("--parent", type=int, help="descriptor of the supervisor's lifeline")
    parser.add_argument("--step", type=int, default=0, help="snapshot to evaluate")
    options = parser.parse_args(arguments)
    tune_process()
    try:
        ROLES[options.role](Run.open(options.run), Lifeline(options.parent).is_cut, options.step)
    except (UserError, CheckpointError, StoreError, RobotError, OSError) as error:
        print(f"r3l {options.role}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return BROKEN
    return ENDED


def act(run: Run, is_cut: Callable[[], bool], step: int) -> None:
    """Be the run's actor."""
    from r3l.training import actor_loop

    status = sign_in(run, "actor")
    sys.setswitchinterval(SWITCH_S)
    if not is_timed(run):
        os.nice(5)  # the learner sets the pace
    actor_loop.act(run, status, is_cut)


def learn(run: Run, is_cut: Callable[[], bool], step: int) -> None:
    """Be the run's learner."""
    from r3l.training import learner_loop

    status = sign_in(run, "learner")
    if is_timed(run):
        give_way()
    learner_loop.learn(run, status, is_cut)


def evaluate(run: Run, is_cut: Callable[[], bool], step: int) -> None:
    """Evaluate the snapshot of `step` for the success curve."""
    from r3l.evaluation.curve import SuccessCurve

    os.nice(10)
    with closing(SuccessCurve(run)) as curve:
        curve.evaluate(step)


def report(run: Run, is_cut: Callable[[], bool], step: int) -> None:
    """Write the run's report."""
    from r3l.evaluation.report.document import write_report

    os.nice(10)
    write_report(run, run.report)


def is_timed(run: Run) -> bool:
    """Return whether the robot's time goes on by itself: then its commands come before the learner's updates."""
    return keeps_real_time(run.config, robot_of(run.config, run.rig))


def give_way() -> None:
    """Let this process run only on a core that no other process wants.

    The lowest priority is not enough: Linux lets the running process finish its time slice of some milliseconds.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def sign_in(run: Run, role: str) -> SharedStatus:
    """Return the run's status, in which this process reports that it starts."""
    status = SharedStatus(run.shared)
    status[f"{role}.ready"] = 0
    status[f"{role}.pid"] = os.getpid()
    status[f"{role}.state"] = State.STARTING
    status.add(f"{role}.progress")
    return status


ROLES: dict[str, Callable[[Run, Callable[[], bool], int], None]] = {
    "actor": act,
    "learner": learn,
    "evaluate": evaluate,
    "report": report,
}

if __name__ == "__main__":
    sys.exit(main())
