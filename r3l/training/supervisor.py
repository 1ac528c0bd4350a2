"""The supervisor: keeps actor and learner going, does what people ask, and ends the run with the robot relaxed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from r3l.config.errors import UserError
from r3l.config.schema import MANY
from r3l.robot.base import RobotError, SimulatedRobot
from r3l.run.directory import Run
from r3l.run.jsonl import read_steps
from r3l.run.progress import Unblocked, progress_bar
from r3l.run.state import planned_end
from r3l.task.registry import robot_of
from r3l.training.control_socket import ControlServer
from r3l.training.shared_status import PROCESSES, SharedStatus, State, Wanted
from r3l.training.systemd import Notifier
from r3l.training.watched_process import WatchedProcess, open_log

POLL_S = 0.05
RELAX_LIMIT_S = 5.0
HUNG_S = 2.0
"""An actor that is to stop, and does nothing for so long, does not relax the robot any more."""
ORPHANS_END_S = 7.0
"""Orphans relax the robot and end by themselves within five seconds; one that hangs is killed then."""
FINISH_LIMIT_S = 600.0
"""What the last evaluation and the report may take, each."""
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
        self._evaluation: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        self._asked_again = threading.Event()
        self._is_finishing = False
        self._progress = 0.0
        self._is_simulated = isinstance(robot_of(run.config, run.rig), SimulatedRobot)
        self._tried = {line["step"] for line in read_steps(run.evaluations)}

    def run(self) -> str:
        """Keep the run going; return DONE, STOPPED (by people), or FAILED with the reason in the events."""
        with ExitStack() as stack:
            asked = SharedStatus.left_wanted(self._run.shared)
            self._shared = shared = SharedStatus.create(self._run.shared)
            shared["wanted"] = asked  # paused or relaxed by people, whatever happened to the supervisor since
            shared["supervisor.pid"] = os.getpid()
            shared["started_epoch_s"] = time.time()
            shared["deadline_epoch_s"] = self._deadline_epoch_s or 0.0
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            stack.callback(os.close, writing)
            self._lifeline = reading
            self._processes = self._make_processes(reading)
            stack.enter_context(self._heeding_signals())
            stack.enter_context(ControlServer(self._run.control, self._obey))
            stack.callback(self._end_all)
            stack.callback(self._end_evaluation)
            self._event("start", f"actor and learner under supervision, {self._describe_end()}")
            self._bar = stack.enter_context(self._make_bar())
            self._notifier.ready("running")
            while not self._is_over():
                self._look()
                time.sleep(POLL_S)
            return self._end()

    def _make_processes(self, lifeline: int) -> tuple[WatchedProcess, WatchedProcess]:
        limits = self._config.supervision
        actor, learner = (
            WatchedProcess(name, self._run, self._shared, limit_s, inherited=(self._lock,), lifeline=lifeline)
            for name, limit_s in (("actor", limits.actor_limit_s), ("learner", limits.learner_limit_s))
        )
        return actor, learner

    def _make_bar(self) -> tqdm[None]:
        done = int(self._shared["actor.steps"])
        total = self._config.steps if self._config.steps < MANY else None
        return progress_bar(self._run.folder.name, "step", total, done, file=Unblocked(sys.stderr))

    def _describe_end(self) -> str:
        steps = self._config.steps
        if self._deadline_epoch_s is None and steps < MANY:
            return f"up to step {steps}"
        return planned_end(MANY, self._deadline_epoch_s)

    def _is_over(self) -> bool:
        return (
            self._failure is not None or self._shared.wanted >= Wanted.PARK or all(w.has_ended for w in self._processes)
        )

    def _look(self) -> None:
        """Look once at everything."""
        shared = self._shared
        for watched in self._processes:
            if shared[f"{watched.name}.failure"]:
                self._failure = f"the {watched.name} cannot go on; the event before says why"
                return
            trouble = watched.trouble()
            if trouble is not None:
                self._restart(watched, trouble)
            watched.start_when_due()
        if self._deadline_epoch_s is not None and time.time() >= self._deadline_epoch_s:
            self._want(Wanted.PARK)
        self._evaluate()
        self._show()

    def _restart(self, watched: WatchedProcess, trouble: str) -> None:
        """Make sure that the process is gone and the robot relaxed, and plan the next start."""
        watched.kill()
        if watched.name == "actor":
            self._relax_robot()
        pause_s = watched.plan_restart()
        last = watched.log_end
        self._event(
            "restart", f"{trouble}; starting again in {pause_s:.1f} s" + (f"; its log ends: {last}" if last else "")
        )
        if watched.is_exhausted:
            self._failure = (
                f"the {watched.name} was restarted {self._config.supervision.max_restarts} times within an hour "
                f"(supervision.max_restarts); see {self._run.logs / watched.name}.log"
            )

    def _relax_robot(self) -> None:
        """Relax a robot whose process is gone. A simulated one is gone with its process."""
        if self._is_simulated:
            return
        robot = robot_of(self._run.config, self._run.rig)

        def do() -> None:
            try:
                robot.relax_for()
            except (RobotError, OSError) as error:
                self._event("relax", f"the robot could not be relaxed ({error}); take its power away")

        thread = threading.Thread(target=do, name="relax", daemon=True)
        thread.start()
        thread.join(RELAX_LIMIT_S)
        if thread.is_alive():
            self._event("relax", f"relaxing the robot took longer than {RELAX_LIMIT_S:.0f} s; take its power away")

    def _obey(self, word: str) -> str:
        """Do what a person asks through the control socket."""
        if self._is_finishing or self._shared.wanted >= Wanted.PARK:
            return self._obey_at_the_end(word)
        if word == "resume" and self._shared.wanted is Wanted.RUN and self._shared.state("actor") is not State.STUCK:
            return "the run is not paused by people; r3l status says what it waits for"
        self._want(WANTED[word])
        self._event("asked", word)
        return ANSWERS[word]

    def _obey_at_the_end(self, word: str) -> str:
        """Do what a person asks of a run that is ending already: it can only be hurried."""
        if self._shared.wanted is Wanted.STOP or word not in ("relax", "stop"):
            raise UserError("the run is ending already; wait for it, then r3l train --resume goes on")
        if word == "stop":
            self._asked_again.set()
        self._want(Wanted.STOP)
        self._event("asked", word)
        return "the robot is relaxed at once; the run was ending already"

    def _want(self, wanted: Wanted) -> None:
        self._shared["wanted"] = max(wanted, self._shared.wanted) if wanted >= Wanted.PARK else wanted
        if wanted is Wanted.RUN:
            self._shared.add("resumed")

    def _show(self) -> None:
        """Show where the run is: to people, and to systemd where progress was made."""
        shared = self._shared
        done = int(shared["actor.steps"])
        state = shared.state("actor").name.lower().replace("_", " ")
        try:
            self._bar.set_postfix_str(f"{state}, {int(shared['learner.updates'])} updates", refresh=False)
            self._bar.update(done - self._bar.n)
        except OSError:  # the terminal is gone, the run is not
            self._bar.disable = True
        progress = sum(shared[f"{watched.name}.progress"] for watched in self._processes)
        if progress != self._progress:
            self._progress = progress
            self._notifier.progress()
            self._notifier.status(f"step {done} {planned_end(self._config.steps, self._deadline_epoch_s)}, {state}")

    def _evaluate(self) -> None:
        """Evaluate published weights one after the other, in a process of its own beside the run."""
        if self._evaluation is not None and self._evaluation.poll() is None:
            return
        step = next(iter(self._unevaluated()), None)
        if step is not None:
            self._evaluation = self._helper("evaluate", "--step", str(step))

    def _unevaluated(self) -> list[int]:
        """Return the published steps on the curve that nobody tried to evaluate yet."""
        every = self._config.evaluate_every
        if not every or not self._is_simulated:
            return []
        steps = [step for step in self._run.published() if step % every == 0 and step not in self._tried]
        self._tried.update(steps[:1])
        return steps[:1]

    def _helper(self, role: str, *options: str) -> subprocess.Popen[bytes]:
        with open_log(self._run.logs / f"{role}.log") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "r3l.training.worker", role, str(self._run.folder)),
                    *("--parent", str(self._lifeline), *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lifeline,),
                start_new_session=True,
            )

    def _end(self) -> str:
        """End both processes; after a regular end also evaluate the last weights and write the report."""
        is_regular = self._failure is None and self._shared.wanted is not Wanted.STOP
        if not is_regular:
            self._notifier.stopping()
            self._want(Wanted.STOP)
        self._is_finishing = is_regular
        self._await_end()
        if self._failure is not None:
            self._event("failed", f"{self._failure}; the robot is relaxed")
            return FAILED
        if not is_regular:
            self._event("stop", self._where())
            return STOPPED
        self._show()
        self._finish_evaluations()
        self._event("end", self._where())  # before the report, which says how the run ended
        self._write_report()
        self._notifier.stopping()
        return DONE

    def _await_end(self) -> None:
        """Give both processes their time to end, then kill; one that has not begun yet has nothing to end."""
        if self._shared.wanted is Wanted.STOP:
            for watched in self._processes:
                if not self._shared[f"{watched.name}.ready"]:
                    watched.kill()
        progress, since_s = -1.0, time.monotonic()
        while any(watched.is_alive for watched in self._processes):
            if self._shared.wanted is Wanted.PARK and self._shared["actor.progress"] != progress:  # on its way home
                progress, since_s = self._shared["actor.progress"], time.monotonic()
            if time.monotonic() - since_s > self._config.supervision.stop_limit_s:
                break
            self._relax_what_hangs()
            time.sleep(POLL_S)
        self._end_all()

    def _relax_what_hangs(self) -> None:
        """Do not let a robot be held for long by an actor that is to stop and does nothing."""
        actor = self._processes[0]
        if self._shared.wanted is Wanted.STOP and not self._is_relaxed() and actor.is_alive and actor.idle_s > HUNG_S:
            self._event("killed", f"the actor did not relax the robot within {HUNG_S:.0f} s")
            actor.kill()
            self._relax_robot()
            self._shared["actor.state"] = State.ABSENT

    def _end_all(self) -> None:
        """Leave no process behind; a robot whose actor had to be killed, or was gone already, is relaxed."""
        actor = self._processes[0]
        was_well = actor.has_ended
        limit_s = self._config.supervision.stop_limit_s
        for watched in self._processes:
            if watched.is_alive:
                self._event("killed", f"the {watched.name} did not end within {limit_s} s")
            watched.kill()
        if not was_well and not self._is_relaxed():
            self._relax_robot()

    def _end_evaluation(self) -> None:
        if self._evaluation is not None and self._evaluation.poll() is None:
            self._evaluation.kill()
            self._evaluation.wait()

    def _is_relaxed(self) -> bool:
        return self._shared.state("actor") in (State.ABSENT, State.ENDED)

    def _finish_evaluations(self) -> None:
        """Evaluate the last weights; a signal skips what is left."""
        until = time.monotonic() + FINISH_LIMIT_S
        while time.monotonic() < until and not self._asked_again.is_set():
            self._evaluate()
            if self._evaluation is None or self._evaluation.poll() is not None:
                break
            self._notifier.progress()
            time.sleep(POLL_S)

    def _write_report(self) -> None:
        """Write the report, unless a signal skips it."""
        if self._asked_again.is_set():
            return
        report = self._helper("report")
        until = time.monotonic() + FINISH_LIMIT_S
        while report.poll() is None and time.monotonic() < until and not self._asked_again.is_set():
            self._notifier.progress()
            time.sleep(POLL_S)
        if report.poll() is None:
            report.kill()
        if report.wait() != 0:
            self._event("report", f"no report was written; r3l report {self._run.folder} tries again")

    def _where(self) -> str:
        shared = self._shared
        return f"at step {int(shared['actor.steps'])}, update {int(shared['learner.updates'])}; the robot is relaxed"

    def _event(self, kind: str, message: str) -> None:
        """Write an event and show it; neither a full disk nor a terminal that is gone may end the run."""
        try:
            self._run.event(kind, message)
        except OSError as error:
            message += f" (events cannot be written: {error})"
        say(f"{kind}: {message}")

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        """Stop at SIGINT or SIGTERM; go on when the terminal hangs up, and do not let Ctrl-Z hold supervision up."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._is_finishing or self._shared.wanted >= Wanted.PARK:
                self._asked_again.set()
            self._want(Wanted.STOP)

        handlers: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGINT: ask, signal.SIGTERM: ask}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        for ignored in (signal.SIGHUP, signal.SIGTSTP):
            before[ignored] = signal.signal(ignored, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def say(text: str) -> None:
    """Print beside a progress bar, if anybody is there to read it; nobody is waited for."""
    try:
        tqdm.write(text, file=Unblocked(sys.stdout))
    except OSError:
        return


def supervise(run: Run, deadline_epoch_s: float | None, lock: int) -> str:
    """Supervise a run whose lock the caller holds, by its descriptor; return DONE, STOPPED or FAILED."""
    return Supervisor(run, deadline_epoch_s=deadline_epoch_s, lock=lock).run()


def end_orphans(run: Run) -> None:
    """End what a supervisor that was killed left behind: its processes hold the run's lock until they are gone."""
    holder = run.holder()
    if holder is None or Path(f"/proc/{holder}").exists():
        return
    try:
        shared = SharedStatus(run.shared)
    except (OSError, ValueError):
        return
    until = time.monotonic() + ORPHANS_END_S
    for pid in (int(shared[f"{name}.pid"]) for name in PROCESSES):
        while is_child(pid, run) and time.monotonic() < until:
            time.sleep(POLL_S)
        if is_child(pid, run):
            os.kill(pid, signal.SIGKILL)
    while run.holder() is not None and time.monotonic() < until + 1:
        time.sleep(POLL_S)


def is_child(pid: int, run: Run) -> bool:
    """Return whether a process is one of the run's."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    try:
        cwd, ours = Path(f"/proc/{pid}/cwd").resolve(), run.folder.resolve()
    except OSError:
        return False
    return b"r3l.training.worker" in words and any(Path(cwd, os.fsdecode(word)).resolve() == ours for word in words)
