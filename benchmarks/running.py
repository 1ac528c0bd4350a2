"""r3l commands as subprocesses, and a training run that a benchmark watches and pauses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from r3l.config.errors import UserError
from r3l.run.directory import Run
from r3l.task.registry import load_task
from r3l.training.shared_status import PROCESSES, SharedStatus

R3L = (sys.executable, "-m", "r3l")
WITH_DEFAULT_SIGNALS = ("env", "--default-signal=INT,TERM,HUP")
"""Prefix of a command: it does not inherit that nohup ignores SIGHUP, or that a background shell ignores SIGINT."""
POLL_S = 0.1
START_TIMEOUT_S = 120
EXPLORATION_STEPS = 1000
ENDLESS_STEPS = 200_000
"""Env steps of a run that no benchmark reaches the end of."""


def train_command(folder: Path, task: str, *options: str) -> list[str]:
    """Return the command that resumes the run in `folder`, or starts it there on the CPU if there is none."""
    if (folder / "config.json").exists():
        return resume_command(folder)
    place = ["--runs", str(folder.parent), "--name", folder.name]
    return [*R3L, "train", task, *place, "--device", "cpu", *options]


def resume_command(folder: Path, *options: str) -> list[str]:
    """Return the command that resumes the run in `folder`."""
    return [*R3L, "train", "--resume", str(folder), *options]


def start_logged(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that Ctrl-C does not reach it; append its output to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [*WITH_DEFAULT_SIGNALS, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TQDM_DISABLE": "1"},
            start_new_session=True,
        )


def run_logged(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end and append its output to `log`; UserError if it fails."""
    with log.open("ab") as out:
        env = os.environ | (environment or {})
        done = subprocess.run(command, check=False, stdout=out, stderr=subprocess.STDOUT, env=env)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` ended with exit code {done.returncode}; see {log}")


def collect_goals(task: str, folder: Path | None = None, *options: str) -> Path:
    """Return the folder of goal images, by default goals/TASK; collect them on the twin if there is none."""
    folder = folder or Path("goals") / load_task(task).name
    if not folder.exists():
        subprocess.run([*R3L, "goals", task, "--out", str(folder), *options], check=True)
    return folder


def prepare(folder: Path, task: str, *, learned_steps: int) -> Run:
    """Return a run of the default preset on the twin that has explored and learned a little; train it if needed."""
    if not (folder / "config.json").exists():
        collect_goals(task)
        options = ["--steps", str(EXPLORATION_STEPS + learned_steps), "--set", "evaluate_every=0"]
        options += ["--set", f"phases.exploration_steps={EXPLORATION_STEPS}"]
        subprocess.run(train_command(folder, task, *options), check=True)
    return Run.open(folder)


class Running:
    """A run in training, started by `r3l train --resume`. Use as a context manager: leaving it stops the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.log = Path(f"{run.folder}.log")
        self._paused: set[int] = set()

    def __enter__(self) -> Running:
        self.started_s = time.monotonic()
        self.process = start_logged(resume_command(self.run.folder), self.log)
        try:
            self.wait_for(self._has_shared_status, START_TIMEOUT_S)
            self.shared = SharedStatus(self.run.shared, writable=False)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.resume(*self._paused)
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def _has_shared_status(self) -> bool:
        """Return whether this supervisor, not an earlier one, has created the shared status."""
        try:
            return SharedStatus(self.run.shared, writable=False)["supervisor.pid"] == self.process.pid
        except (OSError, ValueError):
            return False

    def wait_for(self, is_true: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a condition; UserError if the run ends or the time is up before."""
        end_s = time.monotonic() + timeout_s
        while not is_true():
            code = self.process.poll()
            if code is not None:
                raise UserError(f"{self.run.folder} ended with exit code {code}; see {self.log}")
            if time.monotonic() > end_s:
                raise UserError(f"{self.run.folder} was not ready within {timeout_s:.0f} s; see {self.log}")
            time.sleep(POLL_S)

    def pids(self) -> list[int]:
        """Return the process ids of the supervisor, the actor and the learner."""
        return [self.process.pid, *(self.pid(name) for name in PROCESSES)]

    def pid(self, name: str) -> int:
        """Wait until a process has an id and return it: a signal to id 0 would hit the benchmark itself."""
        self.wait_for(lambda: self.shared[f"{name}.pid"] > 0, START_TIMEOUT_S)
        return int(self.shared[f"{name}.pid"])

    def pause(self, *pids: int) -> None:
        """Send SIGSTOP to processes."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self._paused |= set(pids)

    def resume(self, *pids: int) -> None:
        """Send SIGCONT to processes."""
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        self._paused -= set(pids)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def stolen_s() -> float:
    """Return the seconds, summed over cores, that the host gave to other virtual machines."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")
