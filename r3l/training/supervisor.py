"""The supervisor: keeps actor and learner running, does what people ask, and ends the run with the robot relaxed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

from tqdm import tqdm

from r3l.config.errors import UserError
from r3l.config.schema import MANY
from r3l.robot.base import RobotError, SimulatedRobot
from r3l.run.directory import Run
from r3l.run.progress import Unblocked, progress_bar
from r3l.run.state import planned_end
from r3l.task.registry import robot_of
from r3l.training.control_socket import ControlServer
from r3l.training.evaluations import Evaluations
from r3l.training.shared_status import SharedStatus, State, Wanted
from r3l.training.signals import signal_handlers
from r3l.training.systemd import Notifier
from r3l.training.watched_process import WatchedProcess, start_worker

POLL_S = 0.05
RELAX_LIMIT_S = 5.0
HUNG_S = 2.0
"""An actor that is to stop and makes no progress for this time is killed, and the robot relaxed in its place."""
FINISH_LIMIT_S = 600.0
"""Max time for the last evaluations, and for the report."""
DONE, STOPPED, FAILED = "done", "stopped", "failed"
ANSWERS = {
    "pause": "pausing: the fingers move home, then the robot relaxes; go on with r3l resume",
    "relax": "relaxing the robot where it is; go on with r3l resume",
    "resume": "going on",
    "stop": "stopping: the robot relaxes and a checkpoint is written",
}
WANTED = {"pause": Wanted.PAUSE, "relax": Wanted.RELAX, "resume": Wanted.RUN, "stop": Wanted.STOP}


class Supervisor:
    """Supervises one run from its start to its end. The caller holds the run's lock."""

    def __init__(self, run: Run, *, deadline_epoch_s: float | None, lock: int) -> None:
        """Supervise `run` until its steps are done, or until the deadline; `lock` is the lock's descriptor."""
        self._run, self._config = run, run.config
        self._lock, self._deadline_epoch_s = lock, deadline_epoch_s
        self._notifier = Notifier()
        self._failure: str | None = None
        """Why the run must end."""
        self._asked_again = threading.Event()
        """People asked a second time to stop: evaluations and report are skipped."""
        self._is_finishing = False
        self._progress = 0.0
        self._is_simulated = isinstance(robot_of(run.config, run.rig), SimulatedRobot)

    def run(self) -> str:
        """Keep the run going; return DONE, STOPPED (by people), or FAILED with the reason in the events."""
        run = self._run
        with ExitStack() as stack:
            wanted = SharedStatus.left_wanted(run.shared)  # people may have paused a run whose supervisor died
            self._status = status = SharedStatus.create(run.shared)
            status["wanted"] = wanted
            status["supervisor.pid"] = os.getpid()
            status["started_epoch_s"] = time.time()
            status["deadline_epoch_s"] = self._deadline_epoch_s or 0.0
            self._lifeline, writing = os.pipe()
            stack.callback(os.close, self._lifeline)
            stack.callback(os.close, writing)
            limits = self._config.supervision
            self._actor = self._watch("actor", limits.actor_limit_s)
            self._processes = (self._actor, self._watch("learner", limits.learner_limit_s))
            stack.enter_context(signal_handlers(self._handlers()))
            stack.enter_context(ControlServer(run.control, self._obey))
            stack.callback(self._end_processes)
            self._evaluations = Evaluations(run, self._lifeline)
            stack.callback(self._evaluations.close)
            self._tell("start", f"actor and learner under supervision, {self._planned_end()}")
            total, done = self._config.steps, int(status["actor.steps"])
            bar = progress_bar(run.folder.name, "step", total if total < MANY else None, done, Unblocked(sys.stderr))
            self._bar = stack.enter_context(bar)
            self._notifier.ready("running")
            while not self._is_over:
                self._check()
                time.sleep(POLL_S)
            return self._end()

    @property
    def _is_over(self) -> bool:
        is_ended = self._failure is not None or self._status.wanted >= Wanted.PARK
        return is_ended or all(process.has_ended for process in self._processes)

    def _watch(self, name: str, limit_s: float) -> WatchedProcess:
        return WatchedProcess(name, self._run, self._status, limit_s, lock=self._lock, lifeline=self._lifeline)

    def _planned_end(self) -> str:
        if self._deadline_epoch_s is None and self._config.steps < MANY:
            return f"up to step {self._config.steps}"
        return planned_end(MANY, self._deadline_epoch_s)

    def _check(self) -> None:
        """Check both processes and the deadline once, and show where the run is."""
        for process in self._processes:
            if self._status[f"{process.name}.failure"]:
                self._failure = f"the {process.name} cannot go on; the event before says why"
                return
            trouble = process.trouble()
            if trouble is not None:
                self._restart(process, trouble)
            process.start_when_due()
        if self._deadline_epoch_s is not None and time.time() >= self._deadline_epoch_s:
            self._want(Wanted.PARK)
        self._evaluate()
        self._show()

    def _restart(self, process: WatchedProcess, trouble: str) -> None:
        """Make sure that the process is gone and the robot relaxed, and plan the next start."""
        process.kill()
        if process is self._actor:
            self._relax_robot()
        pause_s = process.plan_restart()
        log_end = process.log_end
        log_end = f"; its log ends: {log_end}" if log_end else ""
        self._tell("restart", f"{trouble}; starting again in {pause_s:.1f} s{log_end}")
        if process.is_exhausted:
            self._failure = (
                f"the {process.name} was restarted {self._config.supervision.max_restarts} times within an hour "
                f"(supervision.max_restarts); see {self._run.logs / process.name}.log"
            )

    def _relax_robot(self) -> None:
        """Relax a robot whose process is gone. A simulated robot is gone with its process."""
        if self._is_simulated:
            return
        robot = robot_of(self._run.config, self._run.rig)

        def relax() -> None:
            try:
                robot.relax_for()
            except (RobotError, OSError) as error:
                self._tell("relax", f"the robot could not be relaxed ({error}); take its power away")

        thread = threading.Thread(target=relax, name="relax", daemon=True)
        thread.start()
        thread.join(RELAX_LIMIT_S)
        if thread.is_alive():
            self._tell("relax", f"relaxing the robot took longer than {RELAX_LIMIT_S:.0f} s; take its power away")

    def _obey(self, word: str) -> str:
        """Do what a person asks through the control socket; return the answer."""
        status = self._status
        if self._is_finishing or status.wanted >= Wanted.PARK:  # the end can only be hurried
            if status.wanted is Wanted.STOP or word not in ("relax", "stop"):
                raise UserError("the run is ending already; wait for it, then r3l train --resume goes on")
            if word == "stop":
                self._asked_again.set()
            self._want(Wanted.STOP)
            answer = "the robot is relaxed at once; the run was ending already"
        elif word == "resume" and status.wanted is Wanted.RUN and status.state("actor") is not State.STUCK:
            return "the run is not paused by people; r3l status says what it waits for"
        else:
            self._want(WANTED[word])
            answer = ANSWERS[word]
        self._tell("asked", word)
        return answer

    def _want(self, wanted: Wanted) -> None:
        self._status["wanted"] = max(wanted, self._status.wanted) if wanted >= Wanted.PARK else wanted
        if wanted is Wanted.RUN:
            self._status.add("resumed")

    def _handlers(self) -> dict[int, Callable[[int, FrameType | None], None] | signal.Handlers]:
        """Return signal handlers: SIGINT and SIGTERM stop the run; a closed terminal and Ctrl-Z change nothing."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self._is_finishing or self._status.wanted >= Wanted.PARK:
                self._asked_again.set()
            self._want(Wanted.STOP)

        ignored = signal.SIG_IGN
        return {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: ignored, signal.SIGTSTP: ignored}

    def _show(self) -> None:
        """Show where the run is, to people, and to systemd if the run made progress."""
        status = self._status
        done, state = int(status["actor.steps"]), status.state("actor").name.lower().replace("_", " ")
        try:
            self._bar.set_postfix_str(f"{state}, {int(status['learner.updates'])} updates", refresh=False)
            self._bar.update(done - self._bar.n)
        except OSError:  # the terminal is gone
            self._bar.disable = True
        progress = sum(status[f"{process.name}.progress"] for process in self._processes)
        if progress != self._progress:
            self._progress = progress
            self._notifier.progress()
            self._notifier.status(f"step {done} {planned_end(self._config.steps, self._deadline_epoch_s)}, {state}")

    def _evaluate(self) -> bool:
        """Let snapshots be evaluated; return whether an evaluation is running."""
        return self._is_simulated and self._evaluations.go_on()

    def _end(self) -> str:
        """End both processes; after a regular end also evaluate the last weights and write the report."""
        is_regular = self._failure is None and self._status.wanted is not Wanted.STOP
        if not is_regular:
            self._notifier.stopping()
            self._want(Wanted.STOP)
        self._is_finishing = is_regular
        self._await_end()
        if self._failure is not None:
            self._tell("failed", f"{self._failure}; the robot is relaxed")
            return FAILED
        self._show()
        if is_regular:
            self._wait_while(self._evaluate)
        steps, updates = int(self._status["actor.steps"]), int(self._status["learner.updates"])
        self._tell("end" if is_regular else "stop", f"at step {steps}, update {updates}; the robot is relaxed")
        if not is_regular:
            return STOPPED
        self._write_report()  # after the event, for the report says how the run ended
        self._notifier.stopping()
        return DONE

    def _write_report(self) -> None:
        """Write the report, unless people skip it."""
        if self._asked_again.is_set():
            return
        report = start_worker("report", self._run, self._lifeline)
        self._wait_while(lambda: report.poll() is None)
        if report.poll() is None:
            report.kill()
        if report.wait() != 0:
            self._tell("report", f"no report was written; r3l report {self._run.folder} tries again")

    def _wait_while(self, is_running: Callable[[], bool]) -> None:
        """Wait for a process beside the run, at most FINISH_LIMIT_S, and only until people ask again to stop."""
        limit_s = time.monotonic() + FINISH_LIMIT_S
        while time.monotonic() < limit_s and not self._asked_again.is_set() and is_running():
            self._notifier.progress()
            time.sleep(POLL_S)

    def _await_end(self) -> None:
        """Give both processes their time to end, then kill them; one that still loads is killed at once on a stop."""
        status = self._status
        for process in self._processes:
            if status.wanted is Wanted.STOP and not status[f"{process.name}.ready"]:
                process.kill()
        progress, since_s = -1.0, time.monotonic()
        while any(process.is_alive for process in self._processes):
            if status.wanted is Wanted.PARK and status["actor.progress"] != progress:  # on its way home
                progress, since_s = status["actor.progress"], time.monotonic()
            if time.monotonic() - since_s > self._config.supervision.stop_limit_s:
                break
            self._relax_for_hung_actor()
            time.sleep(POLL_S)
        self._end_processes()

    def _relax_for_hung_actor(self) -> None:
        """Kill an actor that is to stop and makes no progress, and relax its robot."""
        actor = self._actor
        if self._status.wanted is Wanted.STOP and not self._is_relaxed() and actor.is_alive and actor.idle_s > HUNG_S:
            self._tell("killed", f"the actor did not relax the robot within {HUNG_S:.0f} s")
            actor.kill()
            self._relax_robot()
            self._status["actor.state"] = State.ABSENT

    def _end_processes(self) -> None:
        """Kill what is left of both processes; relax the robot if its actor did not."""
        has_ended = self._actor.has_ended
        for process in self._processes:
            if process.is_alive:
                limit_s = self._config.supervision.stop_limit_s
                self._tell("killed", f"the {process.name} did not end within {limit_s} s")
            process.kill()
        if not has_ended and not self._is_relaxed():
            self._relax_robot()

    def _is_relaxed(self) -> bool:
        return self._status.state("actor") in (State.ABSENT, State.ENDED)

    def _tell(self, kind: str, message: str) -> None:
        """Write an event and show it; neither a full disk nor a terminal that is gone may end the run."""
        try:
            self._run.event(kind, message)
        except OSError as error:
            message += f" (events cannot be written: {error})"
        say(f"{kind}: {message}")


def say(text: str) -> None:
    """Print beside a progress bar, without waiting for a terminal that takes no text."""
    try:
        tqdm.write(text, file=Unblocked(sys.stdout))
    except OSError:
        return


def supervise(run: Run, deadline_epoch_s: float | None, lock: int) -> str:
    """Supervise a run whose lock the caller holds, by its descriptor; return DONE, STOPPED or FAILED."""
    return Supervisor(run, deadline_epoch_s=deadline_epoch_s, lock=lock).run()
